"""Radios, gateways and cameras that behave like real ones, badly where asked."""
