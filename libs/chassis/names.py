"""What ids and names from outside may look like, where no rule of a schema has checked them: records, paths, page tokens."""

import re
import unicodedata
from enum import StrEnum
from typing import Any, Self

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


class KeptEnum(StrEnum):
    """An enum of what is kept: a value that only another release knows is its text, equals no known one, and is written as it was."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        unknown = str.__new__(cls, value)
        unknown._name_ = unknown._value_ = value
        return unknown


def on_wire(enum: Any, prefix: str, name: str | None) -> Any:
    """The protobuf value of a kept name; unspecified, which is 0 everywhere, for none and for one that this release does not know."""
    full = f"{prefix}_{name}"
    return enum.Value(full) if name and full in enum.keys() else 0  # noqa: SIM118


# Joiners, which the scripts of some languages need inside names.
_JOINERS = "\u200c\u200d"


def unprintable(text: str) -> str:
    """The first character that no name has, empty if there is none: control characters, line breaks, what turns writing round."""
    return next((c for c in text if unicodedata.category(c) in _UNPRINTABLE and c not in _JOINERS), "")


_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def readable(raw: bytes, at_most: int) -> tuple[str, bool]:
    """Free text of a device in a form that can be kept and shown, and whether nothing of it had to be replaced or cut.

    Padding with NUL goes without a word: fields of fixed width come with it.
    """
    text = raw.replace(b"\0", b"").decode("utf-8", "replace").strip()
    shown = "".join("\ufffd" if unprintable(c) else c for c in text)[:at_most]
    return shown, "\ufffd" not in shown and shown == text
