"""What a fix may be, whose it is, and how it is kept; no I/O."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple, cast

import h3.api.basic_int as h3
from chassis.clock import seconds_of, set_seconds
from chassis.recent import Recent
from sightline.location.v1 import position_pb2
from sightline.location.v1.position_pb2 import Refusal, Source, UnitKind

# Names of the schema's values: looking them up is slow where fixes are many.
RADIO, CAMERA, VEHICLE = Source.SOURCE_RADIO, Source.SOURCE_CAMERA, Source.SOURCE_VEHICLE
OFFICERS, VEHICLES, RADIOS = UnitKind.UNIT_KIND_OFFICER, UnitKind.UNIT_KIND_VEHICLE, UnitKind.UNIT_KIND_RADIO
FIXED_CAMERAS = UnitKind.UNIT_KIND_FIXED_CAMERA
GOOD = Refusal.REFUSAL_UNSPECIFIED
# A receiver's clock may be ahead by so much, seconds.
AHEAD_S = 2.0
_FASTEST_MPS, _COARSEST_M = 350.0, 100_000.0
_CLOSED_AT_MOST = 100_000
# At this resolution of H3 a place is as precise as its fix.
FINEST = 15

Name = tuple[str, int, str]  # of a unit: agency, kind, id


class Fix(NamedTuple):
    """One place at one time: degrees on the WGS 84 ellipsoid, metres, metres a second, degrees from true north, seconds since 1970."""

    latitude: float
    longitude: float
    accuracy_m: float | None
    speed_mps: float | None
    course_deg: float | None
    fixed_at: float


def flaw(fix: Fix) -> Refusal.ValueType:
    """What is wrong with a fix as such; REFUSAL_UNSPECIFIED if nothing is. NaN fails every comparison."""
    accuracy, speed, course = fix.accuracy_m or 0.0, fix.speed_mps or 0.0, fix.course_deg or 0.0
    if not (-90 <= fix.latitude <= 90 and -180 <= fix.longitude <= 180):
        return Refusal.REFUSAL_BAD_COORDINATES
    if fix.latitude == 0 and fix.longitude == 0:
        return Refusal.REFUSAL_NO_FIX
    if not (0 <= accuracy <= _COARSEST_M and 0 <= speed <= _FASTEST_MPS and 0 <= course <= 360):
        return Refusal.REFUSAL_BAD_COORDINATES
    return GOOD


def usable(fix: Fix) -> tuple[Fix, tuple[str, ...]]:
    """A fix without the values that cannot be right, and their names: many receivers say -1 for "not known". The place stays."""
    wrong = tuple(
        name
        for name, value, most in (
            ("accuracy_m", fix.accuracy_m, _COARSEST_M), ("speed_mps", fix.speed_mps, _FASTEST_MPS), ("course_deg", fix.course_deg, 360.0),
        )
        if value is not None and not 0 <= value <= most
    )  # fmt: skip
    return (fix._replace(**cast(Any, dict.fromkeys(wrong))), wrong) if wrong else (fix, ())


def from_fix(message: position_pb2.Fix) -> Fix:
    """A fix's model form."""
    return Fix(
        message.latitude,
        message.longitude,
        message.accuracy_m if message.HasField("accuracy_m") else None,
        message.speed_mps if message.HasField("speed_mps") else None,
        message.course_deg if message.HasField("course_deg") else None,
        seconds_of(message.fixed_at),
    )


def set_fix(message: position_pb2.Fix, fix: Fix) -> None:
    """Write a fix's wire form; without a time if it has none."""
    message.latitude, message.longitude = fix.latitude, fix.longitude
    if fix.accuracy_m is not None:
        message.accuracy_m = fix.accuracy_m
    if fix.speed_mps is not None:
        message.speed_mps = fix.speed_mps
    if fix.course_deg is not None:
        message.course_deg = fix.course_deg
    if fix.fixed_at:
        set_seconds(message.fixed_at, fix.fixed_at)


def coarsened(fix: Fix, resolution: int) -> Fix:
    """The middle of the fix's H3 cell, with the cell's radius as accuracy; nothing of how it moves."""
    if resolution >= FINEST:
        return fix
    latitude, longitude = h3.cell_to_latlng(h3.latlng_to_cell(fix.latitude, fix.longitude, resolution))
    return Fix(latitude, longitude, _RADII_M[resolution], None, None, fix.fixed_at)


