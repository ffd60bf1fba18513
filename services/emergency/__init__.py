"""Presses in, emergencies managed."""
