"""Records become leaves once and in order, proofs hold, and a database that was touched is not signed; on a real PostgreSQL."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from chassis.audit import Audit
from chassis.bus import Publisher, Received, Record
from chassis.clock import SystemClock
from chassis.db import Database, Transaction
from chassis.errors import InvalidRequest, NotFound, PoisonError, Unavailable
from chassis.identity import Caller, Machine, Person
from chassis.reader import BatchReader, Distance, Lag
from chassis.sealing import Sealer, Unsealable
from chassis.settings import DatabaseSettings, KafkaSettings
from contracts.topics import AUDIT_RECORD
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pymerkle import InmemoryTree
from sightline.audit.v1.leaf_pb2 import AuditLeaf, AuditPersonal
from sightline.audit.v1.record_pb2 import AUDIT_OUTCOME_DONE, AuditRecord
from sightline.common.v1.actor_pb2 import ACTOR_KIND_PERSON, Actor
from tlog.merkle import Frontier, check_consistency, check_inclusion, leaf_hash
from tlog.note import Checkpoint, SignedNote, Signer, open_checkpoint
from uuid_utils import uuid7

from services.audit.events import RecordReader, to_arrived
from services.audit.model import LEAF_VERSION, Arrived, Inconsistent, Search, Signed, personal_hash
from services.audit.service import AuditService, Recheck
from services.audit.store import FileCopies, Store

SCHEMA = "audit"
LOG = Signer("test.example/audit", Ed25519PrivateKey.generate())
SEALER = Sealer(bytes(range(32)))
AUDITOR = Caller(Machine("t", "platform", "console", "c"), Person("ada", "pd", frozenset({"auditor"})))


class Told:
    def __init__(self) -> None:
        self.signed: list[Signed] = []

    def announce(self, tx: Transaction, signed: Signed) -> None:
        self.signed.append(signed)


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def _empty(database: Database, databases: DatabaseSettings) -> AsyncIterator[None]:
    """A log of its own for every test."""
    async with database.statements() as db:
        await db.execute("TRUNCATE leaf, node, checkpoint, cosignature, subject_key, forgotten, producer")
    yield


@pytest.fixture
def told() -> Told:
    return Told()


def make(database: Database, publisher: Publisher, told: Told, folder: Path) -> AuditService:
    audit = Audit("audit", AUDIT_RECORD, database, publisher, SystemClock())
    return AuditService(database, Store(), SEALER, LOG, FileCopies(folder), told, audit)


@pytest.fixture
def log(database: Database, publisher: Publisher, told: Told, tmp_path: Path) -> AuditService:
    return make(database, publisher, told, tmp_path)


def record(n: int, producer: str = "streams", agency: str = "pd", actor: str = "sam") -> AuditRecord:
    found = AuditRecord(
        record_id=str(uuid7()), producer=producer, producer_seq=n, action="grant.issued", outcome=AUDIT_OUTCOME_DONE,
        actor=Actor(kind=ACTOR_KIND_PERSON, id=actor, agency_id=agency), target=f"grants/{n}", agency_id=agency,
        details={"viewer": actor, "camera": f"cam-{n}"},
    )  # fmt: skip
    found.at.FromDatetime(datetime.now(UTC))
    return found


def arrived(records: Sequence[AuditRecord]) -> list[Arrived]:
    return [to_arrived(each, random.randbytes(32)) for each in records]


async def take(log: AuditService, records: Sequence[AuditRecord]) -> None:
    await log.take(arrived(records))
    await log.integrate()


async def newest(log: AuditService) -> Checkpoint:
    state = await log.log(AUDITOR)
    assert state.key == str(LOG.verifier)
    return open_checkpoint(state.checkpoint, LOG.verifier)[0]


async def test_every_record_is_one_leaf_however_often_it_comes(log: AuditService, database: Database) -> None:
    records = [record(n) for n in range(1, 41)]
    dice = random.Random(1)
    for _ in range(6):
        some = dice.sample(records, 25)
        await log.take(arrived(some + some[:5]))
    await take(log, records)
    async with database.statements() as db:
        rows = await db.all("SELECT index, record_id::text FROM leaf ORDER BY index")
    assert [row["index"] for row in rows] == list(range(40))
    assert {row["record_id"] for row in rows} == {each.record_id for each in records}
    assert (await newest(log)).size == 40
    [producer] = (await log.log(AUDITOR)).producers
    assert (producer.highest, producer.missing) == (40, 0)


async def test_what_is_missing_is_counted(log: AuditService) -> None:
    await take(log, [record(1), record(2), record(5), record(7, "registry")])
    assert [(p.producer, p.highest, p.missing) for p in (await log.log(AUDITOR)).producers] == [("registry", 7, 6), ("streams", 5, 2)]


async def test_a_number_with_two_records_is_refused_and_the_first_stays(log: AuditService) -> None:
    first = record(1)
    await take(log, [first])
    for batch in ([record(1)], [record(2), record(2)]):
        with pytest.raises(PoisonError, match="two records"):
            await take(log, batch)
    assert (await newest(log)).size == 1


async def test_every_entry_is_proved_by_an_implementation_that_is_not_ours(log: AuditService) -> None:
    other, old = InmemoryTree(algorithm="sha256"), []
    for some in (range(1, 4), range(4, 5), range(5, 38)):
        await take(log, [record(n) for n in some])
        old.append(await newest(log))
    point = old[-1]
    for index in range(point.size):
        entry, note, path = await log.entry(AUDITOR, index)
        check_inclusion(leaf_hash(entry.leaf), index, point.size, path, open_checkpoint(note, LOG.verifier)[0].root)
        other.append_entry(entry.leaf)
        content = AuditLeaf.FromString(entry.leaf.removeprefix(LEAF_VERSION))
        assert personal_hash(entry.personal) == content.personal_hash
        assert AuditPersonal.FromString(entry.personal).actor.id == "sam"
    assert [other.get_root(each.size) for each in old] == [each.root for each in old]
    for each in old:
        note, path = await log.prove_consistency(AUDITOR, each.size)
        check_consistency(each.size, each.root, point.size, open_checkpoint(note, LOG.verifier)[0].root, path)
    with pytest.raises(InvalidRequest):
        await log.prove_consistency(AUDITOR, point.size + 1)
    with pytest.raises(NotFound):
        await log.entry(AUDITOR, point.size)


async def test_several_replicas_make_one_log(database: Database, publisher: Publisher, told: Told, tmp_path: Path) -> None:
    replicas = [make(database, publisher, told, tmp_path) for _ in range(3)]
    records = [record(n) for n in range(1, 91)]
    batches = [records[at : at + 9] for at in range(0, 90, 9)] * 2
    await asyncio.gather(*(take(replicas[n % 3], batch) for n, batch in enumerate(batches)))
    point = await newest(replicas[0])
    assert point.size == 90
    sizes = [signed.size for signed in told.signed]
    assert sizes == sorted(set(sizes))


async def test_leaves_without_a_checkpoint_get_one_later(log: AuditService) -> None:
    """As after a death between the two."""
    await take(log, [record(1)])
    await log.take(arrived([record(2), record(3)]))
    assert (await newest(log)).size == 1
    with pytest.raises(NotFound):
        await log.entry(AUDITOR, 2)  # it cannot be proved yet
    await log.integrate()
    assert (await newest(log)).size == 3


TOUCHED = {
    "a leaf is gone": "DELETE FROM leaf WHERE index = 6",
    "a node at the edge is another": "UPDATE node SET hash = sha256('x') WHERE (level, index) = (2, 0)",
    "a node at the edge is gone": "DELETE FROM node WHERE (level, index) = (0, 4)",
    "the root is another": "UPDATE checkpoint SET root = sha256('x') WHERE size = 5",
}


@pytest.mark.parametrize("sql", TOUCHED.values(), ids=TOUCHED.keys())
async def test_a_touched_database_is_not_signed(log: AuditService, database: Database, sql: str) -> None:
    await take(log, [record(n) for n in range(1, 6)])
    await log.take(arrived([record(n) for n in range(6, 9)]))
    async with database.statements() as db:
        assert await db.execute(sql) == 1
    with pytest.raises(Inconsistent):
        await log.integrate()
    assert (await newest(log)).size == 5


async def test_an_older_copy_of_the_database_is_not_gone_on_with(
    log: AuditService, database: Database, publisher: Publisher, told: Told, tmp_path: Path
) -> None:
    await take(log, [record(1)])
    await log.check_copies()
    await take(log, [record(2), record(3)])
    async with database.statements() as db:  # as it was after the first
        for table in ("leaf WHERE index > 0", "node WHERE level > 0 OR index > 0", "checkpoint WHERE size > 1"):
            await db.execute(f"DELETE FROM {table}")
    with pytest.raises(Inconsistent, match="an older copy"):
        await log.check_copies()
    # And others appended to it, so that it is longer than what was signed.
    fork = make(database, publisher, told, tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    await take(fork, [record(n, "other") for n in range(1, 9)])
    with pytest.raises(Inconsistent, match="not the one that was signed"):
        await log.check_copies()
    # Nor when the database is exchanged under a service that runs.
    await log.take(arrived([record(9, "other")]))
    with pytest.raises(Inconsistent, match="not the one that was signed"):
        await log.integrate()


async def test_the_edge_of_the_old_tree_under_a_new_root_is_not_enough(log: AuditService, database: Database) -> None:
    """Somebody who has only the database leaves the nodes that the old root is folded from, and exchanges the rest."""
    await take(log, [record(n) for n in range(1, 6)])
    async with database.statements() as db:
        there = {(r["level"], r["index"]): bytes(r["hash"]) for r in await db.all("SELECT level, index, hash FROM node")}
    fork, nodes = Frontier(), []
    for n in range(8):
        nodes += list(fork.append(leaf_hash(b"%d" % n)))
    text = str(Checkpoint(LOG.verifier.name, 8, fork.root()))
    async with database.statements() as db:
        for level, index, hashed in nodes:
            kept = there[level, index] if (level, index) in ((2, 0), (0, 4)) else hashed
            await db.execute(
                "INSERT INTO node VALUES (%s, %s, %s) ON CONFLICT (level, index) DO UPDATE SET hash = excluded.hash", [level, index, kept]
            )
        note = str(SignedNote(text, (LOG.sign(text),)))
        await db.execute("INSERT INTO checkpoint VALUES (8, %s, %s)", [fork.root(), note])
    with pytest.raises(Inconsistent, match="not the one that was signed"):
        await log.check_copies()


async def test_a_checkpoint_that_others_wrote_is_not_gone_on_from(log: AuditService, database: Database) -> None:
    await take(log, [record(1)])
    text = str(Checkpoint(LOG.verifier.name, 1, bytes(32)))
    forger = Signer(LOG.verifier.name, Ed25519PrivateKey.generate())
    async with database.statements() as db:
        await db.execute("UPDATE checkpoint SET note = %s", [str(SignedNote(text, (forger.sign(text),)))])
    await log.take(arrived([record(2)]))
    with pytest.raises(Inconsistent, match="not ours"):
        await log.integrate()


async def test_who_has_only_a_database_cannot_read_names_and_a_forgotten_one_is_gone(log: AuditService, database: Database) -> None:
    await take(log, [record(1, actor="sam"), record(2, actor="kim")])
    async with database.statements() as db:
        [row] = await db.all("SELECT string_agg(encode(leaf || sealed || target, 'escape'), '') AS bytes FROM leaf")
        assert "sam" not in row["bytes"]
        await db.execute("DELETE FROM subject_key WHERE subject = %s", [SEALER.tag("actor", "pd", "sam")])
    entry, note, path = await log.entry(AUDITOR, 0)
    assert entry.personal == b""
    check_inclusion(leaf_hash(entry.leaf), 0, 2, path, open_checkpoint(note, LOG.verifier)[0].root)  # the tree is whole
    assert (await log.entry(AUDITOR, 1))[0].personal
    # Who comes back gets another key: what was forgotten stays so, and hurts nobody who reads.
    await take(log, [record(3, actor="sam")])
    assert [bool(entry.personal) for entry in await log.search(AUDITOR, Search("pd"), None, 10)] == [True, True, False]
    assert [entry.index for entry in await log.search(AUDITOR, Search("pd", actor_id="sam"), None, 10)] == [2]


async def test_who_is_forgotten_is_forgotten_for_ever_and_the_log_says_so(log: AuditService, database: Database) -> None:
    recheck = Recheck(database, Store(), SEALER, LOG.verifier)
    await take(log, [record(1, actor="sam"), record(2, actor="kim")])
    await log.take(arrived([record(3, actor="sam")]))
    with pytest.raises(Unavailable, match="not signed yet"):
        await log.forget(AUDITOR, "pd", "sam", "decision 17 of the court")
    await log.integrate()
    await log.forget(AUDITOR, "pd", "sam", "decision 17 of the court")
    for agency, actor in (("pd", "sam"), ("pd", "nobody"), ("elsewhere", "kim")):
        with pytest.raises(NotFound):
            await log.forget(AUDITOR, agency, actor, "again")
    assert [bool((await log.entry(AUDITOR, index))[0].personal) for index in range(3)] == [False, True, False]
    assert (await recheck.step())[0] == []  # at once, whenever the record of it comes
    async with database.statements() as db:
        rows = await db.all("SELECT record FROM audit_record")
        assert "subject.forgotten" in {AuditRecord.FromString(bytes(row["record"])).action for row in rows}
        # Somebody who has only the database cannot forget: neither silently nor with a mark of his own.
        await db.execute("UPDATE forgotten SET mark = sha256(mark)")
        assert [each.since for each in (await recheck.step())[0]] == [0, 2]
        await db.execute("DELETE FROM forgotten")
        assert [each.since for each in (await recheck.step())[0]] == [0, 2]


async def test_entries_are_found_by_whom_what_and_when_within_the_agency(log: AuditService) -> None:
    await take(log, [record(1), record(2, actor="kim"), record(3, agency="other"), record(4, actor="kim")])
    now = datetime.now(UTC)

    async def found(search: Search, before: int | None = None, limit: int = 10) -> list[int]:
        return [entry.index for entry in await log.search(AUDITOR, search, before, limit)]

    assert await found(Search("pd")) == [3, 1, 0]
    assert await found(Search("pd"), before=3, limit=1) == [1]
    assert await found(Search("pd", actor_id="kim")) == [3, 1]
    assert await found(Search("pd", target="grants/1")) == [0]
    assert await found(Search("pd", action="grant.revoked")) == []
    assert await found(Search("pd", since=now + timedelta(hours=1))) == []
    assert await found(Search("pd", until=now + timedelta(hours=1))) == [3, 1, 0]
    with pytest.raises(NotFound):
        await log.entry(AUDITOR, 2)  # another agency's


def test_what_is_no_record_has_no_place() -> None:
    for change in (
        {"record_id": "x"}, {"producer_seq": 0}, {"producer": ""}, {"action": ""}, {"producer": "p\0"},
        {"target": "t" * 3000}, {"agency_id": "a" * 300},
    ):  # fmt: skip
        bad = record(1)
        for name, value in change.items():
            setattr(bad, name, value)
        with pytest.raises(PoisonError):
            to_arrived(bad, bytes(32))
    timeless = record(1)
    timeless.ClearField("at")
    with pytest.raises(PoisonError):
        to_arrived(timeless, bytes(32))


async def test_a_record_that_cannot_be_kept_has_a_leaf_that_says_so(log: AuditService, publisher: Publisher, database: Database) -> None:
    good, bad, worse = record(1), record(2), record(3)
    bad.target, worse.record_id = "t" * 3000, "x"
    received = [
        Received(AUDIT_RECORD.name, 0, n, datetime.now(UTC), b"k", each.SerializeToString(), {})
        for n, each in enumerate((good, bad, worse))
    ]
    reader = RecordReader(log, publisher)
    for _ in range(2):  # the same again is the same leaf
        await reader(received)
        await log.integrate()
    assert (await newest(log)).size == 3
    [producer] = (await log.log(AUDITOR)).producers
    assert (producer.highest, producer.missing) == (3, 0)
    async with database.statements() as db:
        rows = await db.all("SELECT action, record_id::text FROM leaf ORDER BY index")
    assert [row["action"] for row in rows] == ["grant.issued", "record.unreadable", "record.unreadable"]
    assert rows[1]["record_id"] == bad.record_id
    worse.producer_seq = 0
    with pytest.raises(PoisonError):  # nobody knows whose place it would be
        await reader([received[2]._replace(value=worse.SerializeToString())])


def received(records: Sequence[AuditRecord]) -> list[Received]:
    return [Received(AUDIT_RECORD.name, 0, n, datetime.now(UTC), b"k", each.SerializeToString(), {}) for n, each in enumerate(records)]


async def _read(log: AuditService, publisher: Publisher, kafka: KafkaSettings, batch: Sequence[Received]) -> None:
    """As the service's own reader does: what fails comes again in halves."""
    reader = BatchReader("audit-test", RecordReader.topics, RecordReader(log, publisher), kafka, publisher, 0.1)
    await asyncio.wait_for(reader._handle_all(batch), 30)
    await log.integrate()


