"""The map: the newest fix of each source, what of them is shown, and what changed in which cell; no I/O."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import lru_cache
from itertools import islice, product
from typing import NamedTuple

import h3.api.basic_int as h3
from chassis.clock import set_seconds
from sightline.location.v1 import map_service_pb2 as pb
from sightline.location.v1.position_pb2 import CameraOnMap, Source, UnitKind, UnitOnMap
from sightline.registry.v1.device_pb2 import FixedCamera
from sightline.streams.v1.stream_service_pb2 import CameraStatus

from services.location.model import (
    CAMERA,
    FINEST,
    FIXED_CAMERAS,
    OFFICERS,
    RADIO,
    RADIOS,
    VEHICLE,
    VEHICLES,
    Directory,
    Fix,
    Holder,
    Name,
    Privacy,
    Taken,
    coarsened,
    distance_m,
    hidden_together,
    set_fix,
)

# H3 resolution of the cells that watchers subscribe to: 5 km² each.
CELL_RESOLUTION = 7
# From a cell to what lies a ring beyond its neighbours there are at least so many metres, anywhere on earth (measured: 988).
_RING_M = 950.0
# A box is at least so wide and high, degrees; one that is wider than half the earth H3 takes for the other half.
_LEAST_DEG, _HALF_ROUND_DEG = 1e-6, 180.0
# Faster than anything of the police but a helicopter; metres a second. Who knows nothing of where it is proves nothing.
_IMPLAUSIBLE_MPS, _ERROR_AT_MOST_M = 90.0, 1500.0
# How far a source may be off when it does not say; an officer may have left the vehicle.
_ACCURACY_M = {RADIO: 15.0, CAMERA: 10.0, VEHICLE: 40.0, Source.SOURCE_REGISTRY: 5.0}
# Every unit is looked at within so many turns, whether something was heard of it or not.
_PATROL_TURNS = 100
# Who it is, and for whom, is asked anew for each unit after so many seconds, and at once when something is told.
_LOOK_AGAIN_S = 5.0
# So long a fix waits hidden for the duty record that it has overtaken.
_UNKNOWN_S = 10.0
# How fast a fix loses its worth: somebody runs.
_WANDERS_MPS = 3.0


class Place(NamedTuple):
    """A cell as one audience sees it."""

    agency_id: str
    visible_to: str
    cell: int


class Newest(NamedTuple):
    """The newest fix of one source of a unit."""

    source: Source.ValueType
    device_id: str
    fix: Fix
    reported_at: float
    taken_at: float
    visible_to: str

    @property
    def error_m(self) -> float:
        """How far it may be off, its error when it was taken."""
        return self.fix.accuracy_m if self.fix.accuracy_m is not None else _ACCURACY_M[self.source]

    def worth(self, now: float) -> float:
        """How far the unit may be from here by now; the smallest is the best."""
        least = _ACCURACY_M[self.source] if self.source == VEHICLE else 0.0
        return max(self.error_m, least) + _WANDERS_MPS * max(now - self.fix.fixed_at, 0.0)


def is_plausible(before: Newest, after: Newest) -> bool:
    """Whether something can have gone from one fix to the other."""
    way = distance_m(before.fix, after.fix) - min(before.error_m, _ERROR_AT_MOST_M) - min(after.error_m, _ERROR_AT_MOST_M)
    return way <= _IMPLAUSIBLE_MPS * max(after.fix.fixed_at - before.fix.fixed_at, 1.0)


class Unit:
    """One unit: its sources' newest fixes, and how it was last shown.

    `face` is all of that but the place, `fitting` the fixes that its audience may see, both as of the last look; `unseen` sources have told
    more since.
    """

    __slots__ = (
        "agency_id", "doubted", "face", "fitting", "id", "kind", "look_again", "place", "replaced", "resolution", "shown", "sources",
        "unseen",
    )  # fmt: skip

    def __init__(self, agency_id: str, kind: UnitKind.ValueType, id_: str) -> None:
        self.agency_id, self.kind, self.id = agency_id, kind, id_
        self.sources: dict[int, Newest] = {}
        self.doubted: dict[int, Newest] = {}
        self.replaced: list[Newest] = []
        self.look_again = 0.0
        self.face: UnitOnMap | None = None
        self.resolution = FINEST
        self.fitting: dict[int, Newest] = {}
        self.unseen: set[int] = set()
        self.shown: UnitOnMap | None = None
        self.place: Place | None = None

    def offer(self, new: Newest) -> bool:
        """Take a fix as its source's newest; False if it is late or cannot be. Two that agree are believed against one."""
        before = self.sources.get(new.source)
        if before is not None:
            if new.fix.fixed_at <= before.fix.fixed_at:
                return False
            if not is_plausible(before, new):
                doubted = self.doubted.get(new.source)
                if doubted is None or new.fix.fixed_at > doubted.fix.fixed_at:
                    self.doubted[new.source] = new
                if doubted is None or new.fix.fixed_at <= doubted.fix.fixed_at or not is_plausible(doubted, new):
                    return False
            self.doubted.pop(new.source, None)
            if before.device_id != new.device_id:
                self.replaced.append(before)
        self.sources[new.source] = new
        self.unseen.add(new.source)
        return True


