"""Recorded media: fragments of MP4, their hash chain, and the files they lie in. No network, no services."""
