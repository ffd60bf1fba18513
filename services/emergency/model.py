"""The emergency and its rules; no I/O.

    open ──clear──▶ cleared          Nothing else ends an emergency: not time, not a cancel, not a lost link.

Acknowledged, cancel requested, stale and whose it is are facts beside that state.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from chassis.errors import Changed, WrongState
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

# A counter's press key and a waiting cancel match this long; afterwards an equal key is another press.
KEY_LIFE = timedelta(minutes=30)
# A press that comes so soon after the clear is shown as following it.
RELATED = timedelta(hours=4)
# Clocks that differ by more than this cannot both be right.
CLOCK_TOLERANCE = timedelta(seconds=5)
# A gateway that says it kept a press for longer had its clock set in between.
WAITED_AT_MOST = timedelta(hours=24)


class Status(StrEnum):
    """Whether an alarm is meant."""

    ACTUAL = "ACTUAL"
    EXERCISE = "EXERCISE"


class Disposition(StrEnum):
    """Outcome of a clear."""

    RESOLVED = "RESOLVED"
    FALSE_ACTIVATION = "FALSE_ACTIVATION"
    EXERCISE = "EXERCISE"
    SUPERSEDED_BY_ACTUAL = "SUPERSEDED_BY_ACTUAL"


class SubjectState(StrEnum):
    """How well it is known whose emergency it is."""

    HELD = "HELD"
    NOBODY = "NOBODY"
    RADIO_UNKNOWN = "RADIO_UNKNOWN"
    UNPINNED = "UNPINNED"
    BOUND = "BOUND"


@dataclass(frozen=True)
class RadioId:
    """What a radio sends: unique only as a whole."""

    wacn: int
    system_id: int
    unit_id: int

    def __str__(self) -> str:
        return f"{self.wacn:05x}-{self.system_id:03x}-{self.unit_id:06x}"


@dataclass(frozen=True)
class Who:
    """An actor: kind as in sightline.common.v1.ActorKind."""

    kind: int
    id: str
    agency_id: str


@dataclass(frozen=True)
class Fact:
    """Something that somebody did, once."""

    actor: Who
    at: datetime
    note: str = ""


@dataclass(frozen=True)
class Place:
    """A fix in degrees; accuracy in metres, None if not told."""

    latitude: float
    longitude: float
    accuracy_m: float | None = None


@dataclass(frozen=True)
class Clocks:
    """The three clocks of a press, and the time that everything downstream uses."""

    gateway_received_at: datetime
    gateway_sent_at: datetime
    platform_received_at: datetime
    press_time: datetime
    gateway_skew: timedelta
    clock_suspect: bool
    source_time: datetime | None = None


@dataclass(frozen=True)
class Subject:
    """Whose emergency it is, settled once at acceptance or by a bind."""

    state: SubjectState
    officer_id: str = ""
    unit_id: str = ""
    duty_version: int = 0
    held_from: datetime | None = None
    held_to: datetime | None = None
    home_agency_id: str = ""
    camera_ids: tuple[str, ...] = ()
    filled_at: datetime | None = None


@dataclass(frozen=True)
class Press:
    """One press as the gateway sent it."""

    key: str
    request_key: str
    request_id: str
    radio: RadioId
    clocks: Clocks
    status: Status
    gateway: Who
    radio_alias: str = ""
    talkgroup_id: int = 0
    position: Place | None = None
    traceparent: str = ""

    def is_stale(self, age_gate: timedelta) -> bool:
        """Whether it was too old on arrival to start a camera."""
        return self.clocks.platform_received_at - self.clocks.press_time >= age_gate


@dataclass(frozen=True)
class Emergency:
    """One emergency; every method returns the next version."""

    emergency_id: str
    version: int
    epoch: int
    epoch_started_at: datetime
    activation_expires_at: datetime
    agency_id: str
    radio: RadioId
    status: Status
    subject: Subject
    clocks: Clocks
    stale_on_arrival: bool
    last_press_at: datetime
    last_press_key: str
    gateway_id: str
    repeat_count: int = 0
    acknowledged: Fact | None = None
    cleared: Fact | None = None
    disposition: Disposition | None = None
    cancel_requested: Fact | None = None
    related_to: str = ""
    radio_alias: str = ""
    talkgroup_id: int = 0
    position: Place | None = None
    traceparent: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it goes on."""
        return self.cleared is None

    def fold(self, press: Press, subject: Subject, age_gate: timedelta, cancel: Fact | None = None) -> "Emergency":
        """Another press of the same radio: counted, refreshes the place, and takes back a cancel of an earlier one.

        `cancel` is one that came before this very press.
        It is a new epoch, which starts cameras, if the present one can start none any more, or if somebody else holds
        the radio now: whoever presses gets a camera.
        """
        self._require_open()
        newer = press.clocks.press_time >= self.last_press_at
        folded = self._next(
            repeat_count=self.repeat_count + 1,
            last_press_at=max(self.last_press_at, press.clocks.press_time),
            last_press_key=press.key if newer else self.last_press_key,
            position=press.position or self.position,
            cancel_requested=cancel if newer else self.cancel_requested,
        )
        if press.is_stale(age_gate) or not self._needs_new_epoch(press, subject):
            return folded
        at = press.clocks.press_time
        return replace(
            folded,
            epoch=self.epoch + 1,
            epoch_started_at=at,
            activation_expires_at=at + age_gate,
            stale_on_arrival=False,
            traceparent=press.traceparent,
            subject=self.subject if self.subject.state == SubjectState.BOUND else subject,
        )

    def _needs_new_epoch(self, press: Press, subject: Subject) -> bool:
        over = (self.stale_on_arrival and self.epoch == 1) or press.clocks.press_time >= self.activation_expires_at
        settled = (SubjectState.HELD, SubjectState.NOBODY, SubjectState.RADIO_UNKNOWN)
        other = subject.state == SubjectState.HELD and self.subject.state in settled and subject.officer_id != self.subject.officer_id
        return over or other

    def request_cancel(self, fact: Fact, key: str) -> "Emergency":
        """The wearer took a press back: a fact for dispatch, which stops nothing. Only the newest press can be taken back."""
        if not self.is_open or self.cancel_requested or key != self.last_press_key:
            return self
        return self._next(cancel_requested=fact)

    def acknowledge(self, fact: Fact) -> "Emergency":
        """Somebody takes it. The first one stays; a cleared emergency may still be acknowledged."""
        return self if self.acknowledged else self._next(acknowledged=fact)

    def clear(self, fact: Fact, disposition: Disposition, expected_version: int = 0) -> "Emergency":
        """An authority ends it. The same person's repeat changes nothing; anybody else is told that it is over."""
        if self.cleared and self.cleared.actor == fact.actor and self.disposition == disposition:
            return self
        self._require_open()
        self._require_version(expected_version)
        return self._next(cleared=fact, disposition=disposition)

    def bind(self, subject: Subject, at: datetime, age_gate: timedelta, expected_version: int = 0) -> "Emergency":
        """A person names the officer: a new epoch, with the officer's cameras in the event itself."""
        self._require_open()
        self._require_version(expected_version)
        return self._next(epoch=self.epoch + 1, epoch_started_at=at, activation_expires_at=at + age_gate, subject=subject)

    def fill(self, subject: Subject, at: datetime) -> "Emergency":
        """The registry's late answer on who held the radio at the press; a bind in between stands."""
        if not self.is_open or self.subject.state != SubjectState.UNPINNED:
            return self
        return self._next(subject=replace(subject, filled_at=at))

    def _next(self, **changes: object) -> "Emergency":
        return replace(self, version=self.version + 1, **changes)  # type: ignore[arg-type]

    def _require_open(self) -> None:
        if not self.is_open:
            version = {"version": str(self.version)}
            raise WrongState(Reason.ERROR_REASON_EMERGENCY_CLEARED, "the emergency has been cleared", metadata=version)

    def _require_version(self, expected: int) -> None:
        if expected and expected != self.version:
            version = {"version": str(self.version)}
            raise Changed(Reason.ERROR_REASON_VERSION_CONFLICT, "the emergency has changed; look again", metadata=version)


