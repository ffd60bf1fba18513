"""One folder a service; the files inside have the same names everywhere."""
