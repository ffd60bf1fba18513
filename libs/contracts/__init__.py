"""What crosses the wire, said once: topics, keys, and who may call what."""
