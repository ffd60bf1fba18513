"""`python -m bench.audit`: what the audit log takes, and how late it is; printed, and kept in bench/results/audit.json.

Every stage is compared with a floor measured in the same run: rows of the same bytes that PostgreSQL is only given to keep.
"""

import asyncio
import base64
import json
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from chassis.audit import Audit
from chassis.bus import Publisher, client_config
from chassis.clock import SystemClock
from chassis.db import Database, Transaction, migrate
from chassis.identity import Caller, Machine, Person
from chassis.sealing import Sealer
from chassis.settings import DatabaseSettings, KafkaSettings
from confluent_kafka import Producer
from contracts.topics import AUDIT_RECORD
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table
from sightline.audit.v1.record_pb2 import AUDIT_OUTCOME_DONE, AuditRecord
from sightline.common.v1.actor_pb2 import ACTOR_KIND_PERSON, Actor
from testkit.backing import make_database
from testkit.trial.rig import Rig
from tlog.merkle import Frontier, leaf_hash
from tlog.note import Checkpoint, SignedNote, Signer
from uuid_utils import uuid7

from bench.measure import Line, line, seconds_used
from services.audit.events import to_arrived
from services.audit.model import Signed
from services.audit.service import AuditService
from services.audit.store import FileCopies, Store
from tools.audit import Header, check_bundle
from tools.local import stack as local
from tools.local.stack import ROOT, Stack, process_named
from tools.roster import AGENCY

RESULTS = Path(__file__).parent / "results"
_PRODUCERS, _ACTORS, _WITHIN_S = 6, 200, 120.0
_PROOFS = 300
out, err = Console(width=130), Console(stderr=True)


@dataclass
class Result:
    """One run. Rates are leaves per second of wall time; `cores` are processor seconds of the audit service per second."""

    at: str
    machine: str
    leaves: int = 0
    durable: float = 0.0
    cores: float = 0.0
    floor: float = 0.0
    provable: list[Line] | None = None
    proof_leaves: int = 0
    inclusion: Line | None = None
    consistency: Line | None = None
    verifier: float = 0.0
    hashing: float = 0.0


def _record(n: int, producer: str, number: int) -> AuditRecord:
    record = AuditRecord(
        record_id=str(uuid7()), producer=producer, producer_seq=number, action="grant.issued", outcome=AUDIT_OUTCOME_DONE,
        actor=Actor(kind=ACTOR_KIND_PERSON, id=f"analyst-{n % _ACTORS}", agency_id=AGENCY), target=f"grants/{uuid7()}", agency_id=AGENCY,
        emergency_id=str(uuid7()), details={"camera": f"cam-{n % 997}", "session": str(uuid7()), "bytes": "0"},
        trace_id=f"{n:032x}",
    )  # fmt: skip
    record.at.FromDatetime(datetime.now(UTC))
    return record


def _producer(stack: Stack) -> Producer:
    config = client_config(KafkaSettings(bootstrap=stack.kafka, security="PLAINTEXT"))
    # A backlog waits its turn longer than a service would let a record wait.
    return Producer(config | {"linger.ms": 5, "queue.buffering.max.messages": 1_000_000, "message.timeout.ms": 120_000})


def _give(producer: Producer, record: AuditRecord) -> None:
    def told(error: object, _: object) -> None:
        if error:
            raise RuntimeError(f"Kafka has not taken a record: {error}")

    producer.produce(AUDIT_RECORD.name, record.SerializeToString(), record.producer.encode(), on_delivery=told)
    producer.poll(0)


class Numbers:
    """Numbers of made-up producers, dense as they must be."""

    def __init__(self) -> None:
        self._run, self._next = f"bench-{uuid7()}"[-12:], [1] * _PRODUCERS

    def records(self, count: int) -> Iterator[AuditRecord]:
        """So many more."""
        for n in range(count):
            which = n % _PRODUCERS
            yield _record(n, f"{self._run}-{which}", self._next[which])
            self._next[which] += 1


async def _signed(db: psycopg.AsyncConnection[Any]) -> int:
    row = await (await db.execute("SELECT coalesce(max(size), 0) FROM audit.checkpoint")).fetchone()
    return int(row[0]) if row else 0


async def _throughput(result: Result, stack: Stack, numbers: Numbers, db: psycopg.AsyncConnection[Any], count: int) -> None:
    """A backlog: from the first checkpoint over some of it to the one over all of it."""
    async with Rig(stack) as rig:
        async with rig.down("audit-a"):
            before, producer = await _signed(db), _producer(stack)
            for record in numbers.records(count):
                _give(producer, record)
            producer.flush()
        begun, first, used = 0.0, 0, 0.0
        pid = process_named(stack, "audit-a").pid
        async with asyncio.timeout(_WITHIN_S):
            while (size := await _signed(db)) < before + count:
                if not begun and size > before:
                    begun, first, used = time.monotonic(), size, seconds_used(pid)
                await asyncio.sleep(0.02)
    took = time.monotonic() - begun
    result.leaves, result.durable = size - first, (size - first) / took
    result.cores = (seconds_used(pid) - used) / took


