"""Decisions become orders to cameras, reports become outcomes."""
