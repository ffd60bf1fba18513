"""Entries of the log and what is known of those who write them; no I/O."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from chassis.names import PLATFORM
from google.protobuf.message import DecodeError
from sightline.audit.v1.leaf_pb2 import AuditLeaf, AuditPersonal

LEAF_VERSION = b"\x01"
# Details that say nothing of a person: they go into the leaf as well, so that an outsider can count what the public is told.
_FACTS = frozenset({
    "version", "epoch", "status", "disposition", "subject", "stale", "state", "refusal", "reason", "cause", "by", "result", "bytes", "days",
    "rule", "outcome",
})  # fmt: skip
_CODE = re.compile(r"[A-Za-z0-9_.:+-]{1,64}")


class Inconsistent(Exception):
    """What is stored contradicts what was signed: nothing more is signed before somebody has looked."""


class WitnessRefuses(Exception):
    """A witness did not cosign, or could not be asked; the text says why."""


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
    key_id: str
    subject: bytes | None
    wrapped: bytes | None


@dataclass(frozen=True)
class Row:
    """A leaf's row with all that it says beside the leaf's bytes, which may have been changed."""

    stored: Stored
    producer: str
    producer_seq: int
    action: str
    emergency_id: str
    at: datetime
    target: bytes

    def mistake(self, personal: bytes | None, tag: Callable[[str], bytes]) -> str:
        """What contradicts the leaf, empty if nothing does. `personal` is the opened part, None if it does not open."""
        if not self.stored.leaf.startswith(LEAF_VERSION):
            return "it is of no known version"
        try:
            leaf = AuditLeaf.FromString(self.stored.leaf.removeprefix(LEAF_VERSION))
            at = leaf.at.ToDatetime(UTC)
        except (DecodeError, ValueError) as error:
            return f"it cannot be read: {error}"
        said = (leaf.record_id, leaf.producer, leaf.producer_seq, leaf.action, leaf.agency_id or PLATFORM, leaf.emergency_id, at)
        if said != (
            self.stored.record_id, self.producer, self.producer_seq, self.action, self.stored.agency_id, self.emergency_id, self.at
        ):  # fmt: skip
            return "its row says otherwise"
        if self.stored.wrapped is None:
            return ""  # forgotten; whether it may be is not for the row to say
        if personal is None:
            return "it is not sealed as we seal, or its personal part was changed"
        if personal_hash(personal) != leaf.personal_hash or tag(AuditPersonal.FromString(personal).target) != self.target:
            return "its personal part is another's"
        return ""


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
class LogState:
    """How the log stands: notes and keys as text, `cosigned` may be older than `checkpoint`; how far the producers have come."""

    checkpoint: str
    key: str
    producers: "Sequence[Producer]"
    cosigned: str
    witness_keys: Sequence[str]


@dataclass(frozen=True)
class Health:
    """Whether the log can be relied on; an empty `problem` is good."""

    problem: str
    size: int
    unsigned: int
    rechecked: int
    waiting: int


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


def facts_of(details: Mapping[str, str]) -> list[tuple[str, str]]:
    """What of a record's details goes into its leaf, by key: codes and numbers, never a text that somebody has written."""
    return [(key, details[key]) for key in sorted(_FACTS & details.keys()) if _CODE.fullmatch(details[key])]


def personal_hash(personal: bytes) -> bytes:
    """What a leaf says of its personal part."""
    return hashlib.sha256(personal).digest()
