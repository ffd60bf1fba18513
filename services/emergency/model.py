"""The emergency and its rules; no I/O.

    open ──clear──▶ cleared          Nothing else ends an emergency: not time, not a cancel, not a lost link.

Acknowledged, cancel requested, stale and whose it is are facts beside that state. Whose it is, and so which cameras start, is settled
anew for each epoch: a press begins one when the present epoch is over, has started no camera, or is another officer's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from chassis.errors import Changed, InvalidRequest, NotFound, WrongState
from chassis.names import KeptEnum
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

# A waiting cancel, and a press that is told apart by too little, match this long; afterwards an equal one is another.
KEY_LIFE = timedelta(minutes=30)
# Retries of a radio whose camera did not start begin so few epochs.
RETRY_AFTER = timedelta(seconds=5)
# Earlier officers of an emergency at the most.
EARLIER_AT_MOST = 20
# A press that comes so soon after the clear is shown as following it.
RELATED = timedelta(hours=4)
# Clocks that differ by more than this cannot both be right.
CLOCK_TOLERANCE = timedelta(seconds=5)
# A press that lay there for longer is as stale as one that lay there so long. Two times of a clock that are so far apart say nothing.
WAITED_AT_MOST, PLAUSIBLE = timedelta(days=30), timedelta(hours=24)


class Status(KeptEnum):
    """Whether an alarm is meant."""

    ACTUAL = "ACTUAL"
    EXERCISE = "EXERCISE"


class Disposition(KeptEnum):
    """Outcome of a clear."""

    RESOLVED = "RESOLVED"
    FALSE_ACTIVATION = "FALSE_ACTIVATION"
    EXERCISE = "EXERCISE"
    SUPERSEDED_BY_ACTUAL = "SUPERSEDED_BY_ACTUAL"


class SubjectState(KeptEnum):
    """How well it is known whose emergency it is."""

    HELD = "HELD"
    NOBODY = "NOBODY"
    RADIO_UNKNOWN = "RADIO_UNKNOWN"
    UNPINNED = "UNPINNED"
    BOUND = "BOUND"


class Superseded(KeptEnum):
    """What made an officer an earlier one of an emergency."""

    BY_OPERATOR = "BY_OPERATOR"
    BY_HOLDER = "BY_HOLDER"


class Outcome(StrEnum):
    """What the present epoch's activations came to, as far as is known."""

    PENDING = "PENDING"
    STARTED = "STARTED"
    NOT_STARTED = "NOT_STARTED"  # each camera refused, was out of reach or said nothing
    NO_CAMERA = "NO_CAMERA"  # the decision named none


_NOT_STARTED = frozenset({"REFUSED", "UNREACHABLE", "TIMED_OUT"})


def outcome_of(states: Sequence[str]) -> Outcome:
    """Outcome of an epoch out of the states of all its activations; none is known: it is pending."""
    if not states or any(state not in _NOT_STARTED | {"RECORDING", "ALREADY_RECORDING", "NO_CAMERA"} for state in states):
        return Outcome.PENDING
    if set(states) <= _NOT_STARTED:
        return Outcome.NOT_STARTED
    return Outcome.NO_CAMERA if set(states) == {"NO_CAMERA"} else Outcome.STARTED


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
    may_be_older_by: timedelta | None = None


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
    bound_at: datetime | None = None


@dataclass(frozen=True)
class Holder:
    """The registry's word on a radio at a time: the subject, what cameras he or she carries, whether the gateway's agency is known."""

    subject: Subject
    agency_known: bool = True
    camera_ids: tuple[str, ...] = ()


# Nobody has been able to say who held the radio.
NO_WORD = Holder(Subject(SubjectState.UNPINNED))


@dataclass(frozen=True)
class EarlierOfficer:
    """Whom an earlier epoch was about; seen until a supervisor says that he or she is not involved."""

    officer_id: str
    epoch: int
    superseded: Superseded
    not_involved: Fact | None = None


@dataclass(frozen=True)
class Names:
    """What tells a press from others. `identity` is all that tells it apart; empty: nothing does.

    A cancel finds it by `key`, its counter's or else its request's, or by `request_key`.
    """

    identity: str
    lasts: bool  # a repeat is one however late; else within `KEY_LIFE`
    key: str
    request_key: str


