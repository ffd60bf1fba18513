"""Who holds which radio and camera, when."""