async def _floor(result: Result, db: psycopg.AsyncConnection[Any], count: int) -> None:
    """The same bytes, in transactions of the same size, into a table with one key: what keeping them takes at the least."""
    rows = [(n, os.urandom(300), os.urandom(300)) for n in range(count)]
    await db.execute("CREATE TABLE public.bench_floor (index bigint PRIMARY KEY, leaf bytea, sealed bytea)")
    begun = time.monotonic()
    for at in range(0, count, 500):
        some = rows[at : at + 500]
        columns = [list(column) for column in zip(*some, strict=True)]
        await db.execute("INSERT INTO public.bench_floor SELECT * FROM unnest(%s::bigint[], %s::bytea[], %s::bytea[])", columns)
    result.floor = count / (time.monotonic() - begun)
    await db.execute("DROP TABLE public.bench_floor")


async def _provable(stack: Stack, numbers: Numbers, db: psycopg.AsyncConnection[Any], rate: float, seconds: float) -> Line:
    """From the moment a record goes to Kafka until a signed checkpoint covers its leaf, at a steady rate."""
    producer = _producer(stack)
    sent: dict[str, float] = {}
    came: dict[str, float] = {}
    count = int(rate * seconds)
    seen = await _signed(db)

    async def send() -> None:
        begun = time.monotonic()
        for n, record in enumerate(numbers.records(count)):
            await asyncio.sleep(max(0.0, begun + n / rate - time.monotonic()))
            sent[record.record_id] = time.monotonic()
            _give(producer, record)

    sending = asyncio.create_task(send())
    async with asyncio.timeout(_WITHIN_S):
        while len(came) < count:
            size, now = await _signed(db), time.monotonic()
            if size > seen:
                found = await db.execute("SELECT record_id::text FROM audit.leaf WHERE index >= %s AND index < %s", [seen, size])
                came |= {row[0]: now for row in await found.fetchall() if row[0] in sent}
                seen = size
            await asyncio.sleep(0.004)
    await sending
    return line(f"record → provable, {rate:g}/s", [1000 * (came[name] - at) for name, at in sent.items()])


class _Silent:
    """Announces nothing."""

    def announce(self, tx: Transaction, signed: Signed) -> None:
        """Nothing."""


def _checkpoint(signer: Signer, frontier: Frontier) -> str:
    text = str(Checkpoint(signer.verifier.name, frontier.size, frontier.root()))
    return str(SignedNote(text, (signer.sign(text),)))


def _grown(url: str, leaves: int, probes: set[int], sealer: Sealer, signer: Signer) -> int:
    """A log of so many leaves in a database of its own, and a checkpoint at a third of it; only the probes have a personal part."""
    nodes: list[tuple[int, int, bytes]] = []
    frontier, key_id, subject = Frontier(), str(uuid7()), sealer.tag("actor", AGENCY, "sam")
    wrapped, now, third = sealer.new_key(subject), datetime.now(UTC), leaves // 3
    columns = "(index, record_id, producer, producer_seq, action, agency_id, emergency_id, at, leaf, key_id, target, sealed)"
    with psycopg.connect(url, options="-c search_path=audit") as db, db.cursor() as cursor:
        cursor.execute("INSERT INTO subject_key VALUES (%s, %s, %s)", [key_id, subject, wrapped])
        with cursor.copy(f"COPY leaf {columns} FROM STDIN") as copy:
            for n in range(leaves):
                leaf = b"\x01" + n.to_bytes(8) * 20
                sealed = sealer.seal(wrapped, subject, b"x" * 150, leaf_hash(leaf)) if n in probes else b""
                copy.write_row((n, str(uuid7()), "bench", n + 1, "bench", AGENCY, "", now, leaf, key_id, b"", sealed))
                nodes += frontier.append(leaf_hash(leaf))
                if frontier.size == third:
                    old = Signed(third, frontier.root(), _checkpoint(signer, frontier))
        with cursor.copy("COPY node (level, index, hash) FROM STDIN") as copy:
            for node in nodes:
                copy.write_row(node)
        for signed in (old, Signed(leaves, frontier.root(), _checkpoint(signer, frontier))):
            cursor.execute("INSERT INTO checkpoint (size, root, note) VALUES (%s, %s, %s)", [signed.size, signed.root, signed.note])
    with psycopg.connect(url, options="-c search_path=audit", autocommit=True) as db:
        db.execute("ANALYZE")
    return third


