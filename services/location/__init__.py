"""Where everybody is, and for some time was."""