@dataclass(frozen=True)
class Press:
    """One press as the gateway sent it; `ignored` are fields that could not be right."""

    names: Names
    request_id: str
    radio: RadioId
    clocks: Clocks
    status: Status
    gateway: Who
    radio_alias: str = ""
    talkgroup_id: int = 0
    position: Place | None = None
    traceparent: str = ""
    ignored: tuple[str, ...] = ()

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
    position_at: datetime | None = None
    earlier: tuple[EarlierOfficer, ...] = ()
    subject_conflict: bool = False
    unsettled_press_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether it goes on."""
        return self.cleared is None

    def fold(
        self, press: Press, holder: Holder, age_gate: timedelta, cancel: Fact | None = None, outcome: Outcome = Outcome.PENDING
    ) -> "Emergency":
        """Another press of the same radio: counted, refreshes the place, and takes back a cancel of an earlier one.

        `cancel` is one that came before this very press, `outcome` what the present epoch's activations came to. Whoever presses gets
        a camera: see `settle` for when this begins a new epoch.
        """
        self._require_open()
        at = press.clocks.press_time
        newer = at >= self.last_press_at
        fresher = press.position is not None and (self.position is None or at >= (self.position_at or self.last_press_at))
        folded = self._next(
            repeat_count=self.repeat_count + 1,
            last_press_at=max(self.last_press_at, at),
            last_press_key=press.names.key if newer else self.last_press_key,
            position=press.position if fresher else self.position,
            position_at=at if fresher else self.position_at,
            cancel_requested=cancel if newer else self.cancel_requested,
        )
        if press.is_stale(age_gate):
            return folded
        return folded.settle(at, holder, None, age_gate, outcome, press.traceparent)

    def settle(
        self, at: datetime, holder: Holder, bound: Subject | None, age_gate: timedelta, outcome: Outcome, traceparent: str = ""
    ) -> "Emergency":
        """What a press at `at` makes of the epoch, once the registry has said who held the radio then. It begins another one if

        - somebody else holds the radio, and, where an operator bound an officer, took it after that (shown as a conflict);
        - the present one is stale or older than the age gate;
        - the present one has started no camera, and not because nobody could: its cameras refused, were out of reach or silent, or the
          reason why there was none has gone. Never while its outcome is pending, and once in `RETRY_AFTER`.

        A bound officer's cameras are those of now: `bound` is the registry's word on them. Until it has come, and while the registry
        says nothing about the radio, the press is kept as unsettled.
        """
        known, subject = replace(self, unsettled_press_at=None), holder.subject
        retries = self._may_retry(at, outcome, holder, self._names_a_camera(holder))
        if self.subject.state == SubjectState.UNPINNED and not self._is_over(at) and not retries:
            return self._unsettled(at)  # nobody knows whether it is another officer's
        if self.subject.state == SubjectState.BOUND:
            return self._settle_bound(at, holder, bound, age_gate, outcome, traceparent)
        if self._is_over(at) or self._is_anothers(subject) or retries:
            return known._begin(at, subject, age_gate, traceparent, ack_stays=not self._is_over(at))
        return self._unsettled(at) if subject.state == SubjectState.UNPINNED else known

    def _settle_bound(
        self, at: datetime, holder: Holder, bound: Subject | None, age_gate: timedelta, outcome: Outcome, traceparent: str
    ) -> "Emergency":
        known, subject, over = replace(self, unsettled_press_at=None), holder.subject, self._is_over(at)
        bound_at = self.subject.bound_at or self.clocks.press_time
        if subject.state == SubjectState.UNPINNED:
            return self._unsettled(at)
        is_same = subject.officer_id == self.subject.officer_id
        if subject.state == SubjectState.HELD and (is_same or (subject.held_from or at) > bound_at):
            if is_same and not over and not self._may_retry(at, outcome, holder, self._names_a_camera(holder)):
                return known
            begun = known._begin(at, subject, age_gate, traceparent, ack_stays=not over)
            return begun if is_same else replace(begun, subject_conflict=True)
        if not over and not self._may_retry(at, outcome, holder, bound is None or bool(bound.camera_ids)):
            return known
        if bound is None:
            return self._unsettled(at)
        return known._begin(at, replace(bound, bound_at=bound_at), age_gate, traceparent, ack_stays=not over)

    def _unsettled(self, at: datetime) -> "Emergency":
        return replace(self, unsettled_press_at=max(self.unsettled_press_at or at, at))

    def _is_over(self, at: datetime) -> bool:
        return (self.stale_on_arrival and self.epoch == 1) or at >= self.activation_expires_at

    def _is_anothers(self, subject: Subject) -> bool:
        return (
            subject.state == SubjectState.HELD
            and self.subject.state != SubjectState.UNPINNED
            and subject.officer_id != self.subject.officer_id
        )

    def _may_retry(self, at: datetime, outcome: Outcome, holder: Holder, names_a_camera: bool) -> bool:
        if at < self.epoch_started_at + RETRY_AFTER:
            return False
        if outcome == Outcome.NOT_STARTED:
            return holder.subject.state in (SubjectState.HELD, SubjectState.UNPINNED) or self.subject.state == SubjectState.BOUND
        return outcome == Outcome.NO_CAMERA and names_a_camera

    def _names_a_camera(self, holder: Holder) -> bool:
        subject = holder.subject
        return subject.state == SubjectState.HELD and bool(holder.camera_ids) and subject.home_agency_id in ("", self.agency_id)

    def _begin(self, at: datetime, subject: Subject, age_gate: timedelta, traceparent: str, *, ack_stays: bool) -> "Emergency":
        """The next epoch, of a press. The acknowledgement answers presses: another officer's, or one after the age gate, asks anew.

        Whether it is another officer's may not be known yet: `fill` says.
        """
        same = subject.officer_id == self.subject.officer_id or subject.state == SubjectState.UNPINNED
        return replace(
            self._of(subject, Superseded.BY_HOLDER),
            epoch=self.epoch + 1,
            epoch_started_at=at,
            activation_expires_at=at + age_gate,
            stale_on_arrival=False,
            traceparent=traceparent or self.traceparent,
            acknowledged=self.acknowledged if same and ack_stays else None,
        )

    def _of(self, subject: Subject, superseded: Superseded) -> "Emergency":
        """Another subject; the officer whom it was about stays visible as an earlier one."""
        was = self.subject.officer_id
        earlier = tuple(each for each in self.earlier if each.officer_id not in (subject.officer_id, was))
        if was and was != subject.officer_id:
            earlier = (*earlier, EarlierOfficer(was, self.epoch, superseded))
        return replace(self, subject=subject, earlier=earlier[-EARLIER_AT_MOST:])

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

    def is_settled(self, outcome: Outcome) -> bool:
        """Whether it is known whose camera this is about: changing that is more than naming somebody. `outcome` is of the present epoch."""
        subject = self.subject
        if subject.state not in (SubjectState.HELD, SubjectState.BOUND) or subject.home_agency_id not in ("", self.agency_id):
            return False
        return outcome != Outcome.NO_CAMERA or (self.stale_on_arrival and self.epoch == 1)

    def bind(
        self, subject: Subject, at: datetime, age_gate: timedelta, expected_version: int = 0, *,
        outcome: Outcome = Outcome.PENDING, may_change: bool = True, note: str = "",
    ) -> "Emergency":  # fmt: skip
        """A person names the officer: a new epoch, with the officer's cameras in the event itself.

        What is unsettled anybody may settle who may bind; another officer for a settled subject takes `may_change`, and a note.
        """
        self._require_open()
        self._require_version(expected_version)
        if subject.officer_id != self.subject.officer_id and self.is_settled(outcome):
            if not may_change:
                text = f"the emergency is {self.subject.officer_id}'s: a supervisor changes that, with a note"
                raise WrongState(Reason.ERROR_REASON_SUBJECT_SETTLED, text)
            if not note.strip():
                text = f"note: say why the emergency is not {self.subject.officer_id}'s"
                raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, text, violations={"note": "needed to change a settled subject"})
        bound = replace(subject, bound_at=at)
        return replace(
            self._next(epoch=self.epoch + 1, epoch_started_at=at, activation_expires_at=at + age_gate)._of(bound, Superseded.BY_OPERATOR),
            subject_conflict=False,
            unsettled_press_at=None,
        )

    def mark_not_involved(self, officer_id: str, fact: Fact, expected_version: int = 0) -> "Emergency":
        """An earlier officer needs no help: nobody watches because of this emergency any more. A repeat changes nothing."""
        self._require_open()
        self._require_version(expected_version)
        if officer_id == self.subject.officer_id:
            raise WrongState(Reason.ERROR_REASON_SUBJECT_SETTLED, "the emergency is about this officer: bind the right one first")
        found = next((each for each in self.earlier if each.officer_id == officer_id), None)
        if found is None:
            raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "the emergency was never about such an officer")
        if found.not_involved:
            return self
        earlier = tuple(replace(each, not_involved=fact) if each is found else each for each in self.earlier)
        return self._next(earlier=earlier, subject_conflict=self.subject_conflict and any(not each.not_involved for each in earlier))

    def fill(self, subject: Subject, at: datetime) -> "Emergency":
        """The registry's late answer on who held the radio at the press; a bind in between stands."""
        if not self.is_open or self.subject.state != SubjectState.UNPINNED:
            return self
        before = next((each.officer_id for each in reversed(self.earlier) if each.epoch == self.epoch - 1), subject.officer_id)
        filled = self._next(acknowledged=self.acknowledged if subject.officer_id == before else None)
        return filled._of(replace(subject, filled_at=at), Superseded.BY_HOLDER)

    def recall(self, officers: Sequence[str]) -> "Emergency":
        """Before the registry had a word, the present epoch has started cameras of `officers`: earlier ones, once it is another's."""
        if self.subject.state != SubjectState.UNPINNED:
            return self
        new = [officer for officer in officers if all(officer != each.officer_id for each in self.earlier)]
        recalled = (*self.earlier, *(EarlierOfficer(officer, self.epoch, Superseded.BY_HOLDER) for officer in new))
        return replace(self, earlier=recalled[-EARLIER_AT_MOST:]) if new else self

    def settle_late(self, holder: Holder, bound: Subject | None, age_gate: timedelta, outcome: Outcome) -> "Emergency":
        """The registry's late answer on who held the radio at the press that is unsettled."""
        if not self.is_open or self.unsettled_press_at is None or self.subject.state == SubjectState.UNPINNED:
            return self
        settled = self.settle(self.unsettled_press_at, holder, bound, age_gate, outcome)
        return self if settled == self else replace(settled, version=self.version + 1)

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
    waited: timedelta | None = None,
    unreadable: bool = False,
) -> Clocks:
    """Time of a press out of three clocks, and of how long the gateway says it lay there, by a clock that nobody sets (`waited`).

    Without that word only the difference of the gateway's two times counts, never its clock; and it never makes a press too old to
    start a camera: a clock that was set in between says so, too. No alarm is refused for its clocks: what cannot be right is marked,
    and counts as pressed now. None, and `unreadable`, stand for a time that is no time at all.
    """
    received, sent = received_at or now, sent_at or now
    lay, skew = sent - received, sent - now
    suspect = unreadable or received_at is None or sent_at is None or abs(skew) > CLOCK_TOLERANCE
    older: timedelta | None = None
    if waited is not None:
        lay = min(waited, WAITED_AT_MOST)
    elif received_at is None or sent_at is None or lay < timedelta(0):
        lay, suspect = timedelta(0), True
    elif lay >= age_gate:
        lay, suspect, older = timedelta(0), True, lay if lay <= PLAUSIBLE else None
    press_time = now - lay
    if source is not None:
        ahead, behind = source - press_time, press_time - source
        suspect = suspect or ahead > CLOCK_TOLERANCE or behind > max(age_gate, CLOCK_TOLERANCE)
    return Clocks(received, sent, now, press_time, skew, suspect, source, older)


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
        last_press_key=press.names.key,
        gateway_id=press.gateway.id,
        cancel_requested=cancel,
        related_to=previous.emergency_id if previous and related else "",
        radio_alias=press.radio_alias,
        talkgroup_id=press.talkgroup_id,
        position=press.position,
        traceparent=press.traceparent,
        position_at=clocks.press_time if press.position else None,
    )


def press_names(
    agency_id: str, radio: RadioId, request_id: str, counter: tuple[int, int] | None = None, received_at: datetime | None = None
) -> Names:
    """What tells a press apart: its request, and its counter with its boot epoch, else the gateway's time of it. Any difference is another.

    Zeros in a counter, and a time of zero, are none: some gateways always send one. Only a request_id lasts: counters and clocks begin
    again with a gateway's battery. The agency is part of all, so that no agency can touch another's presses.
    """
    scope = f"{agency_id}/{radio}"
    request = f"r{request_id.lower()}" if request_id else ""
    count = f"c{counter[1]}.{counter[0]}" if counter and 0 not in counter else ""
    instant = f"t{received_at.timestamp():.6f}" if received_at and received_at.timestamp() > 0 else ""
    what = [part for part in (request, count or instant) if part]
    request_key = f"{scope}/{request}" if request else ""
    key = f"{scope}/{count}" if count else request_key
    return Names(f"{scope}/{'/'.join(what)}" if what else "", bool(request and (count or instant)), key, request_key)