async def _proofs(result: Result, stack: Stack, folder: Path, leaves: int) -> None:
    """What one entry with its proof, and one proof of consistency, take inside the service: PostgreSQL, opening, recording the reading."""
    url = make_database(stack.database, "sightline_bench")
    migrate(url, "audit", ROOT / "services" / "audit" / "migrations")
    sealer, signer = Sealer(os.urandom(32)), Signer("bench.example/audit", Ed25519PrivateKey.generate())
    probes = [secrets.randbelow(leaves) for _ in range(_PROOFS)]
    third = await asyncio.to_thread(_grown, url, leaves, set(probes), sealer, signer)
    publisher = Publisher(KafkaSettings(bootstrap=stack.kafka, security="PLAINTEXT"))
    database = Database(DatabaseSettings(url=url), "audit", publisher)
    await database.open()
    audit = Audit("audit", AUDIT_RECORD, database, publisher, SystemClock())
    service = AuditService(database, Store(), sealer, signer, FileCopies(folder), _Silent(), audit)
    auditor = Caller(Machine("t", "platform", "cli", "bench"), Person("ada", AGENCY, frozenset({"auditor"})))
    took: dict[str, list[float]] = {"inclusion": [], "consistency": []}
    for index in probes:
        begun = time.monotonic()
        await service.entry(auditor, index)
        took["inclusion"].append(1000 * (time.monotonic() - begun))
        begun = time.monotonic()
        await service.prove_consistency(auditor, third)
        took["consistency"].append(1000 * (time.monotonic() - begun))
    await database.close()
    await publisher.close()
    result.proof_leaves = leaves
    result.inclusion, result.consistency = (
        line("entry with its proof", took["inclusion"]),
        line("proof of consistency", took["consistency"]),
    )


def _verifier(result: Result, folder: Path, count: int) -> None:
    """An exported log of so many leaves, checked offline; beside the least that takes: hashing the leaves and the tree."""
    signer, frontier, path = Signer("bench.example/audit", Ed25519PrivateKey.generate()), Frontier(), folder / "bundle.jsonl"
    leaves = [to_arrived(record, os.urandom(32)).leaf for record in Numbers().records(count)]
    begun = time.monotonic()
    for leaf in leaves:
        list(frontier.append(leaf_hash(leaf)))
    result.hashing = count / (time.monotonic() - begun)
    lines = [json.dumps({"hash": leaf_hash(leaf).hex(), "leaf": base64.b64encode(leaf).decode()}) for leaf in leaves]
    path.write_text("\n".join([Header("log", str(signer.verifier), [], _checkpoint(signer, frontier), "", []).line(), *lines]) + "\n")
    begun = time.monotonic()
    verdict = check_bundle(path, str(signer.verifier), [], lambda done, total: None)
    result.verifier = count / (time.monotonic() - begun)
    if not verdict.good or verdict.checked != count:
        raise SystemExit(f"the verifier has found something: {verdict.findings[:3]} {verdict.missing[:3]}")


async def run(result: Result, data: Path, leaves: int, rates: Sequence[float], seconds: float, proof_leaves: int) -> None:
    """All of it, one after the other."""
    with err.status("starting") as status:
        stack = await asyncio.to_thread(local.up, data, status.update)
        numbers = Numbers()
        async with await psycopg.AsyncConnection.connect(stack.database, autocommit=True) as db:
            status.update("durable leaves a second")
            await _floor(result, db, leaves)
            await _throughput(result, stack, numbers, db, leaves)
            status.update("from record to provable")
            result.provable = [await _provable(stack, numbers, db, rate, seconds) for rate in rates]
        status.update(f"proofs in a log of {proof_leaves:,} leaves")
        await _proofs(result, stack, data, proof_leaves)
    with err.status("the verifier"):
        _verifier(result, data, leaves)


def show(result: Result) -> None:
    """Print."""
    out.print(
        f"durable, encrypted, rehashed and signed: {result.durable:,.0f} leaves/s of a backlog of {result.leaves:,}"
        f" ({result.cores:.2f} cores of the service); PostgreSQL alone keeps such rows at {result.floor:,.0f}/s", highlight=False,
    )  # fmt: skip
    table = Table("ms", "n", "p50", "p95", "p99", "max", title=f"proofs in a log of {result.proof_leaves:,} leaves", title_justify="left")
    for each in (*(result.provable or ()), result.inclusion, result.consistency):
        if each:
            table.add_row(each.name, str(each.count), *(f"{value:.1f}" for value in (each.p50, each.p95, each.p99, each.max)))
    out.print(table)
    out.print(f"verifier, offline: {result.verifier:,.0f} leaves/s; hashing alone {result.hashing:,.0f}/s", highlight=False)


def main(
    leaves: Annotated[int, typer.Option(help="Records of the backlog, and leaves that the verifier checks.")] = 40_000,
    rate: Annotated[list[float] | None, typer.Option(help="Records a second, for the time from record to provable.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of each of those.")] = 10,
    proof_leaves: Annotated[int, typer.Option(help="Size of the log that proofs are asked of.")] = 1_000_000,
) -> None:
    """Measure the audit log on this machine."""
    now, data = datetime.now(UTC).isoformat(timespec="seconds"), Path(tempfile.mkdtemp(prefix="sightline-bench-"))
    result = Result(now, f"{os.cpu_count()} cores, {platform.machine()}")
    try:
        asyncio.run(run(result, data, leaves, rate or [20, 200], seconds, proof_leaves))
    finally:
        local.down(data, lambda text: None, purge=True)
    show(result)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "audit.json").write_text(json.dumps(asdict(result), indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
