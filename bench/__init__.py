"""Figures of the emergency path on this machine, side by side with the least that its durable steps can take: `make bench`."""
