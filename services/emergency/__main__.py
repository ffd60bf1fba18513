"""Wires the emergency service together."""

from datetime import timedelta
from pathlib import Path

from chassis.audit import Audit
from chassis.bus import Publisher
from chassis.clock import PlatformClock
from chassis.db import Database
from chassis.identity import TokenVerifier
from chassis.reader import BatchReader
from chassis.rpc import Server, connect
from chassis.run import App, run, wait_for
from contracts.callers import ALLOWED
from contracts.topics import ACTIVATION_RESULT, AUDIT_RECORD, EMERGENCY_EVENT
from sightline.emergency.v1.emergency_service_pb2_grpc import add_EmergencyServiceServicer_to_server

from services.emergency.api import EmergencyApi, Watchtower
from services.emergency.events import RESULTS_SINCE, EmergencyAnnouncer, ResultReader
from services.emergency.peers import RegistryPeer
from services.emergency.service import EmergencyService
from services.emergency.settings import EmergencySettings
from services.emergency.store import Store

_LINGER_S = 0.05  # outcomes are shown so much later, many at a time


async def main(app: App[EmergencySettings]) -> None:
    """Build the parts, inside out, and start them."""
    settings, clock = app.settings, PlatformClock()
    await app.serve_health(settings.rpc.health_listen)
    publisher = Publisher(settings.kafka)
    app.resources.push_async_callback(publisher.close)
    database = Database(settings.database, "emergency", publisher)
    app.resources.push_async_callback(database.close)
    await wait_for("PostgreSQL", database.open)
    reading = Database(settings.database, "emergency", publisher)
    app.resources.push_async_callback(reading.close)
    await wait_for("PostgreSQL", reading.open)
    await wait_for("PostgreSQL", lambda: app.keep_time(reading, clock))

    audit = Audit("emergency", AUDIT_RECORD, database, publisher, clock)
    registry = RegistryPeer(connect(settings.registry_target, settings.rpc))
    age_gate = timedelta(seconds=settings.age_gate_s)
    service = EmergencyService(database, reading, Store(), registry, EmergencyAnnouncer(), audit, clock, age_gate)
    await wait_for("PostgreSQL", service.warm_up)
    watchtower = Watchtower(service)
    server = Server(settings.rpc, ALLOWED, TokenVerifier(settings.oidc), audit)
    add_EmergencyServiceServicer_to_server(EmergencyApi(service, watchtower, clock), server.grpc)
    results = BatchReader("emergency", ResultReader.topics, ResultReader(service), settings.kafka, publisher, _LINGER_S)

    app.ship(database, audit)
    app.repeat("late pins", 1.0, service.fill_pins)
    app.background("watchtower", watchtower.look())
    # Presses need PostgreSQL, not Kafka: they are taken whatever Kafka is like, or its topics.
    await server.start()
    app.resources.push_async_callback(server.grpc.stop, 2)
    await app.ready()
    app.read("activation results", settings.kafka, (ACTIVATION_RESULT,), lambda: results.tail(RESULTS_SINCE))
    await app.topics(settings.kafka, (EMERGENCY_EVENT, AUDIT_RECORD))


if __name__ == "__main__":
    run("emergency", EmergencySettings, main, Path(__file__).parent / "migrations")
