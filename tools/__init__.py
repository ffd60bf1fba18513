"""For laptops, tests and demonstrations; never in the image."""
