"""Wires the registry together."""

from datetime import timedelta
from pathlib import Path

from chassis.audit import Audit
from chassis.bus import Publisher
from chassis.clock import PlatformClock
from chassis.db import Database
from chassis.identity import TokenVerifier
from chassis.rpc import Server
from chassis.run import App, run, wait_for
from contracts.callers import ALLOWED
from contracts.topics import AUDIT_RECORD, REGISTRY_DEVICE, REGISTRY_DUTY
from sightline.registry.v1.registry_service_pb2_grpc import add_RegistryServiceServicer_to_server

from services.registry.api import RegistryApi
from services.registry.events import RegistryAnnouncer
from services.registry.service import RegistryService
from services.registry.settings import RegistrySettings
from services.registry.store import Store


async def main(app: App[RegistrySettings]) -> None:
    """Build the parts, inside out, and start them."""
    settings, clock = app.settings, PlatformClock()
    await app.serve_health(settings.rpc.health_listen)
    publisher = Publisher(settings.kafka)
    app.resources.push_async_callback(publisher.close)
    database = Database(settings.database, "registry", publisher)
    app.resources.push_async_callback(database.close)
    await wait_for("PostgreSQL", database.open)
    await wait_for("PostgreSQL", lambda: app.keep_time(database, clock))

    audit = Audit("registry", AUDIT_RECORD, database, publisher, clock)
    service = RegistryService(database, Store(), RegistryAnnouncer(), audit, clock)
    server = Server(settings.rpc, ALLOWED, TokenVerifier(settings.oidc), audit)
    add_RegistryServiceServicer_to_server(RegistryApi(service, clock), server.grpc)

    app.ship(database, audit)
    period = timedelta(seconds=settings.trickle_s)
    app.repeat("duty trickle", min(1.0, settings.trickle_s / 10), lambda: service.trickle(period))
    await server.start()
    app.resources.push_async_callback(server.grpc.stop, 2)
    await app.ready()
    # Presses ask who holds the radio: that needs PostgreSQL, not Kafka.
    await app.topics(settings.kafka, (REGISTRY_DUTY, REGISTRY_DEVICE, AUDIT_RECORD))


if __name__ == "__main__":
    run("registry", RegistrySettings, main, Path(__file__).parent / "migrations")
