"""Wires the audit service together."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from chassis import telemetry
from chassis.audit import Audit
from chassis.bus import TRANSIENT, Publisher
from chassis.clock import PlatformClock
from chassis.db import Database
from chassis.errors import Misconfigured
from chassis.files import read_ed25519
from chassis.identity import TokenVerifier
from chassis.reader import BatchReader, Distance
from chassis.rpc import Server
from chassis.run import App, run, wait_for
from chassis.sealing import Sealer
from contracts.callers import ALLOWED
from contracts.topics import AUDIT_ALERT, AUDIT_CHECKPOINT, AUDIT_RECORD
from sightline.audit.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server
from sightline.audit.v1.oversight_service_pb2_grpc import add_OversightServiceServicer_to_server
from tlog.note import Signer

from services.audit.api import AuditApi
from services.audit.events import CheckpointAnnouncer, RecordReader
from services.audit.model import Inconsistent
from services.audit.oversight.api import OversightApi
from services.audit.oversight.events import AccountReader, AlertAnnouncer
from services.audit.oversight.service import OversightService
from services.audit.oversight.store import Store as OversightStore
from services.audit.peers import WitnessLink
from services.audit.service import AuditService, Recheck
from services.audit.settings import AuditSettings
from services.audit.store import FileCopies, Store

_WITNESS_S, _RECHECK_PAUSE_S, _DISTANCE_S = 1.0, 0.2, 2.0
_OBSERVE_S = 0.5
# Records that come within this time, up to so many, are one commit.
_LINGER_S, _RECORDS_AT_ONCE, _PAUSE_S = 0.1, 2000, 0.01


async def main(app: App[AuditSettings]) -> None:
    """Build the parts, inside out, and start them."""
    settings, clock = app.settings, PlatformClock()
    await app.serve_health(settings.rpc.health_listen)
    publisher = Publisher(settings.kafka)
    app.resources.push_async_callback(publisher.close)
    database = Database(settings.database, "audit", publisher)
    app.resources.push_async_callback(database.close)
    await wait_for("PostgreSQL", database.open)
    await wait_for("PostgreSQL", lambda: app.keep_time(database, clock))
    audit = Audit("audit", AUDIT_RECORD, database, publisher, clock)
    sealer, signer = Sealer(_master_key(settings.master_key_file)), Signer(settings.origin, read_ed25519(settings.signing_key_file))
    copies = FileCopies(settings.checkpoint_dir)
    witnesses = []
    for witness in settings.witnesses:
        witnesses.append(await app.resources.enter_async_context(WitnessLink(witness.url, witness.verifier)))
    recheck = Recheck(database, Store(), sealer, signer.verifier, [witness.verifier for witness in witnesses])
    service = AuditService(database, Store(), sealer, signer, copies, CheckpointAnnouncer(), audit, witnesses)
    oversight = OversightService(
        database, Store(), OversightStore(), sealer, signer, AlertAnnouncer(), audit, clock,
        timedelta(seconds=settings.settled_s), timedelta(seconds=settings.silence_s),
    )  # fmt: skip

    async def recheck_some() -> None:
        found, is_round = await recheck.step()
        service.rechecked = recheck.size
        for finding in found:
            telemetry.log().error("the log is not what was signed", finding=str(finding))
            service.distrust(str(finding))
            await oversight.dispute(str(finding))
        if is_round:
            await asyncio.sleep(settings.recheck_s)

    async def ask_witnesses() -> None:
        for why in await service.ask_witnesses():
            await oversight.dispute(why)

    await wait_for("PostgreSQL", lambda: _check(service, settings.checkpoint_dir))
    server = Server(settings.rpc, ALLOWED, TokenVerifier(settings.oidc), audit)
    add_AuditServiceServicer_to_server(AuditApi(service), server.grpc)
    add_OversightServiceServicer_to_server(OversightApi(oversight), server.grpc)
    records = BatchReader(
        "audit", RecordReader.topics, RecordReader(service, publisher), settings.kafka, publisher, _LINGER_S, _RECORDS_AT_ONCE
    )
    accounts = BatchReader("audit-accounts", AccountReader.topics, AccountReader(oversight), settings.kafka, publisher, _LINGER_S)
    app.ship(database, audit)
    await server.start()
    app.resources.push_async_callback(server.grpc.stop, 2)
    app.read("records", settings.kafka, RecordReader.topics, records.consume)
    app.read("accounts", settings.kafka, AccountReader.topics, accounts.consume)
    app.repeat("integration", _PAUSE_S, service.integrate_soon)
    app.repeat("recheck", _RECHECK_PAUSE_S, recheck_some)
    distance = Distance(settings.kafka, records.name, RecordReader.topics)
    app.resources.push_async_callback(distance.close)
    app.repeat("distance to the topic's end", _DISTANCE_S, lambda: _measure(service, distance))
    app.repeat("witnesses", _WITNESS_S, ask_witnesses)
    app.repeat("observation", _OBSERVE_S, lambda: _watch_over(oversight.observe))
    app.repeat("judgement", settings.judge_s, lambda: _watch_over(oversight.judge))
    await app.ready()
    await app.topics(settings.kafka, (AUDIT_CHECKPOINT, AUDIT_ALERT))


async def _check(service: AuditService, folder: Path) -> None:
    """Go on only with a log that is the one whose checkpoints lie there."""
    try:
        await service.check_copies()
    except Inconsistent as error:
        raise Misconfigured(f"the log is not gone on with: {error}") from error
    except (ValueError, KeyError) as error:
        raise Misconfigured(f"the newest checkpoint in {folder} cannot be read: {error!r}") from error


async def _measure(service: AuditService, distance: Distance) -> None:
    service.measured(await distance.measure())


async def _watch_over(work: Callable[[], Awaitable[object]]) -> None:
    """Whatever is wrong with oversight, the log goes on."""
    try:
        while await work():
            pass
    except TRANSIENT:
        raise
    except Exception:
        telemetry.log().exception("oversight does not go on until somebody mends this")


def _master_key(file: Path) -> bytes:
    try:
        key = base64.b64decode(file.read_text().strip(), validate=True)
    except ValueError as error:
        raise Misconfigured(f"{file} is no master key: 32 bytes as base64") from error
    if len(key) != 32:
        raise Misconfigured(f"{file} is no master key: {len(key)} bytes instead of 32, as base64")
    return key


if __name__ == "__main__":
    run("audit", AuditSettings, main, Path(__file__).parent / "migrations")
