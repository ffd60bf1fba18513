"""The gRPC face of positions: to gateways and cameras, and to people's desks."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from chassis.clock import stamp
from chassis.db import Row
from chassis.errors import InvalidRequest
from chassis.identity import Machine
from chassis.paging import page_cursor, page_token
from chassis.rpc import caller, check, require_readable
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from sightline.location.v1 import location_service_pb2 as pb
from sightline.location.v1.location_service_pb2_grpc import LocationServiceServicer
from sightline.location.v1.position_pb2 import Source

from services.location.events import from_report, is_time
from services.location.model import Privacy
from services.location.service import LocationService, Report

_DEFAULT_PAGE, _BATCH = 500, 1000


class LocationApi(LocationServiceServicer):
    """Serves sightline.location.v1.LocationService."""

    def __init__(self, service: LocationService) -> None:
        self._service = service

    async def ReportPositions(
        self, request_iterator: AsyncIterator[pb.ReportPositionsRequest], context: Any
    ) -> AsyncIterator[pb.ReportPositionsResponse]:
        """Batches in, an answer for each; the next is read when the last is durable, so that a sender is never far ahead."""
        machine = caller().machine
        async for request in request_iterator:
            require_readable(request)
            if not request.reports:
                check(request)  # refuses it; of others each report is judged by itself
            response = pb.ReportPositionsResponse(taken=len(request.reports))
            for start in range(0, len(request.reports), _BATCH):
                reports = list(map(from_report, request.reports[start : start + _BATCH]))
                refused = await self._service.take(reports, lambda report: _speaks_for(machine, report))
                for index, why in refused:
                    response.refused.add(index=start + index, refusal=why)
                refused_here = {index for index, _ in refused}
                for index, report in enumerate(reports):
                    if report is not None and report.ignored and index not in refused_here:
                        response.ignored.add(index=start + index, fields=report.ignored)
            response.taken -= len(response.refused)
            yield response

    async def GetTrack(self, request: pb.GetTrackRequest, context: Any) -> pb.GetTrackResponse:
        """A page of a unit's track."""
        size, unit = request.page_size or _DEFAULT_PAGE, request.unit
        begin = getattr(request, "from")
        if wrong := {name: "no time" for name, stamp in (("from", begin), ("to", request.to)) if not is_time(stamp)}:
            raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, "from and to must be times", violations=wrong)
        span = (begin.ToDatetime(UTC), request.to.ToDatetime(UTC))
        if span[0] >= span[1]:
            raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, "to: not later than from", violations={"to": "not later than from"})
        query = f"GetTrack/{caller().agency_id}/{unit.kind}/{unit.id}/{span[0].isoformat()}/{span[1].isoformat()}"
        after = _cursor(page_cursor(query, request.page_token))
        rows = await self._service.track(caller(), unit.kind, unit.id, span, request.reason, after, size)
        response = pb.GetTrackResponse(points=map(_point, rows))
        if len(rows) == size:
            response.next_page_token = page_token(query, f"{rows[-1]['fixed_at'].isoformat()}/{rows[-1]['source']}")
        return response

    async def SetPrivacy(self, request: pb.SetPrivacyRequest, context: Any) -> pb.SetPrivacyResponse:
        """How the caller's agency wants its positions kept and shown."""
        asked = request.privacy
        await self._service.set_privacy(caller(), Privacy(asked.idle_resolution, asked.keep_days, asked.keep_idle_days))
        return pb.SetPrivacyResponse(privacy=asked)

    async def GetPrivacy(self, request: pb.GetPrivacyRequest, context: Any) -> pb.GetPrivacyResponse:
        """How the caller's agency wants its positions kept and shown."""
        found = self._service.privacy(caller().agency_id)
        privacy = pb.Privacy(idle_resolution=found.idle_resolution, keep_days=found.keep_days, keep_idle_days=found.keep_idle_days)
        return pb.GetPrivacyResponse(privacy=privacy)


def _speaks_for(machine: Machine, report: Report) -> bool:
    """A camera speaks for itself, others for all devices of their agency."""
    is_camera = machine.kind == "camera"
    own = not is_camera or (report.source == Source.SOURCE_CAMERA and report.device_id == machine.id)
    return own and report.agency_id == machine.agency_id


def _cursor(text: str) -> tuple[datetime, int] | None:
    if not text:
        return None
    at, _, source = text.rpartition("/")
    try:
        return datetime.fromisoformat(at), int(source)
    except ValueError as error:
        raise InvalidRequest(Reason.ERROR_REASON_PAGE_TOKEN_INVALID, "the page token is not one that this query gave") from error


def _point(row: Row) -> pb.TrackPoint:
    point = pb.TrackPoint(
        source=row["source"], taken_at=stamp(row["taken_at"]), coarse=row["coarse"], clock_suspect=row["clock_suspect"],
        emergency_id=row["emergency_id"],
    )  # fmt: skip
    fix = point.fix
    fix.latitude, fix.longitude = row["latitude"], row["longitude"]
    for name in ("accuracy_m", "speed_mps", "course_deg"):
        if row[name] is not None:
            setattr(fix, name, row[name])
    fix.fixed_at.FromDatetime(row["fixed_at"])
    return point
