"""Wires the streams service together."""

import asyncio
from pathlib import Path

from chassis.audit import Audit
from chassis.bus import Publisher
from chassis.clock import PlatformClock
from chassis.db import Database
from chassis.identity import TokenVerifier
from chassis.reader import BatchReader, Reader
from chassis.rpc import Server, connect
from chassis.run import App, first_of, run, wait_for
from contracts.callers import ALLOWED
from contracts.topics import (
    ACTIVATION_REJECTION,
    ACTIVATION_RESULT,
    AUDIT_RECORD,
    STREAM_CAMERA,
    STREAM_GRANT,
    STREAM_SESSION,
)
from sightline.streams.v1.camera_link_service_pb2_grpc import add_CameraLinkServiceServicer_to_server
from sightline.streams.v1.relay_link_service_pb2_grpc import add_RelayLinkServiceServicer_to_server
from sightline.streams.v1.session_service_pb2_grpc import add_SessionServiceServicer_to_server
from sightline.streams.v1.stream_service_pb2_grpc import add_StreamServiceServicer_to_server
from uuid_utils import uuid7

from services.streams.api import CameraLinkApi, StreamApi
from services.streams.events import (
    DECISIONS_SINCE,
    EMERGENCIES_SINCE,
    ActivationAnnouncer,
    CameraAnnouncer,
    DecisionReader,
    EmergencyReader,
)
from services.streams.peers import Peers
from services.streams.service import StreamsService
from services.streams.sessions.api import RelayLinkApi, SessionApi
from services.streams.sessions.events import DutyReader, SessionAnnouncer
from services.streams.sessions.service import SessionsService
from services.streams.sessions.store import Store as SessionStore
from services.streams.settings import StreamsSettings
from services.streams.store import Store

_SWEEP_S, _SWEEP_ALL_S, _RECONCILE_S, _LOOK_AGAIN_S, _ALIVE_S = 0.25, 5.0, 0.4, 0.1, 1.0
_TOLD = (ACTIVATION_RESULT, ACTIVATION_REJECTION, STREAM_SESSION, STREAM_GRANT, STREAM_CAMERA, AUDIT_RECORD)
_LINGER_S = 0.05  # records of duty that come within this time are one question to PostgreSQL
_SESSIONS_POOL = 4
_SESSIONS_S = 0.01  # besides its own wait
_CAMERAS_S, _TALLY_S = 1.0, 5.0
# Every camera keeps one call open; a replica that has this many refuses more, and they try another.
_LINKS_AT_MOST = 20_000


async def main(app: App[StreamsSettings]) -> None:
    """Build the parts, inside out, and start them."""
    settings, clock = app.settings, PlatformClock()
    await app.serve_health(settings.rpc.health_listen)
    publisher = Publisher(settings.kafka)
    app.resources.push_async_callback(publisher.close)
    database = Database(settings.database, "streams", publisher)
    app.resources.push_async_callback(database.close)
    # Connections of its own: whatever video asks of PostgreSQL, the start of cameras does not wait for it.
    beside = Database(settings.database.model_copy(update={"pool_max": _SESSIONS_POOL}), "streams", publisher)
    app.resources.push_async_callback(beside.close)
    await wait_for("PostgreSQL", database.open)
    await wait_for("PostgreSQL", beside.open)

    audit = Audit("streams", AUDIT_RECORD, database, publisher, clock)
    peers = Peers(connect(settings.emergency_target, settings.rpc), connect(settings.registry_target, settings.rpc), clock)
    await wait_for("PostgreSQL", lambda: app.keep_time(database, clock, peers.skew))
    # A new process has none of an old one's links, so it is another replica, whatever its name.
    store, nudge = Store(), asyncio.Event()
    service = StreamsService(database, store, peers, ActivationAnnouncer(), audit, clock, f"{settings.replica}/{uuid7()}", nudge)
    sessions = SessionsService(beside, SessionStore(), store, service.wake, SessionAnnouncer(), audit, clock, nudge)
    server = Server(
        settings.rpc, ALLOWED, TokenVerifier(settings.oidc), audit,
        calls_at_most=_LINKS_AT_MOST, connection_age_s=settings.link_age_s,
    )  # fmt: skip
    add_CameraLinkServiceServicer_to_server(CameraLinkApi(service), server.grpc)
    add_StreamServiceServicer_to_server(StreamApi(service), server.grpc)
    add_RelayLinkServiceServicer_to_server(RelayLinkApi(sessions), server.grpc)
    add_SessionServiceServicer_to_server(SessionApi(sessions), server.grpc)
    decisions = Reader("streams-decisions", DecisionReader.topics, DecisionReader(service), settings.kafka, publisher)
    events = Reader("streams-emergencies", EmergencyReader.topics, EmergencyReader(service), settings.kafka, publisher)

    duty = BatchReader("streams-duty", DutyReader.topics, DutyReader(sessions, clock), settings.kafka, publisher, _LINGER_S)

    await wait_for("PostgreSQL", service.warm_up)
    app.ship(database, audit)

    kafka = settings.kafka
    app.read("emergencies", kafka, EmergencyReader.topics, lambda: events.tail(EMERGENCIES_SINCE))
    app.read("decisions", kafka, DecisionReader.topics, lambda: decisions.tail(DECISIONS_SINCE))
    app.read("duty", kafka, DutyReader.topics, duty.consume)
    app.repeat("reconcile", _RECONCILE_S, service.reconcile)
    app.repeat("second look", _LOOK_AGAIN_S, service.look_again)
    app.repeat("alive", _ALIVE_S, service.say_alive)
    app.repeat("link sweep", _SWEEP_S, service.sweep_links)
    app.repeat("sweep of all links", _SWEEP_ALL_S, service.sweep_all_links)
    app.repeat("overdue sweep", _SWEEP_S, service.sweep_overdue)
    app.repeat("sessions", _SESSIONS_S, sessions.sweep)
    app.repeat("what cameras make up", _TALLY_S, service.tell_unexpected)
    app.repeat("cameras", _CAMERAS_S, CameraAnnouncer(beside, store, publisher, clock).announce)
    # No camera gets orders from us before we know which emergencies have been cleared meanwhile: from Kafka or from their owner.
    await first_of(events.caught_up, service.reconciled)
    await wait_for("what has been heard to be written", service.catch_up)
    await server.start()
    app.resources.push_async_callback(server.grpc.stop, 2)
    await app.ready()
    await app.topics(kafka, _TOLD)


if __name__ == "__main__":
    run("streams", StreamsSettings, main, Path(__file__).parent / "migrations")