async def test_a_known_id_under_another_number_never_stops_the_log(
    log: AuditService, publisher: Publisher, kafka: KafkaSettings, database: Database
) -> None:
    """B7: with its own producer's number or another's, alone or among others, of before or of the same batch; and all of it again."""
    await take(log, [record(1)])
    async with database.statements() as db:
        first = await db.one("SELECT record_id::text FROM leaf")
    assert first is not None
    records = [record(n) for n in range(2, 9)] + [record(1, "registry"), record(2, "registry")]
    records[2].record_id, records[7].record_id = first["record_id"], first["record_id"]  # a number of streams, one of the registry
    records[5].record_id = records[4].record_id
    for _ in range(2):
        await _read(log, publisher, kafka, received(records))
        await _read(log, publisher, kafka, received([record(9 + _)]))
    async with database.statements() as db:
        rows = await db.all("SELECT producer, producer_seq, action FROM leaf ORDER BY index")
    odd = {(row["producer"], row["producer_seq"]) for row in rows if row["action"] == "record.unreadable"}
    assert odd == {("streams", 4), ("streams", 7), ("registry", 1)}
    assert (await newest(log)).size == len(rows) == 12
    assert {(p.producer, p.highest, p.missing) for p in (await log.log(AUDITOR)).producers} == {("streams", 10, 0), ("registry", 2, 0)}
    assert not (await log.health()).problem


