"""Wires the evidence service together."""

from datetime import timedelta
from pathlib import Path

from chassis.audit import Audit
from chassis.bus import Publisher
from chassis.clock import PlatformClock
from chassis.db import Database
from chassis.identity import TokenVerifier
from chassis.reader import BatchReader, Reader
from chassis.rpc import Server
from chassis.run import App, run, wait_for
from contracts.callers import ALLOWED
from contracts.topics import AUDIT_RECORD, EVIDENCE_RECORDING
from sightline.evidence.v1.evidence_service_pb2_grpc import add_EvidenceServiceServicer_to_server
from sightline.evidence.v1.shelf_link_service_pb2_grpc import add_ShelfLinkServiceServicer_to_server

from services.evidence.api import EvidenceApi, ShelfLinkApi
from services.evidence.events import FactReader, HeadReader, RecordingAnnouncer
from services.evidence.service import EvidenceService
from services.evidence.settings import EvidenceSettings
from services.evidence.store import Store

_LINGER_S = 1.0  # chain heads that come within this time are one statement


async def main(app: App[EvidenceSettings]) -> None:
    """Build the parts, inside out, and start them."""
    settings, clock = app.settings, PlatformClock()
    await app.serve_health(settings.rpc.health_listen)
    publisher = Publisher(settings.kafka)
    app.resources.push_async_callback(publisher.close)
    database = Database(settings.database, "evidence", publisher)
    app.resources.push_async_callback(database.close)
    await wait_for("PostgreSQL", database.open)
    await wait_for("PostgreSQL", lambda: app.keep_time(database, clock))

    audit = Audit("evidence", AUDIT_RECORD, database, publisher, clock)
    grace = timedelta(days=settings.grace_days)
    service = EvidenceService(database, Store(), RecordingAnnouncer(), audit, clock, settings.retention_days, grace)
    server = Server(settings.rpc, ALLOWED, TokenVerifier(settings.oidc), audit)
    add_EvidenceServiceServicer_to_server(EvidenceApi(service), server.grpc)
    add_ShelfLinkServiceServicer_to_server(ShelfLinkApi(service), server.grpc)
    facts = Reader("evidence-facts", FactReader.topics, FactReader(service), settings.kafka, publisher)
    heads = BatchReader("evidence-heads", HeadReader.topics, HeadReader(service), settings.kafka, publisher, _LINGER_S)

    app.ship(database, audit)
    app.repeat("sweep", settings.sweep_s, service.sweep)
    await server.start()
    app.resources.push_async_callback(server.grpc.stop, 2)
    app.read("facts", settings.kafka, FactReader.topics, facts.consume)
    app.read("chain heads", settings.kafka, HeadReader.topics, heads.consume)
    await app.ready()
    await app.topics(settings.kafka, (EVIDENCE_RECORDING, AUDIT_RECORD))


if __name__ == "__main__":
    run("evidence", EvidenceSettings, main, Path(__file__).parent / "migrations")
