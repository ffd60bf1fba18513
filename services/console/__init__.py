"""What people at desks see in a browser."""
