"""For laptops, tests and demonstrations; never in the image."""

import os

# Programs here start other programs while gRPC's threads run: its own handling of that has been seen to abort the child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
