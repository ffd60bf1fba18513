"""What ids and names from outside may look like, where no rule of a schema has checked them: records, paths, page tokens."""

import re

# Sightline's own services and people act for this agency; it is over all others.
PLATFORM = "platform"

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AT_MOST = 63  # characters, as in certificates


def is_uuid(text: str) -> bool:
    """Whether this is a UUID as we write them: lower case, with hyphens."""
    return _UUID.fullmatch(text) is not None


def are_names(*names: str) -> bool:
    """Whether each can be the name of an agency, an officer, a device: not empty, not long, and PostgreSQL takes it."""
    return all(0 < len(name) <= _AT_MOST and "\0" not in name for name in names)
