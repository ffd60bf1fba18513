"""Stream sessions and viewer grants: the same files as a service, in the streams service's process and schema."""
