"""A witness: signs checkpoints of logs, each only if it begins with what it saw before."""
