"""Tracks as files that other programs read: GPX for maps, GeoJSON for the rest."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import gpxpy.gpx
from sightline.location.v1 import location_service_pb2 as pb
from sightline.location.v1.position_pb2 import Source, UnitKind, UnitName

from tools.desk import Desk

_PAGE = 5000


async def read_track(
    desk: Desk, kind: UnitKind.ValueType, unit_id: str, span: tuple[datetime, datetime], reason: str
) -> list[pb.TrackPoint]:
    """All points of a unit between two times; each page that is read is an audit record."""
    request = pb.GetTrackRequest(unit=UnitName(kind=kind, id=unit_id), reason=reason, page_size=_PAGE)
    getattr(request, "from").FromDatetime(span[0])
    request.to.FromDatetime(span[1])
    points: list[pb.TrackPoint] = []
    while True:
        answer: pb.GetTrackResponse = await desk.call(desk.location.GetTrack, request)
        points += answer.points
        if not answer.next_page_token:
            return points
        request.page_token = answer.next_page_token


def _facts(point: pb.TrackPoint) -> dict[str, Any]:
    """What is known of a point besides its place and time."""
    fix = point.fix
    facts: dict[str, Any] = {name: getattr(fix, name) for name in ("accuracy_m", "speed_mps", "course_deg") if fix.HasField(name)}
    facts |= {"source": Source.Name(point.source).removeprefix("SOURCE_").lower(), "coarse": point.coarse}
    if point.clock_suspect:
        facts["clock_suspect"] = True
    if point.emergency_id:
        facts["emergency_id"] = point.emergency_id
    return facts


def to_gpx(name: str, points: Sequence[pb.TrackPoint]) -> str:
    """GPX 1.1, one segment; what GPX has no element for stands in each point's comment."""
    gpx, track, segment = gpxpy.gpx.GPX(), gpxpy.gpx.GPXTrack(name=name), gpxpy.gpx.GPXTrackSegment()
    gpx.creator = "Sightline"
    gpx.tracks.append(track)
    track.segments.append(segment)
    for point in points:
        at = point.fix.fixed_at.ToDatetime(UTC)
        facts = "; ".join(f"{key} {value}" for key, value in _facts(point).items())
        segment.points.append(gpxpy.gpx.GPXTrackPoint(point.fix.latitude, point.fix.longitude, time=at, comment=facts))
    return str(gpx.to_xml(version="1.1")) + "\n"


def to_geojson(name: str, points: Sequence[pb.TrackPoint]) -> str:
    """RFC 7946: a feature for each point; longitude comes first there."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [point.fix.longitude, point.fix.latitude]},
            "properties": {"time": point.fix.fixed_at.ToDatetime(UTC).isoformat(), **_facts(point)},
        }
        for point in points
    ]
    return json.dumps({"type": "FeatureCollection", "name": name, "features": features}, indent=1) + "\n"
