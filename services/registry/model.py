"""Who holds what, when; no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from chassis.errors import AlreadyExists, InvalidRequest
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

# A duty record goes back this far, longer than any age gate, and a shift may be planned or corrected within a month.
LOOK_BACK = timedelta(minutes=30)
# A covert shift, and what its officer did since, is told of for longer: an emergency may outlast it, and who learns of both anew still has
# to hide the officer.
HIDDEN_LOOK_BACK = timedelta(hours=24)
PLANNING = timedelta(days=30)


@dataclass(frozen=True)
class Agency:
    """A police agency or partner."""

    agency_id: str
    display_name: str


@dataclass(frozen=True)
class Officer:
    """A person with a shift."""

    officer_id: str
    agency_id: str
    display_name: str


@dataclass(frozen=True, order=True)
class RadioId:
    """What a radio sends: unique only as a whole."""

    wacn: int
    system_id: int
    unit_id: int

    def __str__(self) -> str:
        return f"{self.wacn:05x}-{self.system_id:03x}-{self.unit_id:06x}"


@dataclass(frozen=True)
class Radio:
    """A subscriber radio."""

    identity: RadioId
    agency_id: str
    alias: str


@dataclass(frozen=True)
class Camera:
    """A body-worn camera."""

    camera_id: str
    agency_id: str
    model: str


@dataclass(frozen=True)
class Vehicle:
    """A police vehicle; the officers on duty of its unit are its crew."""

    vehicle_id: str
    agency_id: str
    display_name: str
    unit_id: str


@dataclass(frozen=True)
class FixedCamera:
    """A camera that hangs somewhere; degrees on the WGS 84 ellipsoid."""

    camera_id: str
    agency_id: str
    display_name: str
    latitude: float
    longitude: float


@dataclass(frozen=True)
class RosterEntry:
    """An officer with what belongs to him or her."""

    officer: Officer | None
    radio: Radio | None
    cameras: tuple[Camera, ...]

    def things(self) -> list[Officer | Radio | Camera]:
        """What is in it."""
        return [thing for thing in (self.officer, self.radio, *self.cameras) if thing]

    def agencies(self) -> set[str]:
        """Whose things these are; more than one is a mistake."""
        return {thing.agency_id for thing in self.things()}


@dataclass(frozen=True)
class Change:
    """What an entry of a roster adds, or changes: a name, an alias or a model. `before` None: it is new."""

    what: str
    before: str | None
    after: str


def change(wanted: Officer | Radio | Camera, kept: Officer | Radio | Camera | None) -> Change | None:
    """What makes of what is kept what is wanted; None if nothing has to. AlreadyExists if it is another agency's."""
    what = name_of(wanted)
    if kept is not None and kept.agency_id != wanted.agency_id:
        raise AlreadyExists(Reason.ERROR_REASON_ALREADY_EXISTS, f"{what} is another agency's")
    before, after = (None if thing is None else _label(thing) for thing in (kept, wanted))
    return None if before == after else Change(what, before, after or "")


def name_of(thing: Officer | Radio | Camera) -> str:
    """A thing's name, like `officers/o1`."""
    if isinstance(thing, Officer):
        return f"officers/{thing.officer_id}"
    return f"radios/{thing.identity}" if isinstance(thing, Radio) else f"cameras/{thing.camera_id}"


def _label(thing: Officer | Radio | Camera) -> str:
    if isinstance(thing, Officer):
        return thing.display_name
    return thing.alias if isinstance(thing, Radio) else thing.model


@dataclass(frozen=True)
class Span:
    """A half-open interval [start, end); `end` None while open."""

    start: datetime
    end: datetime | None

    def holds(self, at: datetime) -> bool:
        """Whether the instant lies in the span: its start does, its end does not."""
        return self.start <= at and (self.end is None or at < self.end)


@dataclass(frozen=True)
class Hold:
    """Somebody or something (`item`) is with an officer for a span; of a radio also who alone may see the officer then."""

    item: str
    officer_id: str
    span: Span
    visible_to: str = ""


@dataclass(frozen=True)
class Conflict:
    """A device, or the officer's place in a unit, that somebody has during part of a shift. `name` is as on the device's display."""

    kind: str
    name: str
    holder: str
    span: Span


@dataclass(frozen=True)
class DutyInterval:
    """A span with one holder of the radio and one set of cameras; `held_since` is the start of the whole hold that it is a part of."""

    span: Span
    officer_id: str
    unit_id: str
    camera_ids: tuple[str, ...]
    visible_to: str = ""
    held_since: datetime | None = None


@dataclass(frozen=True)
class Duty:
    """Who holds one radio when, with what."""

    radio: RadioId
    agency_id: str
    version: int
    intervals: tuple[DutyInterval, ...]

    def at(self, instant: datetime) -> DutyInterval | None:
        """The interval that holds the instant."""
        return next((interval for interval in self.intervals if interval.span.holds(instant)), None)


@dataclass(frozen=True)
class OnDuty:
    """An officer with what he or she holds at one instant."""

    officer: Officer
    radios: tuple[RadioId, ...]
    camera_ids: tuple[str, ...]
    unit_id: str


def intervals(radio: Sequence[Hold], cameras: Sequence[Hold], units: Sequence[Hold]) -> tuple[DutyInterval, ...]:
    """Cut each hold of the radio wherever the holder's cameras or unit change. Cameras keep their order."""
    found: list[DutyInterval] = []
    for hold in sorted(radio, key=lambda h: h.span.start):
        with_holder = [h for h in (*cameras, *units) if h.officer_id == hold.officer_id]
        edges = {edge for h in with_holder for edge in (h.span.start, h.span.end) if edge and hold.span.holds(edge)}
        starts = sorted({hold.span.start, *edges})
        for start, end in zip(starts, [*starts[1:], hold.span.end], strict=True):
            carried = tuple(h.item for h in cameras if h.officer_id == hold.officer_id and h.span.holds(start))
            unit = next((h.item for h in units if h.officer_id == hold.officer_id and h.span.holds(start)), "")
            found.append(DutyInterval(Span(start, end), hold.officer_id, unit, carried, hold.visible_to, hold.span.start))
    return tuple(found)


def shift(start: datetime | None, end: datetime | None, now: datetime) -> Span:
    """The span of a check-out; InvalidRequest if it is empty or not within the planning time."""
    span = Span(start or now, end)
    violations = {}
    if abs(span.start - now) > PLANNING:
        violations["from"] = f"more than {PLANNING.days} days away"
    if span.end and span.end <= span.start:
        violations["to"] = "not later than from"
    if violations:
        raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, "the shift's times are not usable", violations=violations)
    return span
