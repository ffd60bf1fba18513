"""Recordings on their way to deletion; no I/O.

KEPT ◀──▶ MARKED ──▶ DELETING ──▶ DELETED. A hold, or a later `retain_until`, takes a mark back at any time before DELETING; that state
is written in the transaction that looks a last time, so a hold either comes before it and wins, or is told that it is too late. Only
what a relay has and nobody published leads back from DELETING.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from chassis.names import KeptEnum

# Shorter than this between two segments is no gap: a camera that reconnects begins with a keyframe.
GAP_FROM = timedelta(seconds=1)


class RecordingState(KeptEnum):
    """Where a recording stands."""

    KEPT = "KEPT"
    MARKED = "MARKED"
    DELETING = "DELETING"
    DELETED = "DELETED"


class HoldReason(KeptEnum):
    """Why a recording must not be deleted."""

    EMERGENCY = "EMERGENCY"
    PERSON = "PERSON"
    INTEGRITY = "INTEGRITY"


class DeletionResult(KeptEnum):
    """What became of a segment at its relay."""

    DELETED = "DELETED"
    MISSING = "MISSING"
    DIFFERS = "DIFFERS"


@dataclass(frozen=True)
class Streamed:
    """What a stream session tells of its recording."""

    recording_id: str
    agency_id: str
    camera_id: str
    officer_id: str
    emergency_id: str
    began_at: datetime
    ended_at: datetime | None
    last_media_at: datetime | None


@dataclass(frozen=True)
class Recording:
    """What was kept of a session; every change that is told raises the version."""

    recording_id: str
    version: int
    agency_id: str
    camera_id: str
    officer_id: str
    emergency_id: str
    began_at: datetime
    ended_at: datetime | None
    state: RecordingState
    retain_until: datetime
    held: bool = False
    delete_after: datetime | None = None
    deleted_at: datetime | None = None

    @classmethod
    def begin(cls, streamed: Streamed, retain_until: datetime) -> "Recording":
        """A recording that nothing was known of."""
        s = streamed
        return cls(
            s.recording_id,
            1,
            s.agency_id,
            s.camera_id,
            s.officer_id,
            s.emergency_id,
            s.began_at,
            s.ended_at,
            RecordingState.KEPT,
            retain_until,
        )

    @property
    def can_be_held(self) -> bool:
        """Whether a hold still keeps it."""
        return self.state in (RecordingState.KEPT, RecordingState.MARKED)

    def streamed(self, ended_at: datetime | None, retain_until: datetime) -> "Recording":
        """Its session tells more; what is known only grows."""
        if self.ended_at is not None or ended_at is None:
            return replace(self, retain_until=max(self.retain_until, retain_until))
        return self._next(ended_at=ended_at, retain_until=max(self.retain_until, retain_until))

    def with_hold(self, *, held: bool) -> "Recording":
        """Whether anything holds it now; a hold takes back a mark at once."""
        if held and self.state == RecordingState.MARKED:
            return self._next(held=True, state=RecordingState.KEPT, delete_after=None)
        return self if held == self.held else self._next(held=held)

    def due(self, now: datetime, grace: timedelta) -> "Recording":
        """What the time makes of it; nothing while its session has not ended, for media may still come."""
        over = not self.held and self.ended_at is not None and self.retain_until <= now
        if self.state == RecordingState.KEPT and over:
            return self._next(state=RecordingState.MARKED, delete_after=now + grace)
        if self.state == RecordingState.MARKED and not over:
            return self._next(state=RecordingState.KEPT, delete_after=None)
        if self.state == RecordingState.MARKED and self.delete_after is not None and self.delete_after <= now:
            return self._next(state=RecordingState.DELETING)
        return self

    def confirmed(self, segments: Sequence["Segment"], now: datetime) -> "Recording":
        """Its deletion is done once every known segment is gone."""
        if self.state != RecordingState.DELETING or any(segment.deleted_at is None for segment in segments):
            return self
        return self._next(state=RecordingState.DELETED, deleted_at=now)

    def disputed(self) -> "Recording":
        """A relay has something else than was published: what is left is kept until somebody has looked."""
        return self._next(state=RecordingState.KEPT, held=True, delete_after=None, deleted_at=None)

    def _next(self, **changes: object) -> "Recording":
        return replace(self, version=self.version + 1, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Segment:
    """One segment of a recording at a relay: what is known to be kept, by its newest published chain value."""

    recording_id: str
    segment_id: str
    relay_id: str
    pieces: int
    size: int
    chain: bytes
    received_at: datetime
    captured_from: datetime | None = None
    captured_until: datetime | None = None
    deleted_at: datetime | None = None
    missing: bool = False  # its relay did not have it


@dataclass(frozen=True)
class Deleted:
    """What a relay says of one segment; the chain is the one by its index."""

    segment_id: str
    result: DeletionResult
    pieces: int
    size: int
    chain: bytes
    deleted_at: datetime | None


@dataclass(frozen=True)
class Hold:
    """Why a recording is kept; actors are serialised `Actor` messages."""

    hold_id: str
    recording_id: str
    reason: HoldReason
    note: str
    emergency_id: str | None
    placed_by: bytes
    placed_at: datetime
    released_by: bytes | None = None
    released_at: datetime | None = None
    release_note: str = ""
    # Released because its emergency spares: should it turn out to have been real, it may be held again.
    lapsed: bool = False

    def released(self, by: bytes, at: datetime, note: str, *, lapsed: bool) -> "Hold":
        """Not needed any more; the first release counts."""
        return self if self.released_at else replace(self, released_by=by, released_at=at, release_note=note, lapsed=lapsed)


@dataclass(frozen=True)
class KnownEmergency:
    """What is known of an emergency. One that `spares` holds nothing: a drill, or an alarm that was none."""

    emergency_id: str
    version: int
    agency_id: str
    cleared_at: datetime | None
    spares: bool


@dataclass(frozen=True)
class Activated:
    """A camera was started, or recorded already, because of an emergency."""

    emergency_id: str
    agency_id: str
    camera_id: str
    officer_id: str
    since: datetime


def in_order(segments: Sequence[Segment]) -> list[Segment]:
    """Segments by their first picture; those that do not tell come by their arrival."""
    return sorted(segments, key=lambda segment: (segment.captured_from or segment.received_at, segment.segment_id))


def gaps(segments: Sequence[Segment]) -> list[tuple[datetime, datetime]]:
    """Times between the first and the last picture that no segment has, by the camera's clock."""
    spans = sorted((s.captured_from, s.captured_until) for s in segments if s.captured_from is not None and s.captured_until is not None)
    found: list[tuple[datetime, datetime]] = []
    until = spans[0][0] if spans else None
    for since, to in spans:
        if until is not None and since - until >= GAP_FROM:
            found.append((until, since))
        until = max(until, to) if until is not None else to
    return found
