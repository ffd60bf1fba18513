"""The audit log: what all services recorded, in one order, provable to outsiders."""
