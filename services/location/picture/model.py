"""The map: the newest fix of each source, what of them is shown, and what changed in which cell; no I/O."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
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
    Privacy,
    Taken,
    coarsened,
    distance_m,
    hidden_together,
    set_fix,
)

# H3 resolution of the cells that watchers subscribe to: 5 km² each.
CELL_RESOLUTION = 7
# Between two neighbours' middles there are at least so many metres, anywhere on earth.
_NEIGHBOUR_M = 1200.0
# A box is at least so wide and high, degrees.
_LEAST_DEG = 1e-6
# Faster than anything of the police but a helicopter; metres a second.
_IMPLAUSIBLE_MPS = 90.0
# How far a source may be off when it does not say; an officer may have left the vehicle.
_ACCURACY_M = {RADIO: 15.0, CAMERA: 10.0, VEHICLE: 40.0, Source.SOURCE_REGISTRY: 5.0}
# Every unit is looked at within so many turns, whether something was heard of it or not.
_PATROL_TURNS = 100
# How fast a fix loses its worth: somebody runs.
_WANDERS_MPS = 3.0

Key = tuple[int, str, str]  # kind, agency, id


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
    way = distance_m(before.fix, after.fix) - before.error_m - after.error_m
    return way <= _IMPLAUSIBLE_MPS * max(after.fix.fixed_at - before.fix.fixed_at, 1.0)


class Unit:
    """One unit: its sources' newest fixes, and how it was last shown."""

    __slots__ = ("agency_id", "best", "doubted", "id", "kind", "place", "shown", "sources", "unit_id")

    def __init__(self, kind: UnitKind.ValueType, agency_id: str, id_: str) -> None:
        self.kind, self.agency_id, self.id, self.unit_id = kind, agency_id, id_, ""
        self.sources: dict[int, Newest] = {}
        self.doubted: dict[int, Newest] = {}
        self.best: Newest | None = None
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
                if doubted is None or not is_plausible(doubted, new):
                    self.doubted[new.source] = new
                    return False
            self.doubted.pop(new.source, None)
        self.sources[new.source] = new
        self.best = new if len(self.sources) == 1 else min(self.sources.values(), key=lambda each: each.worth(new.fix.fixed_at))
        return True


