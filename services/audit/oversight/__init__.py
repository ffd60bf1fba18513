"""Oversight: what the log, and the accounts of those who serve, say of misuse; what reviewers make of it; what the public is told."""
