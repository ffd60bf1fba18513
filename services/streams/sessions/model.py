"""Stream sessions and the grants to watch them; no I/O.

Session: GRANTED ──▶ CONNECTING ──▶ LIVE ◀──▶ INTERRUPTED ──▶ ENDED. Silence interrupts, and ends only after a week: what ends a
session is its camera's word, another holder of the camera, or a clear before any media came.
Grant: issued ──▶ redeemed ──▶ revoked ──▶ ended. `revoked` is the decision, `ended` the relay's word that no byte leaves any more.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from chassis.names import KeptEnum

DEGRADED_AFTER, INTERRUPTED_AFTER = timedelta(seconds=3), timedelta(seconds=15)
# A camera that is silent for so long does not come back to its session: its recording must end some day.
LOST_AFTER = timedelta(days=7)
GAPS_AT_MOST = 100
_CLOCKS_DIFFER = timedelta(seconds=1)
TOKEN_LASTS, GRANT_LASTS, LEASE = timedelta(seconds=60), timedelta(minutes=10), timedelta(seconds=30)
# A relay that cannot ask lets viewers of an emergency watch on for so long after their lease.
GRACE = timedelta(seconds=60)


class SessionState(KeptEnum):
    """Where a session stands."""

    GRANTED = "GRANTED"
    CONNECTING = "CONNECTING"
    LIVE = "LIVE"
    INTERRUPTED = "INTERRUPTED"
    ENDED = "ENDED"


class SessionEnd(KeptEnum):
    """Why a session is over."""

    CAMERA_STOPPED = "CAMERA_STOPPED"
    HOLDER_CHANGED = "HOLDER_CHANGED"
    EMERGENCY_CLEARED = "EMERGENCY_CLEARED"
    CAMERA_LOST = "CAMERA_LOST"


class GrantEnd(KeptEnum):
    """Why a grant is over."""

    VIEWER_LEFT = "VIEWER_LEFT"
    EMERGENCY_CLEARED = "EMERGENCY_CLEARED"
    HOLDER_CHANGED = "HOLDER_CHANGED"
    EXPIRED = "EXPIRED"
    NOT_USED = "NOT_USED"
    RELAY_LOST = "RELAY_LOST"
    REVOKED = "REVOKED"
    SESSION_ENDED = "SESSION_ENDED"
    NOT_INVOLVED = "NOT_INVOLVED"


@dataclass(frozen=True)
class Relay:
    """A relay that says it is there."""

    relay_id: str
    ingest_url: str
    view_url: str
    draining: bool
    is_full: bool


@dataclass(frozen=True)
class Wanted:
    """A camera that shall stream, and has no session yet."""

    agency_id: str
    camera_id: str
    officer_id: str
    emergency_id: str
    epoch: int
    traceparent: str


@dataclass(frozen=True)
class Holding:
    """Who wears a camera now, as the registry told at that time."""

    agency_id: str
    camera_id: str
    officer_id: str
    told_at: datetime


@dataclass(frozen=True)
class Session:
    """One camera's stream; every change raises the version. An empty `relay_id`: no relay takes it yet."""

    session_id: str
    version: int
    agency_id: str
    camera_id: str
    officer_id: str
    emergency_id: str
    epoch: int
    relay_id: str
    state: SessionState
    degraded: bool
    created_at: datetime
    live_at: datetime | None
    last_media_at: datetime | None
    ended_at: datetime | None
    end_cause: str
    gaps: tuple[tuple[datetime, datetime], ...]
    token: str
    traceparent: str
    audio_muted: bool = False
    not_kept_at: datetime | None = None

    @classmethod
    def begin(cls, session_id: str, wanted: Wanted, relay_id: str, token: str, now: datetime) -> "Session":
        """A new session, ordered of its camera."""
        return cls(
            session_id, 1, wanted.agency_id, wanted.camera_id, wanted.officer_id, wanted.emergency_id, wanted.epoch, relay_id,
            SessionState.GRANTED, degraded=False, created_at=now, live_at=None, last_media_at=None, ended_at=None, end_cause="", gaps=(),
            token=token, traceparent=wanted.traceparent,
        )  # fmt: skip

    def admitted(self) -> "Session":
        """Its camera has come to its relay."""
        return self._next(state=SessionState.CONNECTING) if self.state == SessionState.GRANTED else self

    def heard(self, last_media_at: datetime, *, stopped: bool, now: datetime) -> "Session":
        """Its relay tells when media came last. News that is older than what is known changes nothing."""
        if self.state == SessionState.ENDED:
            return self
        session = self._media(last_media_at)
        return session.ended(SessionEnd.CAMERA_STOPPED, now) if stopped else session.silent(now)

    def _media(self, at: datetime) -> "Session":
        if self.last_media_at is not None and at <= self.last_media_at:
            return self
        if self.state == SessionState.LIVE:
            return replace(self, last_media_at=at)
        if self.last_media_at is not None and at <= self.last_media_at + _CLOCKS_DIFFER:
            return self  # the same media, told a little later
        gaps = self.gaps
        if self.state == SessionState.INTERRUPTED and self.last_media_at is not None and len(gaps) < GAPS_AT_MOST:
            gaps = (*gaps, (self.last_media_at, at))
        return self._next(state=SessionState.LIVE, live_at=self.live_at or at, last_media_at=at, gaps=gaps)

    def silent(self, now: datetime) -> "Session":
        """What the time since its last media makes of it."""
        if self.last_media_at is None:
            return self
        silence = now - self.last_media_at
        if self.state == SessionState.INTERRUPTED and silence >= LOST_AFTER:
            return self.ended(SessionEnd.CAMERA_LOST, now)
        if self.state != SessionState.LIVE:
            return self
        if silence >= INTERRUPTED_AFTER:
            return self._next(state=SessionState.INTERRUPTED, degraded=False)
        degraded = silence >= DEGRADED_AFTER
        return self._next(degraded=degraded) if degraded != self.degraded else self

    def muted(self, *, is_muted: bool) -> "Session":
        """The camera's microphone is off, or on again."""
        return self if is_muted == self.audio_muted else self._next(audio_muted=is_muted)

    def not_kept(self, now: datetime) -> "Session":
        """Its relay had no room for its media; told at most once in a while, for it happens with every attempt."""
        if self.not_kept_at is not None and now - self.not_kept_at < INTERRUPTED_AFTER:
            return self
        return self._next(not_kept_at=now)

    def moved(self, relay_id: str) -> "Session":
        """Another relay takes it."""
        return self if relay_id == self.relay_id else self._next(relay_id=relay_id)

    def ended(self, cause: SessionEnd, now: datetime) -> "Session":
        """It is over."""
        if self.state == SessionState.ENDED:
            return self
        return self._next(state=SessionState.ENDED, degraded=False, ended_at=now, end_cause=cause.value)

    def _next(self, **changes: object) -> "Session":
        return replace(self, version=self.version + 1, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Grant:
    """One person may watch one camera because of one emergency; every change raises the version."""

    grant_id: str
    version: int
    session_id: str
    camera_id: str
    emergency_id: str
    agency_id: str
    viewer: str
    relay_id: str
    token_hash: bytes
    token_expires_at: datetime
    issued_at: datetime
    expires_at: datetime
    redeemed_at: datetime | None = None
    lease_until: datetime | None = None
    revoked_at: datetime | None = None
    end_cause: str = ""
    ended_at: datetime | None = None
    last_byte_at: datetime | None = None
    bytes: int = 0
    skipped: int = 0

    def redeemed(self, relay_id: str, now: datetime) -> "Grant":
        """Its viewer has come to a relay; once, in time, and not after its end. Else unchanged."""
        if self.redeemed_at or self.revoked_at or now >= self.token_expires_at or now >= self.expires_at:
            return self
        return self._next(redeemed_at=now, relay_id=relay_id, lease_until=now + LEASE)

    def extended(self, now: datetime) -> "Grant":
        """Prolonged; not after its end."""
        return self if self.revoked_at or now >= self.expires_at else self._next(expires_at=now + GRANT_LASTS)

    def revoked(self, cause: GrantEnd, now: datetime) -> "Grant":
        """Decided that it is over. One that nobody came with is over at once."""
        if self.revoked_at:
            return self
        ended_at = None if self.redeemed_at else now
        return self._next(revoked_at=now, end_cause=cause.value, ended_at=ended_at)

    def used(self, use: "Use", now: datetime) -> "Grant":
        """The relay's last word on it; the first such word counts, also after we had believed the relay lost."""
        if not self.redeemed_at or (self.ended_at and (self.end_cause != GrantEnd.RELAY_LOST or self.bytes)):
            return self
        known = self.revoked(GrantEnd.VIEWER_LEFT, now)
        return known._next(ended_at=use.ended_at, last_byte_at=use.last_byte_at, bytes=use.bytes, skipped=use.skipped)

    def lapsed(self, now: datetime) -> "Grant":
        """Over by time alone: token not used, not prolonged, or its relay is gone."""
        if self.ended_at:
            return self
        if not self.redeemed_at:
            return self.revoked(GrantEnd.NOT_USED, now) if now >= self.token_expires_at else self
        if self.lease_until and now >= self.lease_until + GRACE:
            # The relay ends what it cannot renew, so nobody watches any more; how much was served it has not told.
            return self.revoked(GrantEnd.RELAY_LOST, now)._next(ended_at=now)
        return self.revoked(GrantEnd.EXPIRED, now) if now >= self.expires_at else self

    def _next(self, **changes: object) -> "Grant":
        return replace(self, version=self.version + 1, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Use:
    """What a grant came to at its relay."""

    grant_id: str
    bytes: int
    skipped: int
    last_byte_at: datetime | None
    ended_at: datetime


def choose(loads: Mapping[str, int], count: int, full: Collection[str] = ()) -> list[str]:
    """Relays for so many sessions, the least loaded first; empty names if there is no relay. `loads` are sessions by relay.

    One with little room is better than none.
    """
    there, chosen = dict(loads), []
    for _ in range(count):
        best = min(there, key=lambda relay_id: (relay_id in full, there[relay_id], relay_id), default="")
        if best:
            there[best] += 1
        chosen.append(best)
    return chosen


def cameras_of(sessions: Sequence[Session]) -> dict[str, list[str]]:
    """Cameras by agency, each once and sorted."""
    found: dict[str, set[str]] = {}
    for session in sessions:
        found.setdefault(session.agency_id, set()).add(session.camera_id)
    return {agency: sorted(cameras) for agency, cameras in sorted(found.items())}