class Picture:
    """All units that are on duty, in memory. `turn` gives what changed since the last one."""

    def __init__(self, directory: Directory, privacy: Callable[[str], Privacy]) -> None:
        self._directory, self._privacy = directory, privacy
        self.units: dict[Key, Unit] = {}
        self._changed: set[Key] = set()
        self._related: defaultdict[str, set[Key]] = defaultdict(set)
        self._patrol: Iterator[Key] = iter(())
        self._places: defaultdict[Place, dict[Key, Unit]] = defaultdict(dict)
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
        new = Newest(source, taken.device_id, taken.fix, taken.reported_at, taken.taken_at)
        keys: list[Key] = [(OFFICERS, agency, officer_id) for officer_id in taken.holder.officer_ids]
        if source == VEHICLE:
            keys.append((VEHICLES, agency, taken.device_id))
        elif not keys:
            keys.append((RADIOS, agency, taken.device_id))
        is_news = False
        for key in keys:
            unit = self.units.get(key)
            if unit is None:
                unit = self.units[key] = Unit(*key)  # type: ignore[arg-type]
                for name in (key[2], *taken.holder.officer_ids):
                    self._related[name].add(key)
            if unit.offer(new):
                self._changed.add(key)
                is_news = True
        return is_news

    def names_changed(self, names: Iterable[str]) -> None:
        """Something about officers or radios may show differently: a shift, an emergency. Vehicles that they were in as well."""
        for name in names:
            self._changed.update(self._related.get(name, ()))

    def place(self, version: int, camera: FixedCamera) -> None:
        """A fixed camera hangs somewhere."""
        name = (camera.agency_id, camera.camera_id)
        if version <= self._fixed.get(name, 0):
            return
        self._fixed[name] = version
        key: Key = (FIXED_CAMERAS, *name)
        unit = self.units[key] = self.units.get(key) or Unit(FIXED_CAMERAS, *name)
        fix = Fix(camera.latitude, camera.longitude, None, None, None, 0.0)
        unit.best = unit.sources[Source.SOURCE_REGISTRY] = Newest(Source.SOURCE_REGISTRY, camera.camera_id, fix, 0.0, 0.0)
        self._changed.add(key)

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
        for officer_id in self._directory.wearers(*name):
            key = (OFFICERS, name[0], officer_id)
            if key in self.units:
                self._changed.add(key)

    # --- what changed ------------------------------------------------------------------------------------------------

    def changed(self) -> set[Key]:
        """Keys of units that a turn has to look at, and some of the others: shifts also end because time goes by."""
        keys, self._changed = self._changed, set()
        patrolled = list(islice(self._patrol, len(self.units) // _PATROL_TURNS + 1))
        if not patrolled:
            self._patrol = iter(list(self.units))
        keys.update(patrolled)
        return keys

    def turn(self, keys: Iterable[Key], now: float, updates: dict[Place, pb.CellUpdate]) -> list[Unit]:
        """Show units anew, and add what changed to the updates. Returns units that are gone: nobody on duty, no emergency."""
        gone = []
        for key in keys:
            unit = self.units.get(key)
            if unit is None or unit.best is None:
                continue
            shown, visible_to = self._show(unit, unit.best, now)
            if shown is None:
                del self.units[key]
                gone.append(unit)
                self._leave(key, unit, updates)
                continue
            if shown == unit.shown:
                continue
            cell = h3.latlng_to_cell(shown.fix.latitude, shown.fix.longitude, CELL_RESOLUTION)
            place = Place(unit.agency_id, visible_to, cell)
            if unit.place != place:
                self._leave(key, unit, updates)
                self._places[place][key] = unit
                unit.place = place
            unit.shown = shown
            self._update(place, updates).units.append(shown)
        return gone

    def _leave(self, key: Key, unit: Unit, updates: dict[Place, pb.CellUpdate]) -> None:
        if unit.place is not None:
            self._update(unit.place, updates).gone.append(f"{unit.kind}/{unit.id}")
            del self._places[unit.place][key]

    def _update(self, place: Place, updates: dict[Place, pb.CellUpdate]) -> pb.CellUpdate:
        found = updates.get(place)
        if found is None:
            found = updates[place] = pb.CellUpdate(cell=place.cell, visible_to=place.visible_to)
        self._whole.pop(place, None)  # each time: somebody may have asked for it in the middle of a turn
        return found

    def _show(self, unit: Unit, best: Newest, now: float) -> tuple[UnitOnMap | None, str]:
        """How a unit is shown, and to whom alone; nothing if it must not be."""
        directory, unit_id, visible_to, emergency = self._directory, "", "", ""
        cameras: Collection[str] = ()
        if unit.kind == OFFICERS:
            emergency = directory.emergency_of_officer(unit.id, now)
            interval = directory.on_duty(unit.id, now)
            if interval is None and not emergency:
                return None, ""
            if interval is not None:
                unit_id, visible_to, cameras = interval.unit_id, interval.visible_to, interval.camera_ids
            else:
                visible_to = directory.last_visible_to(unit.id)
        elif unit.kind == VEHICLES:
            unit_id, officers = directory.crew(unit.agency_id, unit.id, now)
            if not officers:
                return None, ""
            emergency = next(filter(None, (directory.emergency_of_officer(officer, now) for officer in officers)), "")
            riding = filter(None, (directory.on_duty(officer, now) for officer in officers))
            visible_to = hidden_together(each.visible_to for each in riding)
        elif unit.kind == RADIOS:
            emergency = directory.emergency_of_radio(unit.id)
            if not emergency:
                return None, ""
        shown = UnitOnMap(
            kind=unit.kind, id=unit.id, agency_id=unit.agency_id, unit_id=unit_id, source=best.source, emergency_id=emergency,
            visible_to=visible_to,
        )  # fmt: skip
        resolution = self.resolution(shown)
        shown.coarse = resolution < FINEST
        set_fix(shown.fix, coarsened(best.fix, resolution))
        set_seconds(shown.taken_at, best.taken_at)
        for camera_id in cameras:
            self._add_camera(shown, unit.agency_id, camera_id)
        return shown, visible_to

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
        return [place for place, there in self._places.items() if there and sees(place, agency_id, groups, cells)]

    def whole(self, place: Place) -> bytes:
        """All that is in a place, encoded as a response with one whole cell; the same bytes until it changes."""
        found = self._whole.get(place)
        if found is None:
            update = pb.CellUpdate(cell=place.cell, visible_to=place.visible_to, whole=True)
            update.units.extend(unit.shown for unit in self._places.get(place, {}).values() if unit.shown)
            found = self._whole[place] = encoded(update)
        return found

    def nearest(
        self, at: tuple[float, float], within_m: float, places: Iterable[Place], wanted: Callable[[UnitOnMap], bool], count: int
    ) -> list[tuple[float, UnitOnMap]]:
        """Units in some places by metres from a point, as shown; rings of cells around it, until no nearer one can come."""
        in_cell: defaultdict[int, list[UnitOnMap]] = defaultdict(list)
        for place in places:
            in_cell[place.cell].extend(unit.shown for unit in self._places[place].values() if unit.shown)
        found: list[tuple[float, UnitOnMap]] = []
        for closest, cells in self._rings(h3.latlng_to_cell(*at, CELL_RESOLUTION), within_m):
            if len(found) >= count and found[count - 1][0] <= closest:
                break
            for cell in cells:
                for unit in filter(wanted, in_cell.get(cell, ())):
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
        while (closest := max(ring - 1, 0) * _NEIGHBOUR_M) <= within_m:
            yield closest, h3.grid_ring(origin, ring)
            ring += 1


def sees(place: Place, agency_id: str, groups: Collection[str], cells: Collection[int] | None) -> bool:
    """Whether an audience sees a place: its own agency, what is for all or for its groups, and where it looks."""
    return (
        place.agency_id == agency_id
        and (not place.visible_to or place.visible_to in groups)
        and (cells is None or place.cell in cells)
    )  # fmt: skip


def cells_of(box: tuple[float, float, float, float], at_most: int) -> frozenset[int] | None:
    """All cells that a box (south, west, north, east, in degrees) touches; None if they are too many, or the box is none."""
    south, west, north, east = box
    width = max((east - west) % 360 or 360.0 * (east != west), _LEAST_DEG)
    if south > north:
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
