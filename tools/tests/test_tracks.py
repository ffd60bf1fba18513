"""What is exported is what other programs read: the GPX schema's order of elements, GeoJSON's order of coordinates."""

import json
from datetime import UTC, datetime

import gpxpy
from sightline.location.v1 import location_service_pb2 as pb
from sightline.location.v1.position_pb2 import SOURCE_RADIO

from tools.tracks import to_geojson, to_gpx

AT = datetime(2026, 11, 26, 9, 30, 0, 250_000, UTC)


def _point(latitude: float, longitude: float) -> pb.TrackPoint:
    point = pb.TrackPoint(source=SOURCE_RADIO, coarse=False, emergency_id="e-1", clock_suspect=True)
    point.fix.latitude, point.fix.longitude, point.fix.accuracy_m = latitude, longitude, 4.0
    point.fix.fixed_at.FromDatetime(AT)
    return point


def test_gpx_comes_back_as_it_was() -> None:
    track = gpxpy.parse(to_gpx('anna & "bert"', [_point(48.1, 11.5), _point(48.2, 11.6)])).tracks[0]
    assert track.name == 'anna & "bert"'
    points = track.segments[0].points
    assert [(point.latitude, point.longitude) for point in points] == [(48.1, 11.5), (48.2, 11.6)]
    assert points[0].time == AT
    assert points[0].comment == "accuracy_m 4.0; source radio; coarse False; clock_suspect True; emergency_id e-1"


def test_geojson_has_longitude_first_and_says_what_is_known() -> None:
    [feature] = json.loads(to_geojson("anna", [_point(48.1, 11.5)]))["features"]
    assert feature["geometry"] == {"type": "Point", "coordinates": [11.5, 48.1]}
    assert feature["properties"] == {
        "time": "2026-11-26T09:30:00.250000+00:00", "accuracy_m": 4.0, "source": "radio", "coarse": False, "clock_suspect": True,
        "emergency_id": "e-1",
    }  # fmt: skip


def test_nothing_is_a_file_too() -> None:
    assert gpxpy.parse(to_gpx("anna", [])).get_points_no() == 0
    assert json.loads(to_geojson("anna", []))["features"] == []
