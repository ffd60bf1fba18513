"""For tests only: real parts to test against, and waiting that is not sleeping."""