# A hexagon's corners lie as far from its middle as its edges are long.
_RADII_M = [h3.average_hexagon_edge_length(resolution, unit="m") for resolution in range(16)]


# --- who has what ------------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A half-open span, in seconds since 1970, with one holder of a radio; `end` is infinite while it is open."""

    start: float
    end: float
    officer_id: str
    unit_id: str
    camera_ids: tuple[str, ...]
    visible_to: str


class Holder(NamedTuple):
    """Who had a device at one time, and the emergency that is open for them."""

    officer_ids: tuple[str, ...]
    unit_id: str
    visible_to: str
    emergency_id: str


def hidden_together(groups: Iterable[str]) -> str:
    """Who alone may see people that ride together: whoever rides with somebody who must not be seen is not seen either.

    With several groups it is none of them: the result is the name of no group.
    """
    return "+".join(sorted(set(filter(None, groups))))


def together(shifts: Sequence[Interval]) -> Interval | None:
    """What an officer has of all radios that he or she holds at a time, in order of their starts; as hidden as any of them."""
    if len(shifts) < 2:
        return shifts[0] if shifts else None
    cameras = tuple(dict.fromkeys(camera_id for each in reversed(shifts) for camera_id in each.camera_ids))
    return shifts[-1]._replace(camera_ids=cameras, visible_to=hidden_together(each.visible_to for each in shifts))


@dataclass(slots=True)
class _Radio:
    agency_id: str
    version: int
    intervals: tuple[Interval, ...]


@dataclass(frozen=True, slots=True)
class Vehicle:
    """A vehicle as the registry tells of it."""

    agency_id: str
    vehicle_id: str
    version: int
    unit_id: str


@dataclass(frozen=True, slots=True)
class KnownEmergency:
    """What an emergency means for positions. `since` is its press time; `officer_id` empty if it is not known whose it is."""

    emergency_id: str
    version: int
    agency_id: str
    radio: str
    officer_id: str
    is_open: bool
    since: float

    def is_of(self, officer_id: str, at: float) -> bool:
        """Whether it is, at a time, the emergency of an officer who is its subject or holds its radio. Clocks differ a little."""
        return self.since <= at + AHEAD_S and self.officer_id in ("", officer_id)


