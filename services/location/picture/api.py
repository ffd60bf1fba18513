"""The gRPC face of the map: to people's desks."""

from collections.abc import AsyncIterator
from typing import Any

from chassis.clock import Clock, set_seconds
from chassis.rpc import caller
from sightline.location.v1 import map_service_pb2 as pb
from sightline.location.v1.map_service_pb2_grpc import MapServiceServicer

from services.location.model import coarsened, set_fix
from services.location.picture.service import PictureService

_COUNT, _WITHIN_M, _MAX_AGE_S = 5, 20_000.0, 300.0


class MapApi(MapServiceServicer):
    """Serves sightline.location.v1.MapService."""

    def __init__(self, service: PictureService, clock: Clock) -> None:
        self._service, self._clock = service, clock

    async def GetUnit(self, request: pb.GetUnitRequest, context: Any) -> pb.GetUnitResponse:
        """One unit, with what its sources said."""
        shown, sources, resolution = await self._service.get(caller(), request.unit.kind, request.unit.id)
        response, now = pb.GetUnitResponse(unit=shown), self._clock.now().timestamp()
        for newest in sorted(sources, key=lambda each: -each.fix.fixed_at):
            source = response.sources.add(source=newest.source, device_id=newest.device_id)
            set_fix(source.fix, coarsened(newest.fix, resolution))
            set_seconds(source.reported_at, newest.reported_at)
            set_seconds(source.taken_at, newest.taken_at)
            source.age.FromMilliseconds(round(max(now - newest.taken_at, 0.0) * 1000))
        return response

    async def FindNearest(self, request: pb.FindNearestRequest, context: Any) -> pb.FindNearestResponse:
        """Units by distance."""
        max_age_s = request.max_age.ToTimedelta().total_seconds() if request.HasField("max_age") else _MAX_AGE_S
        at = (request.latitude, request.longitude)
        found = self._service.nearest(
            caller(), at, set(request.kinds), request.within_m or _WITHIN_M, max_age_s, request.count or _COUNT
        )  # fmt: skip
        return pb.FindNearestResponse(units=[pb.NearUnit(unit=unit, distance_m=way) for way, unit in found])

    async def WatchArea(self, request: pb.WatchAreaRequest, context: Any) -> AsyncIterator[Any]:
        """All there is, then what changes; responses come encoded, because many get the same."""
        box = request.box
        edges = (box.south, box.west, box.north, box.east) if request.HasField("box") else None
        async for response in self._service.watch(caller(), edges):
            yield response
