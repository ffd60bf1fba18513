"""The start of one camera for one (emergency, epoch), and its rules; no I/O.

REQUESTED ──▶ RECORDING | ALREADY_RECORDING | REFUSED      the camera's word, final
    ├───────▶ UNREACHABLE | TIMED_OUT ──▶ the camera's word, or withdrawn: provisional until then
    └───────▶ WITHDRAWN                    cleared first; the camera's word still replaces it
NO_CAMERA                                  the decision named none, final
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from chassis.names import KeptEnum

# A lane answers within milliseconds; what is older is decided here.
RECONCILE_AFTER = timedelta(milliseconds=700)
UNREACHABLE_AFTER = timedelta(seconds=2)
TIMED_OUT_AFTER = timedelta(seconds=5)
# Seconds between positions asked of a camera.
POSITION_IN_EMERGENCY, POSITION_IDLE = timedelta(seconds=5), timedelta(minutes=15)


class State(KeptEnum):
    """Where the start of one camera stands."""

    REQUESTED = "REQUESTED"
    RECORDING = "RECORDING"
    ALREADY_RECORDING = "ALREADY_RECORDING"
    REFUSED = "REFUSED"
    UNREACHABLE = "UNREACHABLE"
    TIMED_OUT = "TIMED_OUT"
    WITHDRAWN = "WITHDRAWN"
    NO_CAMERA = "NO_CAMERA"


FINAL = frozenset({State.RECORDING, State.ALREADY_RECORDING, State.REFUSED, State.NO_CAMERA})


@dataclass(frozen=True)
class KnownEmergency:
    """What `streams` must know of an emergency to order a camera for it."""

    emergency_id: str
    version: int
    epoch: int
    agency_id: str
    is_open: bool
    exercise: bool
    officer_id: str | None = None  # whose emergency it is; empty: nobody's; None: not settled yet
    involved: tuple[str, ...] = ()  # earlier officers of it whom nobody has marked as not involved: their orders and pictures stay

    def stands(self, activation: "Activation") -> bool:
        """Whether a start that no camera has answered is still wanted."""
        return self.is_open and (activation.epoch >= self.epoch or activation.officer_id in self.involved)


@dataclass(frozen=True)
class OpenEmergency:
    """An open emergency in short, as its owner tells it; `epoch_age` is the time since its epoch's start."""

    emergency_id: str
    version: int
    epoch: int
    epoch_age: timedelta


@dataclass(frozen=True)
class Gap:
    """Where `streams` lags behind the owner of an emergency."""

    emergency_id: str
    epoch: int
    behind: bool  # an older version, or none, is known here
    undecided: bool  # its epoch has no decision


@dataclass(frozen=True)
class Decision:
    """A decision, as far as it is acted on; `content` is its exact bytes, `answer` what in them is acted on."""

    emergency_id: str
    epoch: int
    agency_id: str
    officer_id: str
    camera_ids: tuple[str, ...]
    no_camera_reason: str
    expires_at: datetime
    decided_by: str
    content: bytes
    answer: bytes
    traceparent: str = ""


@dataclass(frozen=True)
class Activation:
    """The start of one camera for one (emergency, epoch); every change raises the version."""

    emergency_id: str
    epoch: int
    camera_id: str
    version: int
    agency_id: str
    officer_id: str
    state: State
    requested_at: datetime
    expires_at: datetime
    refusal_reason: str = ""
    no_camera_reason: str = ""
    ordered_at: datetime | None = None
    answered_at: datetime | None = None
    device_time: datetime | None = None
    traceparent: str = ""

    def answered(self, state: State, refusal_reason: str, device_time: datetime | None, now: datetime) -> "Activation":
        """The camera says what it did; the first word is final, a repeat changes nothing."""
        if self.state in FINAL:
            return self
        return self._next(state=state, refusal_reason=refusal_reason, device_time=device_time, answered_at=now)

    def withdrawn(self) -> "Activation":
        """The emergency was cleared, or bound to somebody else, before the camera answered."""
        if self.state in FINAL or self.state == State.WITHDRAWN:
            return self
        return self._next(state=State.WITHDRAWN)

    def overdue(self, *, linked: bool, now: datetime) -> "Activation":
        """No word in time: unreachable without a link, timed out with one. Never silence."""
        if self.state != State.REQUESTED:
            return self
        if self.ordered_at is None and not linked:
            return self._next(state=State.UNREACHABLE) if now - self.requested_at >= UNREACHABLE_AFTER else self
        return self._next(state=State.TIMED_OUT) if now - (self.ordered_at or self.requested_at) >= TIMED_OUT_AFTER else self

    def _next(self, **changes: object) -> "Activation":
        return replace(self, version=self.version + 1, **changes)  # type: ignore[arg-type]