class Directory:
    """Who has which device, and for whom an emergency is open, as topics tell; the past only as long as a late fix may need it."""

    def __init__(self, late_s: float) -> None:
        """`late_s`: a fix may be so old when it comes."""
        self._late_s = late_s
        self._radios: dict[str, _Radio] = {}
        self._radios_of_camera: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._radios_of_unit: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._radios_of_officer: defaultdict[str, set[str]] = defaultdict(set)
        self._vehicles: dict[tuple[str, str], Vehicle] = {}
        self._vehicles_of_unit: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._open: dict[str, KnownEmergency] = {}
        self._open_of_radio: defaultdict[str, set[str]] = defaultdict(set)
        self._open_of_officer: defaultdict[str, set[str]] = defaultdict(set)
        self._closed: Recent[str, int] = Recent(_CLOSED_AT_MOST)

    # --- what it is told: each returns the names of units for which something may be different now -------------------

    def learn_duty(self, radio: str, agency_id: str, version: int, intervals: Sequence[Interval], told_at: float) -> set[Name]:
        """A radio's duty record; an older one than is known changes nothing."""
        known = self._radios.get(radio)
        if known is not None and version < known.version:
            return set()
        before = known.intervals if known else ()
        # A record leaves out what has long ended; a late fix may still be of then, and an emergency outlast it.
        oldest = told_at - self._late_s
        kept = [
            each
            for each in before
            if each.end <= told_at
            and (each.end > oldest or each.officer_id in self._open_of_officer)
            and all(each.end <= other.start or other.end <= each.start for other in intervals)
        ]
        now = tuple(sorted((*kept, *intervals)))
        if known is not None and now == before:
            known.version = version
            return set()
        touched = self._near(agency_id, before) | {(agency_id, RADIOS, radio)}
        for each in before:
            self._index(radio, agency_id, each, forget=True)
        for each in now:
            self._index(radio, agency_id, each)
        self._radios[radio] = _Radio(agency_id, version, now)
        return touched | self._near(agency_id, now)

    def _index(self, radio: str, agency_id: str, each: Interval, *, forget: bool = False) -> None:
        sets = [self._radios_of_officer[each.officer_id], *(self._radios_of_camera[agency_id, name] for name in each.camera_ids)]
        if each.unit_id:
            sets.append(self._radios_of_unit[agency_id, each.unit_id])
        for radios in sets:
            radios.discard(radio) if forget else radios.add(radio)

    def learn_vehicle(self, vehicle: Vehicle) -> set[Name]:
        """A vehicle's record; one that is not newer changes nothing."""
        key = (vehicle.agency_id, vehicle.vehicle_id)
        known = self._vehicles.get(key)
        if known is not None and vehicle.version <= known.version:
            return set()
        touched: set[Name] = {(vehicle.agency_id, VEHICLES, vehicle.vehicle_id)}
        if known is not None:
            touched |= self._crew(known.agency_id, known.unit_id)
            self._vehicles_of_unit[known.agency_id, known.unit_id].discard(vehicle.vehicle_id)
        self._vehicles[key] = vehicle
        if vehicle.unit_id:
            self._vehicles_of_unit[vehicle.agency_id, vehicle.unit_id].add(vehicle.vehicle_id)
        return touched | self._crew(vehicle.agency_id, vehicle.unit_id)

    def learn_emergency(self, known: KnownEmergency) -> set[Name]:
        """An emergency's state; an older one than is known changes nothing."""
        key = known.emergency_id
        before = self._open.get(key)
        if known.version <= max(before.version if before else 0, self._closed.get(key) or 0):
            return set()
        touched = self._about(known)
        if before is not None:
            touched |= self._about(before)
            del self._open[key]
            _discard(self._open_of_radio, before.radio, key)
            _discard(self._open_of_officer, before.officer_id, key)
        if known.is_open:
            self._open[key] = known
            self._open_of_radio[known.radio].add(key)
            if known.officer_id:
                self._open_of_officer[known.officer_id].add(key)
        else:
            self._closed.put(key, known.version)
        return touched

    def _about(self, emergency: KnownEmergency) -> set[Name]:
        """Its radio, its officer, whoever has held the radio since, and those with whom they ride."""
        radio = self._radios.get(emergency.radio)
        agency_id = radio.agency_id if radio else emergency.agency_id
        shifts = [each for each in self._intervals(emergency.radio) if each.end > emergency.since]
        if emergency.officer_id:
            shifts += self._shifts(emergency.officer_id)
        touched = self._near(agency_id, shifts) | {(agency_id, RADIOS, emergency.radio)}
        return touched | ({(agency_id, OFFICERS, emergency.officer_id)} if emergency.officer_id else set())

    def _near(self, agency_id: str, shifts: Iterable[Interval]) -> set[Name]:
        """The officers of shifts, and whoever and whatever is of the same units, also by these officers' other radios."""
        touched: set[Name] = {(agency_id, OFFICERS, each.officer_id) for each in shifts}
        for unit_id in {other.unit_id for each in shifts for other in (each, *self._shifts(each.officer_id))}:
            touched |= self._crew(agency_id, unit_id)
            touched |= {(agency_id, VEHICLES, name) for name in self._vehicles_of_unit.get((agency_id, unit_id), ())}
        return touched

    def _crew(self, agency_id: str, unit_id: str) -> set[Name]:
        radios = self._radios_of_unit.get((agency_id, unit_id), ())
        shifts = (each for radio in radios for each in self._intervals(radio))
        return {(agency_id, OFFICERS, each.officer_id) for each in shifts if each.unit_id == unit_id}

    # --- what it is asked --------------------------------------------------------------------------------------------

    def settle(self, source: Source.ValueType, agency_id: str, device_id: str, at: float) -> Holder | Refusal.ValueType:
        """Who had a device of an agency at a time, or why a fix of then is not taken."""
        if source == RADIO:
            return self._settle_radio(agency_id, device_id, at)
        if source == CAMERA:
            radios = self._radios_of_camera.get((agency_id, device_id))
            found = [each for each in self._held(radios or (), at) if device_id in each.camera_ids]
        else:
            vehicle = self._vehicles.get((agency_id, device_id))
            radios = self._radios_of_unit.get((agency_id, vehicle.unit_id), set()) if vehicle else None
            found = [each for each in self._held(radios or (), at) if vehicle and each.unit_id == vehicle.unit_id]
        if found:
            return self._holder(sorted(found), at)
        return Refusal.REFUSAL_UNKNOWN_DEVICE if radios is None else Refusal.REFUSAL_OFF_DUTY

    def _held(self, radios: Iterable[str], at: float) -> Iterator[Interval]:
        return (each for radio in radios for each in self._intervals(radio) if each.start <= at < each.end)

    def _settle_radio(self, agency_id: str, radio: str, at: float) -> Holder | Refusal.ValueType:
        known = self._radios.get(radio)
        if known is not None and known.agency_id != agency_id:
            return Refusal.REFUSAL_NOT_YOURS
        for each in known.intervals if known else ():
            if each.start <= at < each.end:
                return self._holder((each,), at)
        # Nobody holds it, and it calls for help: from the press on it is shown where it is.
        for emergency_id in sorted(self._open_of_radio.get(radio, ())):
            emergency = self._open[emergency_id]
            if emergency.since <= at and (known is not None or emergency.agency_id == agency_id):
                officer_id = emergency.officer_id
                return Holder((officer_id,) if officer_id else (), "", self.audience_of_emergency(emergency, officer_id, at), emergency_id)
        return Refusal.REFUSAL_OFF_DUTY if known else Refusal.REFUSAL_UNKNOWN_DEVICE

    def _holder(self, found: Sequence[Interval], at: float) -> Holder:
        if len(found) == 1:  # nearly always, twice for each position: it takes half the time of what follows
            each = found[0]
            return Holder(
                (each.officer_id,), each.unit_id, self.audience(each.officer_id, at), self.emergency_of_officer(each.officer_id, at)
            )
        officers = tuple(dict.fromkeys(each.officer_id for each in found))
        visible_to = hidden_together(self.audience(officer_id, at) for officer_id in officers)
        emergency = min(filter(None, (self.emergency_of_officer(officer_id, at) for officer_id in officers)), default="")
        return Holder(officers, found[-1].unit_id, visible_to, emergency)

    def _intervals(self, radio: str) -> tuple[Interval, ...]:
        known = self._radios.get(radio)
        return known.intervals if known else ()

    def _shifts(self, officer_id: str) -> list[Interval]:
        """All that is known of an officer, in order of their starts."""
        radios = self._radios_of_officer.get(officer_id, ())
        found = [each for radio in radios for each in self._intervals(radio) if each.officer_id == officer_id]
        return sorted(found) if len(found) > 1 else found

    def shift(self, officer_id: str, at: float) -> Interval | None:
        """What an officer has at a time; None off duty."""
        return together([each for each in self._shifts(officer_id) if each.start <= at < each.end])

    def audience(self, officer_id: str, at: float) -> str:
        """Who alone may see an officer at a time; soon after a shift, and in an emergency since then, it is as in the shift."""
        shifts = self._shifts(officer_id)
        now = [each for each in shifts if each.start <= at < each.end]
        if len(now) == 1:
            return now[0].visible_to
        if not now and shifts:
            last = max((each for each in shifts if each.end <= at), key=lambda each: each.end, default=None)
            emergencies = (self._open[key].since for key in self._open_of_officer.get(officer_id, ()))
            if last and min((at, *emergencies)) < last.end + self._late_s:
                now = [each for each in shifts if each.start < last.end <= each.end]
        return hidden_together(each.visible_to for each in now)

    def audience_of_emergency(self, emergency: KnownEmergency, officer_id: str, at: float) -> str:
        """Who alone may see an emergency's radio at a time when nobody is on duty with it: as in the last shift with it since the press."""
        audience = self.audience(officer_id, at)
        last = max((each for each in self._intervals(emergency.radio) if emergency.since - AHEAD_S < each.end <= at), default=None)
        return audience if last is None or last.officer_id == officer_id else hidden_together((audience, last.visible_to))

    def emergency_of_officer(self, officer_id: str, at: float) -> str:
        """An open emergency of an officer, or of a radio that he or she holds; empty if there is none."""
        if not self._open:
            return ""
        found = set(self._open_of_officer.get(officer_id, ()))
        for radio in self._radios_of_officer.get(officer_id, ()):
            of_radio = self._open_of_radio.get(radio)
            if of_radio and any(each.officer_id == officer_id and each.start <= at < each.end for each in self._intervals(radio)):
                found |= of_radio
        return min((key for key in found if self._open[key].is_of(officer_id, at)), default="")

    def emergency_of_radio(self, radio: str) -> KnownEmergency | None:
        """An open emergency of a radio."""
        found = self._open_of_radio.get(radio)
        return self._open[min(found)] if found else None

    def wearers(self, agency_id: str, camera_id: str) -> set[str]:
        """Officers who have, or have had, a camera."""
        radios = self._radios_of_camera.get((agency_id, camera_id), ())
        return {each.officer_id for radio in radios for each in self._intervals(radio) if camera_id in each.camera_ids}


