"""Wires the location service together."""

from datetime import timedelta
from pathlib import Path

from chassis import telemetry
from chassis.audit import Audit
from chassis.bus import BulkPublisher, Publisher
from chassis.clock import PlatformClock
from chassis.db import Database
from chassis.identity import TokenVerifier
from chassis.reader import BatchReader, FeedReader, Reader
from chassis.rpc import Server
from chassis.run import App, give_way, run, wait_for
from contracts.callers import ALLOWED
from contracts.topics import AUDIT_RECORD, LOCATION_POSITION, LOCATION_REPORT
from sightline.location.v1.location_service_pb2_grpc import add_LocationServiceServicer_to_server
from sightline.location.v1.map_service_pb2_grpc import add_MapServiceServicer_to_server

from services.location.api import LocationApi
from services.location.events import (
    DEVICES_SINCE,
    DUTY_SINCE,
    EMERGENCIES_SINCE,
    DeviceReader,
    DutyReader,
    EmergencyReader,
    HistoryReader,
    PositionPublisher,
    ReportReader,
    device_key,
)
from services.location.model import Directory
from services.location.picture.api import MapApi
from services.location.picture.events import CAMERAS_SINCE, SESSIONS_SINCE, CameraReader, PositionReader, SessionReader
from services.location.picture.model import Picture
from services.location.picture.service import PictureService
from services.location.service import LocationService
from services.location.settings import LocationSettings
from services.location.store import Store

_INTAKE_LINGER_S, _HISTORY_LINGER_S, _BATCH = 0.05, 0.5, 5000
# Whatever else wants the same processors goes first.
_NICE = 10
_PRIVACIES_S, _REPORT_S = 2.0, 60.0
# What was flushed is so much older than its flush, at most: a turn, a lagging replica.
_MARGIN, _TOPIC_LASTS = timedelta(seconds=60), timedelta(hours=2)


async def main(app: App[LocationSettings]) -> None:
    """Build the parts, inside out, and start them."""
    give_way(_NICE)
    settings, clock, kafka = app.settings, PlatformClock(), app.settings.kafka
    await app.serve_health(settings.rpc.health_listen)
    publisher, bulk = Publisher(kafka), BulkPublisher(kafka, LOCATION_POSITION, "location")
    app.resources.push_async_callback(publisher.close)
    app.resources.push_async_callback(bulk.close)
    database = Database(settings.database, "location", publisher)
    app.resources.push_async_callback(database.close)
    await wait_for("PostgreSQL", database.open)
    await wait_for("PostgreSQL", lambda: app.keep_time(database, clock))

    audit, store, directory = Audit("location", AUDIT_RECORD, database, publisher, clock), Store(), Directory(settings.late_s)
    service = LocationService(database, store, directory, PositionPublisher(bulk), audit, clock, settings.late_s)
    picture = Picture(directory, service.privacy)
    maps = PictureService(database, store, picture, device_key, audit, clock)
    server = Server(settings.rpc, ALLOWED, TokenVerifier(settings.oidc), audit)
    add_LocationServiceServicer_to_server(LocationApi(service), server.grpc)
    add_MapServiceServicer_to_server(MapApi(maps, clock), server.grpc)

    # Who has what comes first: a fix whose device is not known yet would be refused.
    learn = (
        ("location-duty", DutyReader(directory, picture.look_at), DUTY_SINCE),
        ("location-devices", DeviceReader(directory, picture.look_at, picture.place), DEVICES_SINCE),
        ("location-emergencies", EmergencyReader(directory, picture.look_at), EMERGENCIES_SINCE),
        ("location-cameras", CameraReader(picture), CAMERAS_SINCE),
        ("location-sessions", SessionReader(picture), SESSIONS_SINCE),
    )
    learning = [(Reader(name, handle.topics, handle, kafka, publisher), since) for name, handle, since in learn]
    topics = {topic for _, handle, _ in learn for topic in handle.topics} | {LOCATION_REPORT, LOCATION_POSITION, AUDIT_RECORD}
    await app.topics(kafka, tuple(topics))
    for reader, since in learning:
        app.background(reader.name, reader.tail(since))
    app.ship(database, audit)
    for reader, _ in learning:
        await reader.caught_up.wait()
    await wait_for("PostgreSQL", service.read_privacies)

    positions = PositionReader(maps)
    records, flushed_at = await maps.newest()
    positions.take(records)
    feed = FeedReader("location-map", PositionReader.topics, positions, kafka, publisher)
    app.background("map", feed.tail(min(clock.now() - flushed_at + _MARGIN, _TOPIC_LASTS)))
    reports = BatchReader("location-intake", ReportReader.topics, ReportReader(service), kafka, publisher, _INTAKE_LINGER_S, _BATCH)
    history = BatchReader("location-history", HistoryReader.topics, HistoryReader(service), kafka, publisher, _HISTORY_LINGER_S, _BATCH)
    app.background("reports", reports.consume())
    app.background("tracks", history.consume())
    app.repeat("turns", settings.turn_s, maps.turn)
    app.repeat("flush", settings.flush_s, maps.flush)
    app.repeat("privacy", _PRIVACIES_S, service.read_privacies)
    app.repeat("due tracks", settings.sweep_s, service.sweep)
    app.repeat("refusals", _REPORT_S, service.report_refusals)
    await feed.caught_up.wait()
    await server.start()
    app.resources.push_async_callback(server.grpc.stop, 2)
    telemetry.log().info("map", units=len(picture.units))
    await app.ready()


if __name__ == "__main__":
    run("location", LocationSettings, main, Path(__file__).parent / "migrations")
