"""Entries of the log and what is known of those who write them; no I/O."""

import hashlib
from dataclasses import dataclass
from datetime import datetime

LEAF_VERSION = b"\x01"


class Inconsistent(Exception):
    """What is stored contradicts what was signed: nothing more is signed before somebody has looked."""


@dataclass(frozen=True)
class Arrived:
    """A record as it came, in two parts: what goes into the tree, and what is personal, with the names it is found by."""

    record_id: str
    producer: str
    producer_seq: int
    action: str
    agency_id: str
    emergency_id: str
    at: datetime
    leaf: bytes
    personal: bytes
    actor: tuple[str, str]
    target: str


@dataclass(frozen=True)
class Stored:
    """An entry as it is kept. `subject` and `wrapped` are whom its personal part is sealed for, and how; None if they were forgotten."""

    index: int
    record_id: str
    agency_id: str
    leaf: bytes
    sealed: bytes
    subject: bytes | None
    wrapped: bytes | None


@dataclass(frozen=True)
class Entry:
    """An entry as it is read; an empty `personal` was forgotten."""

    index: int
    leaf: bytes
    personal: bytes


@dataclass(frozen=True)
class Signed:
    """A checkpoint as it was signed."""

    size: int
    root: bytes
    note: str


@dataclass(frozen=True)
class Producer:
    """How far a producer's records have come."""

    producer: str
    highest: int
    missing: int
    newest_at: datetime


@dataclass(frozen=True)
class Search:
    """What to look for; empty fields are not looked at."""

    agency_id: str
    actor_id: str = ""
    actor_agency_id: str = ""
    target: str = ""
    action: str = ""
    emergency_id: str = ""
    since: datetime | None = None
    until: datetime | None = None


def personal_hash(personal: bytes) -> bytes:
    """What a leaf says of its personal part."""
    return hashlib.sha256(personal).digest()
