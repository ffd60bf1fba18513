"""Wires the audit service together."""

import base64
from pathlib import Path

from chassis.audit import Audit
from chassis.bus import Publisher, check_topics
from chassis.clock import SystemClock
from chassis.db import Database
from chassis.errors import Misconfigured
from chassis.identity import TokenVerifier
from chassis.reader import BatchReader
from chassis.rpc import Server
from chassis.run import App, run, wait_for
from chassis.sealing import Sealer
from contracts.callers import ALLOWED
from contracts.topics import AUDIT_CHECKPOINT, AUDIT_RECORD
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from sightline.audit.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server
from tlog.note import Signer

from services.audit.api import AuditApi
from services.audit.events import CheckpointAnnouncer, RecordReader
from services.audit.model import Inconsistent
from services.audit.service import AuditService
from services.audit.settings import AuditSettings
from services.audit.store import FileCopies, Store

_LINGER_S, _PAUSE_S = 0.2, 0.01  # records that come within the first time are one commit


async def main(app: App[AuditSettings]) -> None:
    """Build the parts, inside out, and start them."""
    settings, clock = app.settings, SystemClock()
    await app.serve_health(settings.rpc.health_listen)
    publisher = Publisher(settings.kafka)
    app.resources.push_async_callback(publisher.close)
    database = Database(settings.database, "audit", publisher)
    app.resources.push_async_callback(database.close)
    await wait_for("PostgreSQL", database.open)

    audit = Audit("audit", AUDIT_RECORD, database, publisher, clock)
    sealer, signer = Sealer(_master_key(settings.master_key_file)), Signer(settings.origin, _signing_key(settings.signing_key_file))
    copies = FileCopies(settings.checkpoint_dir)
    service = AuditService(database, Store(), sealer, signer, copies, CheckpointAnnouncer(), audit, clock)

    async def check() -> None:
        try:
            await service.check_copies()
        except Inconsistent as error:
            raise Misconfigured(f"the log is not gone on with: {error}") from error
        except (ValueError, KeyError) as error:
            raise Misconfigured(f"the newest checkpoint in {settings.checkpoint_dir} cannot be read: {error!r}") from error

    await wait_for("PostgreSQL", check)
    server = Server(settings.rpc, ALLOWED, TokenVerifier(settings.oidc), audit)
    add_AuditServiceServicer_to_server(AuditApi(service), server.grpc)
    records = BatchReader("audit", RecordReader.topics, RecordReader(service), settings.kafka, publisher, _LINGER_S)

    app.ship(database, audit)
    await server.start()
    app.resources.push_async_callback(server.grpc.stop, 2)
    await wait_for("Kafka topics", lambda: check_topics(settings.kafka, (AUDIT_RECORD, AUDIT_CHECKPOINT)))
    app.background("records", records.consume())
    app.repeat("integration", _PAUSE_S, service.integrate_soon)
    await app.ready()


def _master_key(file: Path) -> bytes:
    try:
        key = base64.b64decode(file.read_text().strip(), validate=True)
    except ValueError as error:
        raise Misconfigured(f"{file} is no master key: 32 bytes as base64") from error
    if len(key) != 32:
        raise Misconfigured(f"{file} is no master key: {len(key)} bytes instead of 32, as base64")
    return key


def _signing_key(file: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except (ValueError, TypeError) as error:  # the latter: it wants a password
        raise Misconfigured(f"{file} is no private key that can be read: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Misconfigured(f"{file} is no Ed25519 key")
    return key


if __name__ == "__main__":
    run("audit", AuditSettings, main, Path(__file__).parent / "migrations")
