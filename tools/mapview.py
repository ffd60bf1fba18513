"""The map as one picture: the demo city's streets, and the units that a desk sees."""

from collections.abc import Iterable
from datetime import UTC, datetime

from mako.template import Template
from sightline.location.v1 import map_service_pb2 as pb
from sightline.location.v1.position_pb2 import UnitKind, UnitOnMap
from sightline.streams.v1.camera_link_service_pb2 import CAMERA_STATE_RECORDING

from tools.desk import Desk
from tools.local.stack import ROOT
from tools.simulator.city import Point, metres, ravensford

_WITHIN_S = 15.0
WIDTH = 1200.0


async def units_of(desk: Desk) -> list[UnitOnMap]:
    """All that a desk sees now, as somebody who begins to watch does."""
    call = desk.map.WatchArea(pb.WatchAreaRequest(), timeout=_WITHIN_S, metadata=desk.metadata())
    found: list[UnitOnMap] = []
    async for response in call:
        for cell in response.cells:
            found += cell.units
        if response.complete:
            break
    call.cancel()
    return found


def looks(unit: UnitOnMap) -> str:
    """How a unit is drawn: the first of these that it is."""
    if unit.emergency_id:
        return "emergency"
    if any(camera.state == CAMERA_STATE_RECORDING and camera.online for camera in unit.cameras):
        return "recording"
    return {UnitKind.UNIT_KIND_VEHICLE: "vehicle", UnitKind.UNIT_KIND_FIXED_CAMERA: "camera"}.get(unit.kind, "officer")


def draw(units: Iterable[UnitOnMap]) -> str:
    """An HTML page with the picture."""
    city = ravensford()
    south, west = min(p[0] for p in city.crossings), min(p[1] for p in city.crossings)
    north, east = max(p[0] for p in city.crossings), max(p[1] for p in city.crossings)
    height = WIDTH * metres((south, west), (north, west)) / metres((south, west), (south, east))

    def at(point: Point) -> tuple[float, float]:
        return WIDTH * (point[1] - west) / (east - west), height * (north - point[0]) / (north - south)

    def across(way_m: float) -> float:
        return WIDTH * way_m / metres((south, west), (south, east))

    streets = [(at(city.crossings[a]), at(city.crossings[b])) for a, there in enumerate(city.streets) for b in there if a < b]
    shown = [(unit, looks(unit), at((unit.fix.latitude, unit.fix.longitude)), across(unit.fix.accuracy_m)) for unit in units]
    inside = [each for each in shown if 0 <= each[2][0] <= WIDTH and 0 <= each[2][1] <= height]
    template = Template(filename=str(ROOT / "tools" / "map.mako"), default_filters=["h"])  # noqa: S702 (it escapes)
    now, vehicle = datetime.now(UTC), UnitKind.UNIT_KIND_VEHICLE
    return str(
        template.render(
            VEHICLE=vehicle, streets=streets, units=inside, outside=len(shown) - len(inside), width=WIDTH, height=height, now=now
        )
    )