class Picture:
    """All units that are on duty, in memory. `turn` gives what changed since the last one."""

    def __init__(self, directory: Directory, privacy: Callable[[str], Privacy]) -> None:
        self._directory, self._privacy = directory, privacy
        self.units: dict[Name, Unit] = {}
        self._changed: set[Name] = set()
        self._patrol: Iterator[Name] = iter(())
        self._places: defaultdict[Place, dict[Name, Unit]] = defaultdict(dict)
        self._whole: dict[Place, bytes] = {}
        self._cameras: dict[tuple[str, str], CameraStatus] = {}
        self._live: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._fixed: dict[tuple[str, str], int] = {}

    # --- what it is told ---------------------------------------------------------------------------------------------

    def take(self, taken: Taken) -> bool:
        """A fix; False if it is nobody's newest."""
        if taken.clock_suspect:
            return False
        agency, source = taken.agency_id, taken.source
        new = Newest(source, taken.device_id, taken.fix, taken.reported_at, taken.taken_at, taken.holder.visible_to)
        names: list[Name] = [(agency, OFFICERS, officer_id) for officer_id in taken.holder.officer_ids]
        if source == VEHICLE:
            names.append((agency, VEHICLES, taken.device_id))
        elif not names:
            names.append((agency, RADIOS, taken.device_id))
        is_news = False
        for name in names:
            unit = self.units.get(name)
            if unit is None:
                unit = self.units[name] = Unit(*name)  # type: ignore[arg-type]
            if unit.offer(new):
                self._changed.add(name)
                is_news = True
        return is_news

    def look_at(self, names: Iterable[Name]) -> None:
        """Units may show differently: a shift, an emergency, who rides with whom."""
        for name in names:
            if unit := self.units.get(name):
                unit.look_again = 0.0
                self._changed.add(name)

    def place(self, version: int, camera: FixedCamera) -> None:
        """A fixed camera hangs somewhere."""
        name = (camera.agency_id, camera.camera_id)
        if version <= self._fixed.get(name, 0):
            return
        self._fixed[name] = version
        unit_name: Name = (camera.agency_id, FIXED_CAMERAS, camera.camera_id)
        unit = self.units[unit_name] = self.units.get(unit_name) or Unit(camera.agency_id, FIXED_CAMERAS, camera.camera_id)
        fix = Fix(camera.latitude, camera.longitude, None, None, None, 0.0)
        unit.sources[Source.SOURCE_REGISTRY] = Newest(Source.SOURCE_REGISTRY, camera.camera_id, fix, 0.0, 0.0, "")
        self.look_at((unit_name,))

    def learn_camera(self, status: CameraStatus) -> None:
        """What a body-worn camera does; an older version changes nothing."""
        name = (status.agency_id, status.camera_id)
        known = self._cameras.get(name)
        if known is None or known.version < status.version:
            self._cameras[name] = status
            self._camera_changed(name)

    def learn_session(self, agency_id: str, camera_id: str, session_id: str, *, is_live: bool) -> None:
        """A camera streams, or does not any more."""
        name = (agency_id, camera_id)
        (self._live[name].add if is_live else self._live[name].discard)(session_id)
        self._camera_changed(name)

    def _camera_changed(self, name: tuple[str, str]) -> None:
        self.look_at((name[0], OFFICERS, officer_id) for officer_id in self._directory.wearers(*name))

    # --- what changed ------------------------------------------------------------------------------------------------

    def changed(self) -> set[Name]:
        """Units that a turn has to look at, and some of the others: shifts also end because time goes by."""
        patrolled = list(islice(self._patrol, len(self.units) // _PATROL_TURNS + 1))
        if not patrolled:
            self._patrol = iter(list(self.units))
        self.look_at(patrolled)
        names, self._changed = self._changed, set()
        return names

    def turn(self, names: Iterable[Name], now: float, updates: dict[Place, pb.CellUpdate]) -> list[tuple[Unit, Newest]]:
        """Show units anew, and add what changed to the updates.

        Returns what is to be forgotten: fixes of devices that others have replaced, and of units where nobody is who may be shown; but not
        what other units still show.
        """
        forgotten: list[tuple[Unit, Newest]] = []
        for name in names:
            unit = self.units.get(name)
            if unit is None:
                continue
            forgotten += ((unit, each) for each in unit.replaced)
            unit.replaced.clear()
            shown = self._show(unit, now)
            if shown is None:
                self._leave(name, unit, updates)
                if not any(abs(now - each.taken_at) < _UNKNOWN_S for each in unit.sources.values()):
                    del self.units[name]
                    forgotten += ((unit, each) for each in unit.sources.values())
                continue
            if shown == unit.shown:
                continue
            cell = h3.latlng_to_cell(shown.fix.latitude, shown.fix.longitude, CELL_RESOLUTION)
            place = Place(unit.agency_id, shown.visible_to, cell)
            if unit.place != place:
                self._leave(name, unit, updates)
                self._places[place][name] = unit
                unit.place = place
            unit.shown = shown
            self._update(place, updates).units.append(shown)
        return [(unit, each) for unit, each in forgotten if not self._is_elsewhere(unit, each)]

    def _is_elsewhere(self, unit: Unit, newest: Newest) -> bool:
        """Whether another unit has its place from the same device; a vehicle that goes does so for all."""
        if unit.kind == VEHICLES:
            return False
        holder = self._directory.settle(newest.source, unit.agency_id, newest.device_id, newest.fix.fixed_at)
        officers = holder.officer_ids if isinstance(holder, Holder) else ()
        names: list[Name] = [(unit.agency_id, OFFICERS, officer_id) for officer_id in officers if officer_id != unit.id]
        if newest.source == VEHICLE:
            names.append((unit.agency_id, VEHICLES, newest.device_id))
        found = [other.sources.get(newest.source) for name in names if (other := self.units.get(name))]
        return any(each is not None and each.device_id == newest.device_id for each in found)

    def _leave(self, name: Name, unit: Unit, updates: dict[Place, pb.CellUpdate]) -> None:
        if unit.place is not None:
            self._update(unit.place, updates).gone.append(f"{unit.kind}/{unit.id}")
            there = self._places[unit.place]
            del there[name]
            if not there:
                del self._places[unit.place]
            unit.shown = unit.place = None

    def _update(self, place: Place, updates: dict[Place, pb.CellUpdate]) -> pb.CellUpdate:
        found = updates.get(place)
        if found is None:
            found = updates[place] = pb.CellUpdate(cell=place.cell, visible_to=place.visible_to)
        self._whole.pop(place, None)  # each time: somebody may have asked for it in the middle of a turn
        return found

    def _show(self, unit: Unit, now: float) -> UnitOnMap | None:
        """How a unit is shown; nothing if it must not be."""
        is_fresh = unit.look_again - _LOOK_AGAIN_S <= now < unit.look_again  # a clock may be put back
        if is_fresh:
            self._look_at_unseen(unit)
        if not (is_fresh and unit.fitting):
            self._look(unit, now)
        if unit.face is None or not unit.fitting:
            return None
        sources = list(unit.fitting.values())
        best = sources[0] if len(sources) == 1 else min(sources, key=lambda each: each.worth(now))
        shown = UnitOnMap()
        shown.CopyFrom(unit.face)
        shown.source = best.source
        set_fix(shown.fix, coarsened(best.fix, unit.resolution))
        set_seconds(shown.taken_at, best.taken_at)
        return shown

    def _look(self, unit: Unit, now: float) -> None:
        """Ask anew who a unit is, for whom, and which of its fixes they may see. Radios, which are few, are asked at each turn."""
        face = UnitOnMap(kind=unit.kind, id=unit.id, agency_id=unit.agency_id)
        is_there = unit.kind == FIXED_CAMERAS or self._is_there(unit, face, now)
        unit.face, unit.resolution = face if is_there else None, self.resolution(face)
        face.coarse = unit.resolution < FINEST
        unit.look_again = now + (_LOOK_AGAIN_S if unit.kind != RADIOS else 0.0)
        unit.fitting.clear()
        unit.unseen.update(unit.sources)
        self._look_at_unseen(unit)

    def _look_at_unseen(self, unit: Unit) -> None:
        if unit.face is None:
            return
        for source in unit.unseen:
            newest = unit.sources[source]
            if self._fits(unit, newest, unit.face.visible_to):
                unit.fitting[source] = newest
            else:
                unit.fitting.pop(source, None)
        unit.unseen.clear()

    def _is_there(self, unit: Unit, shown: UnitOnMap, now: float) -> bool:
        """Write who it is and for whom; False if nobody is on duty there and no emergency is open."""
        directory, agency = self._directory, unit.agency_id
        if unit.kind == OFFICERS:
            shown.emergency_id = directory.emergency_of_officer(unit.id, now)
            shift = directory.shift(unit.id, now)
            shown.visible_to = shift.visible_to if shift else directory.audience(unit.id, now)
            if shift is not None:
                shown.unit_id = shift.unit_id
                for camera_id in shift.camera_ids:
                    self._add_camera(shown, agency, camera_id)
            return bool(shift or shown.emergency_id)
        if unit.kind == VEHICLES:
            crew = directory.settle(VEHICLE, agency, unit.id, now)
            if isinstance(crew, Holder):
                shown.unit_id, shown.visible_to, shown.emergency_id = crew.unit_id, crew.visible_to, crew.emergency_id
            return isinstance(crew, Holder)
        emergency, holder = directory.emergency_of_radio(unit.id), directory.settle(RADIO, agency, unit.id, now)
        if emergency is None:
            return False
        # Since it is known whose it is, the officer is shown; the radio only as long as nothing is heard of the officer.
        held_by = holder.officer_ids if isinstance(holder, Holder) else ()
        officer_id = emergency.officer_id or next(iter(held_by), "")
        officer = self.units.get((agency, OFFICERS, officer_id))
        shown.emergency_id = emergency.emergency_id
        held_for = holder.visible_to if isinstance(holder, Holder) else ""
        shown.visible_to = hidden_together((held_for, directory.audience_of_emergency(emergency, officer_id, now)))
        return officer is None or officer.place is None

    def sources(self, unit: Unit, visible_to: str) -> list[Newest]:
        """The newest fixes of a unit that an audience may see.

        Whoever could see a place when it was new, can later; nobody else, whatever the unit does by then. What duty records say of then
        by now counts as well: they may have come after the fix.
        """
        return [each for each in unit.sources.values() if self._fits(unit, each, visible_to)]

    def _fits(self, unit: Unit, newest: Newest, visible_to: str) -> bool:
        if unit.kind == FIXED_CAMERAS:
            return True
        if newest.visible_to not in ("", visible_to):
            return False
        holder = self._directory.settle(newest.source, unit.agency_id, newest.device_id, newest.fix.fixed_at)
        return (
            isinstance(holder, Holder)
            and holder.visible_to in ("", visible_to)
            and (unit.kind != OFFICERS or unit.id in holder.officer_ids)
        )  # fmt: skip

    def resolution(self, shown: UnitOnMap) -> int:
        """The H3 resolution that a unit's place is shown in."""
        precise = shown.emergency_id or shown.kind == FIXED_CAMERAS
        return FINEST if precise else self._privacy(shown.agency_id).idle_resolution

    def _add_camera(self, shown: UnitOnMap, agency_id: str, camera_id: str) -> None:
        status = self._cameras.get((agency_id, camera_id))
        camera = CameraOnMap(camera_id=camera_id, streaming=bool(self._live.get((agency_id, camera_id))))
        if status is not None:
            camera.online, camera.state, camera.audio_muted = status.linked, status.report.state, status.report.audio_muted
            if status.report.HasField("battery_percent"):
                camera.battery_percent = status.report.battery_percent
        shown.cameras.append(camera)

    # --- what it is asked --------------------------------------------------------------------------------------------

    def places(self, agency_id: str, groups: Collection[str], cells: Collection[int] | None) -> list[Place]:
        """Places with something in them, as an audience sees them."""
        return [place for place in self._places if sees(place, agency_id, groups, cells)]

    def whole(self, place: Place) -> bytes:
        """All that is in a place, encoded as a response with one whole cell; the same bytes until it changes."""
        found = self._whole.get(place)
        if found is None:
            update = pb.CellUpdate(cell=place.cell, visible_to=place.visible_to, whole=True)
            update.units.extend(self._shown_in(place))
            found = encoded(update)
            if update.units:
                self._whole[place] = found
        return found

    def _shown_in(self, place: Place) -> Iterator[UnitOnMap]:
        return (unit.shown for unit in self._places.get(place, {}).values() if unit.shown)

    def nearest(
        self, at: tuple[float, float], within_m: float, agency_id: str, groups: Collection[str], wanted: Callable[[UnitOnMap], bool],
        count: int,
    ) -> list[tuple[float, UnitOnMap]]:  # fmt: skip
        """Units by metres from a point, as an audience sees them; rings of cells around it, until no nearer one can come."""
        found: list[tuple[float, UnitOnMap]] = []
        for closest, cells in self._rings(h3.latlng_to_cell(*at, CELL_RESOLUTION), within_m):
            if len(found) >= count and found[count - 1][0] <= closest:
                break
            for cell, group in product(cells, ("", *groups)):
                for unit in filter(wanted, self._shown_in(Place(agency_id, group, cell))):
                    way = h3.great_circle_distance(at, (unit.fix.latitude, unit.fix.longitude), unit="m")
                    if way <= within_m:
                        found.append((way, unit))
            found.sort(key=lambda each: each[0])
            del found[count:]
        return found

    @staticmethod
    def _rings(origin: int, within_m: float) -> Iterator[tuple[float, list[int]]]:
        """Rings of cells around one, each with the metres that lie at least between."""
        ring = 0
        while (closest := max(ring - 1, 0) * _RING_M) <= within_m:
            yield closest, h3.grid_ring(origin, ring)
            ring += 1


def sees(place: Place, agency_id: str, groups: Collection[str], cells: Collection[int] | None) -> bool:
    """Whether an audience sees a place: its own agency, what is for all or for its groups, and where it looks."""
    return (
        place.agency_id == agency_id
        and (not place.visible_to or place.visible_to in groups)
        and (cells is None or place.cell in cells)
    )  # fmt: skip


@lru_cache(64)  # many who watch the same share its cells
def cells_of(box: tuple[float, float, float, float], at_most: int) -> frozenset[int] | None:
    """All cells that a box (south, west, north, east, in degrees) touches; None if they are too many, or the box is none."""
    south, west, north, east = box
    width = max((east - west) % 360 or 360.0 * (east != west), _LEAST_DEG)
    if south > north or width >= _HALF_ROUND_DEG:
        return None
    north, east = max(north, south + _LEAST_DEG), west + width if west + width <= 180 else east
    middle = math.cos(math.radians((south + north) / 2))
    if (north - south) * width * 111.2**2 * middle / h3.average_hexagon_area(CELL_RESOLUTION) > at_most:
        return None
    corners = [(south, west), (south, west + width), (north, west + width), (north, west)]
    halves = [corners] if west + width <= 180 else [
        [(south, west), (south, 180.0), (north, 180.0), (north, west)],
        [(south, -180.0), (south, east), (north, east), (north, -180.0)],
    ]  # fmt: skip
    found = (h3.h3shape_to_cells_experimental(h3.LatLngPoly(half), CELL_RESOLUTION, contain="overlap") for half in halves)
    return frozenset(cell for cells in found for cell in cells)


def encoded(update: pb.CellUpdate) -> bytes:
    """A response with one cell. Responses one after the other are one response with all of their cells."""
    return pb.WatchAreaResponse(cells=[update]).SerializeToString()
