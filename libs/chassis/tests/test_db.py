"""Transactions, outbox and audit numbering on a real PostgreSQL and Kafka."""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from chassis import db
from chassis.audit import Audit, Entry
from chassis.bus import Publisher, Received, Record
from chassis.clock import PlatformClock, SystemClock
from chassis.db import Database
from chassis.errors import Unavailable
from chassis.reader import Reader
from chassis.settings import DatabaseSettings, KafkaSettings
from contracts.topics import AUDIT_RECORD
from sightline.audit.v1.record_pb2 import AuditRecord
from sightline.common.v1.actor_pb2 import Actor
from sightline.common.v1.error_reason_pb2 import ErrorReason

from tools.world import until

SCHEMA = "emergency"


class DeadPublisher(Publisher):
    """Stands for a process that is killed between its commit and its publishing."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    async def publish(self, record: Record) -> None:
        self.records.append(record)
        raise Unavailable(ErrorReason.ERROR_REASON_TRY_AGAIN, "killed")


def letter(text: str) -> Record:
    return Record(AUDIT_RECORD.dlq().name, b"test", text.encode())


async def _unpublished(database: Database) -> list[bytes]:
    async with database.transaction() as tx:
        return [bytes(r["value"]) for r in await tx.all("SELECT value FROM outbox WHERE published_at IS NULL")]


async def test_a_rolled_back_transaction_leaves_nothing(database: Database) -> None:
    async def change() -> None:
        async with database.transaction() as tx:
            tx.emit(letter("never"))
            await tx.execute("INSERT INTO pending_cancel (key, at, fact) VALUES ('x', now(), '{}')")
            raise ValueError("changed my mind")

    with pytest.raises(ValueError, match="changed my mind"):
        await change()
    assert b"never" not in await _unpublished(database)
    async with database.transaction() as tx:
        assert await tx.one("SELECT 1 FROM pending_cancel WHERE key = 'x'") is None


async def test_what_a_killed_process_left_is_published_by_another(databases: DatabaseSettings, database: Database) -> None:
    killed = Database(databases, SCHEMA, DeadPublisher())
    await killed.open()
    async with killed.transaction() as tx:
        tx.emit(letter("left behind"))
    await killed.close()
    assert b"left behind" in await _unpublished(database)

    sweeper = asyncio.create_task(database.sweep())

    async def published() -> bool:
        return b"left behind" not in await _unpublished(database)

    await until(published, "the sweeper")
    sweeper.cancel()


async def test_two_sweepers_do_not_hide_a_row_from_each_other(databases: DatabaseSettings, database: Database) -> None:
    """One sweeper claims and then freezes: its claim runs out, and the other publishes."""
    frozen = Database(databases, SCHEMA, DeadPublisher())
    await frozen.open()
    async with frozen.transaction() as tx:
        tx.emit(letter("claimed"))
        await tx.execute("SELECT 1")
    async with frozen.transaction() as tx:
        await tx.execute("UPDATE outbox SET claimed_until = now() + interval '1 s', created_at = now() - interval '1 s'")
    sweeper = asyncio.create_task(database.sweep())

    async def published() -> bool:
        return b"claimed" not in await _unpublished(database)

    await until(published, "the claim to run out")
    sweeper.cancel()
    await frozen.close()


@pytest.mark.parametrize("turns", [200, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_rows_that_commit_late_and_out_of_order_are_all_published(
    databases: DatabaseSettings, database: Database, turns: int
) -> None:
    """F5: whoever polls for ids above the last one loses what took its id early and committed late."""
    dice = random.Random(5)
    row = "INSERT INTO outbox (topic, key, value, headers, created_at) VALUES (%s, 'k', %s, '{}', now() - interval '1 s')"
    sweepers = [asyncio.create_task(database.sweep()) for _ in range(3)]
    connections = [await psycopg.AsyncConnection.connect(databases.url, options=f"-c search_path={SCHEMA}") for _ in range(4)]
    for turn in range(turns):
        order = list(enumerate(connections))
        for number, connection in order:
            await connection.execute(row, [letter("").topic, f"late-{turns}-{turn}-{number}".encode()])
        dice.shuffle(order)
        for _, connection in order:
            await (connection.rollback() if dice.random() < 0.1 else connection.commit())

    async def published() -> bool:
        return not [value for value in await _unpublished(database) if value.startswith(b"late-%d-" % turns)]

    await until(published, "all that was committed")
    async with database.transaction() as tx:
        found = await tx.one("SELECT count(*) AS n FROM outbox WHERE value LIKE %s", [f"late-{turns}-%".encode()])
    assert found
    assert 3 * turns < found["n"] < 4 * turns
    for sweeper in sweepers:
        sweeper.cancel()
    for connection in connections:
        await connection.close()


async def test_a_cancelled_caller_does_not_cut_a_commit_in_two(database: Database) -> None:
    for n in range(20):
        started = asyncio.Event()

        async def work(n: int = n, started: asyncio.Event = started) -> None:
            async with database.transaction() as tx:
                await tx.execute("INSERT INTO pending_cancel (key, at, fact) VALUES (%s, now(), '{}')", [f"cut-{n}"])
                started.set()

        task = asyncio.create_task(work())
        await started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with database.transaction() as tx:  # every connection is back in the pool, in a usable state
        assert await tx.one("SELECT 1 AS one") == {"one": 1}


async def test_who_was_frozen_in_a_transaction_may_try_again(databases: DatabaseSettings, database: Database) -> None:
    async with await psycopg.AsyncConnection.connect(databases.url, autocommit=True) as other:

        async def thaw_too_late() -> None:
            async with database.transaction() as tx:
                await tx.execute("SET LOCAL idle_in_transaction_session_timeout = 1")
                found = await tx.one("SELECT pg_backend_pid() AS pid")

                async def ended() -> bool:
                    row = await (
                        await other.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [(found or {})["pid"]])
                    ).fetchone()
                    return row == (0,)

                await until(ended, "the end of the session")
                await tx.execute("SELECT 1")

        with pytest.raises(Unavailable):
            await thaw_too_late()
    async with database.transaction() as tx:
        assert await tx.one("SELECT 1 AS one") == {"one": 1}


async def test_a_database_that_is_gone_is_unavailable_and_not_an_ok(publisher: Publisher) -> None:
    nowhere = Database(DatabaseSettings(url="postgresql://nobody@127.0.0.1:1/none"), "none", publisher)
    with pytest.raises((Unavailable, psycopg.Error)):
        await nowhere.open()
    await nowhere.close()


async def test_audit_numbers_have_no_gap_and_no_repeat_whatever_commits_when(
    database: Database, databases: DatabaseSettings, kafka: KafkaSettings, publisher: Publisher
) -> None:
    """Two shippers of one producer, transactions that roll back, overlap and commit out of order."""
    found: list[AuditRecord] = []

    async def keep(received: Received) -> None:
        if received.key == b"numbered":
            found.append(AuditRecord.FromString(received.value))

    reader = Reader("audit-test", (AUDIT_RECORD,), keep, kafka, publisher)
    tail = asyncio.create_task(reader.tail(None))
    await reader.caught_up.wait()
    other = Database(databases, SCHEMA, publisher)
    await other.open()
    audits = [Audit("numbered", AUDIT_RECORD, each, publisher, SystemClock()) for each in (database, other)]
    shippers = [asyncio.create_task(audit.ship()) for audit in audits]

    async def act(n: int) -> None:
        try:
            async with database.transaction() as tx:
                audits[n % 2].record(tx, Entry("test.done", Actor(id="x"), f"things/{n}", "pd"))
                await tx.execute("SELECT pg_sleep(%s)", [0.002 * (n % 7)])
                if n % 5 == 0:
                    raise ValueError("rolled back")
        except ValueError:
            return

    await asyncio.gather(*(act(n) for n in range(60)))

    async def complete() -> bool:
        return {r.target for r in found} >= {f"things/{n}" for n in range(60) if n % 5}

    await until(complete, "48 audit records")
    for task in (*shippers, tail):
        task.cancel()
    await asyncio.gather(*shippers, tail, return_exceptions=True)
    await other.close()
    numbers = {r.record_id: r.producer_seq for r in found}
    first = min(numbers.values())
    assert sorted(numbers.values()) == list(range(first, first + 48))
    assert not any(int(r.target.rpartition("/")[2]) % 5 == 0 for r in found)
    assert max(Counter(numbers.values()).values()) == 1


async def test_a_service_cannot_rewrite_its_audit_records(databases: DatabaseSettings) -> None:
    with psycopg.connect(databases.url, autocommit=True) as connection:
        connection.execute("SET ROLE emergency")
        for statement in ("UPDATE emergency.audit_record SET record = ''", "DELETE FROM emergency.audit_record"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


async def test_migrating_twice_changes_nothing(databases: DatabaseSettings) -> None:
    from tools.local.stack import ROOT

    db.migrate(databases.url, "emergency", ROOT / "services" / "emergency" / "migrations")


async def test_published_rows_are_forgotten_after_a_day_and_waiting_ones_never(database: Database) -> None:
    async with database.transaction() as tx:
        rows = [("fresh", "now()"), ("old", "now() - interval '25 h'")]
        for name, when in rows:
            await tx.execute(
                "INSERT INTO outbox (topic, key, value, headers, published_at, created_at)"
                f" VALUES ('t', 'k', '{name}', '{{}}', {when}, {when})"
            )
        await tx.execute(
            "INSERT INTO outbox (topic, key, value, headers, created_at) VALUES ('t', 'k', 'waits', '{}', now() - interval '9 d')"
        )
        await tx.execute(db._FORGET)
        left = {bytes(r["value"]) for r in await tx.all("SELECT value FROM outbox WHERE topic = 't'")}
        await tx.execute("DELETE FROM outbox WHERE topic = 't'")
    assert left == {b"fresh", b"waits"}


async def test_a_connection_to_a_primary_that_is_none_any_more_goes(databases: DatabaseSettings, publisher: Publisher) -> None:
    """P5: after a failover the old primary takes no writes; each connection to it is found out once, and never used again."""
    database = Database(databases.model_copy(update={"pool_max": 3}), SCHEMA, publisher)
    await database.open()
    async with AsyncExitStack() as all_of_them:
        for _ in range(3):
            each = await all_of_them.enter_async_context(database.statements())
            await each.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")

    async def write() -> None:
        async with database.transaction() as tx:
            tx.emit(letter("written"))

    refused = 0
    for _ in range(10):
        try:
            await write()
        except Unavailable:
            refused += 1
    assert refused <= 3
    await write()
    await database.close()


async def test_a_pool_that_only_reads_notices_that_it_reads_the_past(
    databases: DatabaseSettings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5: watchers would see nothing new for up to an hour."""
    monkeypatch.setattr(db, "_CHECK_EVERY_S", 0.0)
    database = Database(databases.model_copy(update={"pool_max": 2}), SCHEMA, publisher)
    await database.open()
    async with database.statements() as old:
        await old.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    async with database.statements() as new:
        row = await new.one("SELECT current_setting('transaction_read_only') AS it")
    assert row == {"it": "off"}
    await database.close()


async def test_the_databases_time_is_the_platforms(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """P15: whatever this machine's clock says, and also after it was set."""
    clock = PlatformClock()
    for wrong in (timedelta(hours=-2), timedelta(0), timedelta(seconds=120)):
        shifted = lambda by=wrong: datetime.now(UTC) + by  # noqa: E731
        monkeypatch.setattr("chassis.clock.machine_time", shifted)
        monkeypatch.setattr("chassis.db.machine_time", shifted)
        clock.database.measured(*await database.time())
        async with database.statements() as statements:
            row = await statements.one("SELECT clock_timestamp() AS now")
        assert row is not None
        assert abs(row["now"] - clock.now()) < timedelta(seconds=2)


async def test_a_step_of_this_machines_clock_changes_no_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """NTP sets a clock at any moment, and the database is asked only every few seconds."""
    clock = PlatformClock()
    clock.database.measured(*await database.time())
    monkeypatch.setattr("chassis.clock.wall_time", lambda: datetime.now(UTC) + timedelta(seconds=120))
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=60)