def _discard(index: dict[str, set[str]], name: str, value: str) -> None:
    found = index.get(name, set())
    found.discard(value)
    if not found:
        index.pop(name, None)


def judge(directory: Directory, source: Source.ValueType, agency_id: str, device_id: str, fix: Fix, now: float, late_s: float) -> (
    tuple[Holder, bool] | Refusal.ValueType
):  # fmt: skip
    """Whose a fix is and whether its clock is suspect, or why it is not taken."""
    if why := flaw(fix):
        return why
    suspect = fix.fixed_at > now + AHEAD_S
    if fix.fixed_at < now - late_s:
        return Refusal.REFUSAL_TOO_OLD
    found = directory.settle(source, agency_id, device_id, now if suspect else fix.fixed_at)
    return (found, suspect) if isinstance(found, Holder) else found


# --- how it is kept ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Privacy:
    """How an agency wants positions kept and shown: resolution of the idle's cells, days for tracks of emergencies and for others."""

    idle_resolution: int = 9
    keep_days: int = 31
    keep_idle_days: int = 7


class Taken(NamedTuple):
    """A fix that was taken, as it comes back from its topic; times in seconds since 1970."""

    agency_id: str
    source: Source.ValueType
    device_id: str
    holder: Holder
    fix: Fix
    reported_at: float
    taken_at: float
    clock_suspect: bool