async def test_what_is_wrong_with_us_makes_records_wait(log: AuditService, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug must not turn every record into an empty place."""

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(log, "_append", broken)
    with pytest.raises(Unavailable, match="a bug of ours"):
        await RecordReader(log, publisher)(received([record(1)]))


async def test_health_measures_the_distance_to_the_topics_end(log: AuditService, monkeypatch: pytest.MonkeyPatch) -> None:
    """B7: a reader that hangs has nothing to sign, and looked well."""
    now = time.monotonic()
    monkeypatch.setattr("services.audit.service.time", SimpleNamespace(monotonic=lambda: now))
    await take(log, [record(1)])
    log.measured({("t", 0): Lag(40, 100), ("t", 1): Lag(0, 7)})
    log.measured({("t", 0): Lag(70, 100), ("t", 1): Lag(0, 7)})
    assert ((await log.health()).problem, (await log.health()).waiting) == ("", 70)
    now += 16
    log._looked_at = now  # it signs what it has: nothing
    log.measured({("t", 0): Lag(90, 100), ("t", 1): Lag(3, 20)})
    assert "90 records wait on the topic" in (await log.health()).problem  # although the other partition goes on
    log.measured({("t", 0): Lag(80, 110), ("t", 1): Lag(3, 20)})
    assert not (await log.health()).problem
    now += 61
    log._looked_at = now
    assert "has not been known" in (await log.health()).problem


async def test_the_distance_is_that_of_the_group_to_the_brokers_end(kafka: KafkaSettings, publisher: Publisher) -> None:
    for n in range(1, 4):
        await publisher.publish(Record.of(AUDIT_RECORD, b"distance", record(n, "distance"), source="test", subject="x"))
    distance = Distance(kafka, f"distance-{uuid7()}", (AUDIT_RECORD,))
    lags = await distance.measure()
    assert sum(lag.behind for lag in lags.values()) >= 3
    assert {place: lag.committed for place, lag in (await distance.measure()).items()} == {p: lag.committed for p, lag in lags.items()}
    await distance.close()


def test_what_is_sealed_opens_only_at_its_place() -> None:
    subject = SEALER.tag("actor", "pd", "sam")
    wrapped = SEALER.new_key(subject)
    sealed = SEALER.seal(wrapped, subject, b"content", b"place")
    assert SEALER.open(wrapped, subject, sealed, b"place") == b"content"
    for key, who, what, place in (
        (SEALER.new_key(subject), subject, sealed, b"place"),
        (wrapped, SEALER.tag("actor", "pd", "kim"), sealed, b"place"),
        (wrapped, subject, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"place"),
        (wrapped, subject, sealed, b"elsewhere"),
        (wrapped, subject, b"", b"place"),
    ):
        with pytest.raises(Unsealable):
            SEALER.open(key, who, what, place)
    with pytest.raises(ValueError, match="32"):
        Sealer(b"short")
