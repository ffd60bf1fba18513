"""Live media: in from cameras, onto the disk, out to viewers."""
