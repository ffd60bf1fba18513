"""Where everybody is now: in memory, on every replica."""