def read_clocks(
    received_at: datetime | None,
    sent_at: datetime | None,
    source: datetime | None,
    now: datetime,
    age_gate: timedelta,
    *,
    unreadable: bool = False,
) -> Clocks:
    """Time of a press out of three clocks. Only the difference of the gateway's two times counts, never its clock.

    No alarm is refused for its clocks: what cannot be right is marked, and counts as pressed now. None, and
    `unreadable`, stand for a time that is no time at all.
    """
    received, sent = received_at or now, sent_at or now
    waited, skew = sent - received, sent - now
    suspect = unreadable or received_at is None or sent_at is None or abs(skew) > CLOCK_TOLERANCE
    if received_at is None or sent_at is None or not timedelta(0) <= waited <= WAITED_AT_MOST:
        waited, suspect = timedelta(0), True
    press_time = now - waited
    if source is not None:
        ahead, behind = source - press_time, press_time - source
        suspect = suspect or ahead > CLOCK_TOLERANCE or behind > max(age_gate, CLOCK_TOLERANCE)
    return Clocks(received, sent, now, press_time, skew, suspect, source)


def open_emergency(
    emergency_id: str, press: Press, subject: Subject, age_gate: timedelta, previous: Emergency | None, cancel: Fact | None
) -> Emergency:
    """A press without an open emergency opens one; an old press opens a stale one, which starts no camera.

    `previous` is the radio's newest cleared emergency; `cancel` one that came before its press.
    """
    clocks = press.clocks
    related = previous and previous.cleared and clocks.platform_received_at - previous.cleared.at < RELATED
    return Emergency(
        emergency_id=emergency_id,
        version=1,
        epoch=1,
        epoch_started_at=clocks.press_time,
        activation_expires_at=clocks.press_time + age_gate,
        agency_id=press.gateway.agency_id,
        radio=press.radio,
        status=press.status,
        subject=subject,
        clocks=clocks,
        stale_on_arrival=press.is_stale(age_gate),
        last_press_at=clocks.press_time,
        last_press_key=press.key,
        gateway_id=press.gateway.id,
        cancel_requested=cancel,
        related_to=previous.emergency_id if previous and related else "",
        radio_alias=press.radio_alias,
        talkgroup_id=press.talkgroup_id,
        position=press.position,
        traceparent=press.traceparent,
    )


def press_keys(agency_id: str, radio: RadioId, request_id: str, counter: tuple[int, int] | None) -> tuple[str, str]:
    """What tells one press from another, and the key of its request.

    The first is the counter with its boot epoch where there is one, else the request. A counter of zeros is none: some
    gateways always send one. The agency is part of both, so that no agency can touch another's presses.
    """
    request_key = f"{agency_id}/{radio}/r{request_id.lower()}" if request_id else ""
    if counter is None or 0 in counter:
        return request_key, request_key
    return f"{agency_id}/{radio}/c{counter[1]}.{counter[0]}", request_key