class Point(NamedTuple):
    """A point of the track of one unit."""

    agency_id: str
    kind: UnitKind.ValueType
    unit_id: str
    source: Source.ValueType
    fix: Fix
    taken_at: float
    coarse: bool
    clock_suspect: bool
    emergency_id: str
    visible_to: str
    delete_on: date


def points(taken: Taken, privacy: Privacy) -> Iterable[Point]:
    """What of a fix is kept: one point for each officer whose it is, one for the vehicle; coarse unless there is an emergency."""
    holder, coarse = taken.holder, not taken.holder.emergency_id and privacy.idle_resolution < FINEST
    fix = coarsened(taken.fix, privacy.idle_resolution) if coarse else taken.fix
    days = privacy.keep_days if holder.emergency_id else privacy.keep_idle_days
    delete_on = (datetime.fromtimestamp(taken.taken_at, UTC) + timedelta(days=days + 1)).date()
    units = [(OFFICERS, officer_id) for officer_id in holder.officer_ids]
    if taken.source == VEHICLE:
        units.append((VEHICLES, taken.device_id))
    elif not units:
        units.append((RADIOS, taken.device_id))
    for kind, unit_id in units:
        yield Point(taken.agency_id, kind, unit_id, taken.source, fix, taken.taken_at, coarse, taken.clock_suspect,
                    holder.emergency_id, holder.visible_to, delete_on)  # fmt: skip


def distance_m(a: Fix, b: Fix) -> float:
    """Metres along the great circle; quick, for short ways."""
    mean = math.radians((a.latitude + b.latitude) / 2)
    east = math.radians((b.longitude - a.longitude + 540) % 360 - 180) * math.cos(mean)
    return 6_371_009.0 * math.hypot(east, math.radians(b.latitude - a.latitude))