def activations(
    decision: Decision, *, emergency_is_open: bool, now: datetime, traceparent: str, expires_at: datetime | None = None
) -> list[Activation]:
    """One activation a camera; one without a camera that carries the reason when there is none.

    `expires_at` is by the clock of `now`; the decision's own if there is only one clock.
    """
    state = State.NO_CAMERA if not decision.camera_ids else State.REQUESTED if emergency_is_open else State.WITHDRAWN
    return [
        Activation(
            decision.emergency_id, decision.epoch, camera_id, 1, decision.agency_id, decision.officer_id, state, now,
            expires_at or decision.expires_at, no_camera_reason=decision.no_camera_reason, traceparent=traceparent,
        )
        for camera_id in decision.camera_ids or ("",)
    ]  # fmt: skip


def is_early(decision: Decision, known: KnownEmergency | None) -> bool:
    """Whether a decision has come before what it decides: it waits for that."""
    return known is None or known.epoch < decision.epoch


def refusal_of_decision(decision: Decision, known: KnownEmergency | None) -> str:
    """Why a decision is recorded and never executed; empty if it may be."""
    if known is None:
        return "the emergency service does not know the emergency"
    if decision.epoch != known.epoch:
        return f"epoch {decision.epoch} is not the emergency's epoch {known.epoch}"
    if decision.agency_id != known.agency_id:
        return "the agency is not the emergency's"
    if decision.camera_ids and known.officer_id not in (None, decision.officer_id):
        return "the officer is not the emergency's"
    return ""


@dataclass(frozen=True)
class Order:
    """One reason for a camera to record."""

    emergency_id: str
    epoch: int
    time_left: timedelta
    traceparent: str
    exercise: bool


@dataclass(frozen=True)
class Publish:
    """A session that a camera shall stream, and where to."""

    session_id: str
    url: str
    token: str
    traceparent: str


@dataclass(frozen=True)
class Orders:
    """All that a camera shall do, whether somebody watches, and whether an emergency of its wearer is open."""

    version: int
    record_for: tuple[Order, ...]
    publish: tuple[Publish, ...] = ()
    watched: bool = False
    in_emergency: bool = False

    @property
    def position_interval(self) -> timedelta:
        """Positions come faster during an emergency."""
        return POSITION_IN_EMERGENCY if self.in_emergency else POSITION_IDLE


@dataclass(frozen=True)
class Report:
    """A camera's report; `content` is kept as it came, without the list of handled orders, and without what could not be right.

    The latter is in `faults`: values by their fields, as text.
    """

    boot_id: int
    sequence: int
    content: bytes
    audio_muted: bool
    handled: tuple["Handled", ...]
    faults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Handled:
    """What the camera did about one (emergency, epoch)."""

    emergency_id: str
    epoch: int
    state: State
    refusal_reason: str
    device_time: datetime | None


@dataclass(frozen=True)
class CameraView:
    """A camera as shown to people."""

    camera_id: str
    agency_id: str
    linked: bool
    linked_at: datetime | None
    reported_at: datetime | None
    report: bytes | None
    faults: tuple["CameraFault", ...] = ()


@dataclass(frozen=True)
class CameraFault:
    """A value of a camera's reports that could not be right."""

    field: str
    value: str
    first_at: datetime
