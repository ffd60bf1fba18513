"""PostgreSQL: a pool, and transactions that commit a state change together with the records that tell of it.

A published row stays for a day, so that a topic can be replayed. There is no inbox table: every reader's effect has
a primary key or a version of its own (docs/decisions/0004-no-inbox-table.md).
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, LiteralString, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from alembic import command
from alembic.config import Config
from psycopg import sql
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from chassis import telemetry
from chassis.bus import TRANSIENT, Publisher, Record
from chassis.clock import machine_time
from chassis.errors import Unavailable
from chassis.settings import DatabaseSettings

Row = dict[str, Any]
_MARK_AFTER_S, _CHECK_EVERY_S = 0.1, 5.0
Parameters = Sequence[Any] | Mapping[str, Any]
T = TypeVar("T")

# Tables that every service's schema has; created by its first migration.
BASE_TABLES: LiteralString = """
CREATE TABLE outbox (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic         text        NOT NULL,
    key           bytea       NOT NULL,
    value         bytea       NOT NULL,
    headers       jsonb       NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    claimed_until timestamptz,
    published_at  timestamptz
);
CREATE INDEX outbox_waiting ON outbox (id) WHERE published_at IS NULL;
CREATE INDEX outbox_published ON outbox (published_at) WHERE published_at IS NOT NULL;
CREATE TABLE audit_record (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    record       bytea       NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    seq          bigint      UNIQUE,
    published_at timestamptz
);
CREATE INDEX audit_record_waiting ON audit_record (id) WHERE published_at IS NULL;
"""

_STORE: LiteralString = """
WITH audited AS (INSERT INTO audit_record (record) SELECT * FROM unnest(%s::bytea[]))
INSERT INTO outbox (topic, key, value, headers) SELECT * FROM unnest(%s::text[], %s::bytea[], %s::bytea[], %s::jsonb[]) RETURNING id
"""
_CLAIM: LiteralString = """
UPDATE outbox SET claimed_until = now() + interval '2 s'
 WHERE id IN (SELECT id FROM outbox
               WHERE published_at IS NULL AND created_at < now() - interval '300 ms'
                 AND (claimed_until IS NULL OR claimed_until < now())
               ORDER BY claimed_until NULLS FIRST, id LIMIT 500 FOR UPDATE SKIP LOCKED)
RETURNING id, topic, key, value, headers
"""
_FORGET: LiteralString = """
DELETE FROM outbox WHERE id IN
    (SELECT id FROM outbox WHERE published_at < now() - interval '24 h' ORDER BY published_at LIMIT 5000)
"""


# In a FROM clause: the statement's commit does not wait for the disk. A crash of PostgreSQL takes back the last half second
# of such changes: for marks whose loss only repeats some work, and for times that only tell of something.
NOT_DURABLE: LiteralString = "(SELECT set_config('synchronous_commit', 'off', true)) AS not_durable"


class Statements:
    """Statements on one connection."""

    def __init__(self, connection: psycopg.AsyncConnection[Row]) -> None:
        self._connection = connection

    async def execute(self, query: LiteralString, parameters: Parameters = ()) -> int:
        """Run a statement; returns the number of rows it touched."""
        return (await self._connection.execute(query, parameters)).rowcount

    async def one(self, query: LiteralString, parameters: Parameters = ()) -> Row | None:
        """The first row, if there is one."""
        return await (await self._connection.execute(query, parameters)).fetchone()

    async def all(self, query: LiteralString, parameters: Parameters = ()) -> list[Row]:
        """All rows."""
        return await (await self._connection.execute(query, parameters)).fetchall()

    async def many(self, query: LiteralString, parameters: Sequence[Sequence[Any]]) -> None:
        """Run a statement for many parameter sets, in as few round trips as there can be."""
        if len(parameters) == 1:
            await self._connection.execute(query, parameters[0])
        elif parameters:
            async with self._connection.cursor() as cursor:
                await cursor.executemany(query, parameters)

    async def copy(self, query: LiteralString, types: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """`COPY … FROM STDIN (FORMAT BINARY)`: many rows in one stream; `types` are the columns' PostgreSQL types."""
        async with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            copy.set_types(types)
            for row in rows:
                await copy.write_row(row)


class Transaction(Statements):
    """One transaction. What it emits and audits is stored with it and published after its commit."""

    def __init__(self, connection: psycopg.AsyncConnection[Row]) -> None:
        super().__init__(connection)
        self.emitted: list[Record] = []
        self.audited: list[bytes] = []

    @asynccontextmanager
    async def part(self) -> AsyncIterator[None]:
        """Statements and records that are undone together if the body raises; the rest of the transaction stays."""
        emitted, audited = len(self.emitted), len(self.audited)
        try:
            async with self._connection.transaction():
                yield
        except BaseException:
            del self.emitted[emitted:], self.audited[audited:]
            raise

    def emit(self, record: Record) -> None:
        """Publish this record if, and only if, the transaction commits."""
        self.emitted.append(record)

    def audit(self, record: bytes) -> None:
        """Keep this audit record if, and only if, the transaction commits."""
        self.audited.append(record)

    async def store_outbox(self) -> list[int]:
        """Write what was emitted and audited, in one round trip; called once, before the commit."""
        if not self.emitted and not self.audited:
            return []
        rows = [(r.topic, r.key, r.value, json.dumps(dict(r.headers))) for r in self.emitted]
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        stored = await self.all(_STORE, [self.audited, *columns])
        return [row["id"] for row in stored]


class Database:
    """The service's pool, and the publisher of what its transactions emit."""

    def __init__(self, settings: DatabaseSettings, schema: str, publisher: Publisher) -> None:
        options = f"-c search_path={schema} -c lock_timeout=2s -c idle_in_transaction_session_timeout=10s"
        parameters = {"connect_timeout": 3, "tcp_user_timeout": 5000, "options": options, "row_factory": dict_row}
        # Of several hosts the one that takes writes: after a failover the old primary may answer still.
        self._pool = AsyncConnectionPool[psycopg.AsyncConnection[Row]](
            kwargs={"target_session_attrs": "read-write"} | settings.conninfo() | parameters,
            min_size=2,
            max_size=settings.pool_max,
            timeout=1.0,
            open=False,
            reconnect_timeout=0,
            check=_check_now_and_then,
        )
        self._publisher = publisher
        self._publishing: set[asyncio.Task[None]] = set()
        self._published: list[int] = []
        self._marking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, or raise what PostgreSQL says."""
        if self._pool.closed:
            await self._pool.open()
        async with self.statements() as db:
            await db.one("SELECT 1 FROM outbox LIMIT 1")

    async def time(self) -> tuple[datetime, datetime, datetime]:
        """The database's time, between two times of this machine's clock."""
        async with self.statements() as db:
            asked = machine_time()
            row = await db.one("SELECT clock_timestamp() AS now")
            answered = machine_time()
        return asked, row["now"] if row else answered, answered

    async def close(self) -> None:
        """Let the last records go out, then disconnect."""
        if self._publishing:
            await asyncio.wait(self._publishing, timeout=2)
        if self._marking:
            await asyncio.wait({self._marking}, timeout=2)
        await self._pool.close(timeout=2)

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Transaction]:
        """Commit at the end of the body; on an exception roll back. Unavailable if the database cannot be had.

        With `snapshot` all statements see one state of the database; without, each sees what is committed by then.
        """
        async with self._connection() as connection:
            # Set each time, whatever the last one left behind; neither asks the server.
            await connection.set_autocommit(False)
            level = psycopg.IsolationLevel.REPEATABLE_READ if snapshot else psycopg.IsolationLevel.READ_COMMITTED
            await connection.set_isolation_level(level)
            tx = Transaction(connection)
            yield tx
            ids = await tx.store_outbox()
            await _surely(connection.commit())
            self._publish_soon(ids, tx.emitted)

    @asynccontextmanager
    async def statements(self) -> AsyncIterator[Statements]:
        """Statements that each commit by themselves: a third of the round trips of a transaction of one."""
        async with self._connection() as connection:
            await connection.set_autocommit(True)
            yield Statements(connection)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[Row]]:
        try:
            connection = await self._pool.getconn()
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "the database does not answer") from error
        try:
            yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as error:
            if not _passes(error):
                raise
            if error.sqlstate == _READ_ONLY:
                await connection.close()  # of a primary that is none any more: it will never take a write
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "the database did not commit") from error
        finally:
            await _surely(self._give_back(connection))

    async def _give_back(self, connection: psycopg.AsyncConnection[Row]) -> None:
        """Roll back what is not committed, and return the connection to the pool."""
        try:
            await connection.rollback()
        except psycopg.Error:
            await connection.close()  # the pool makes another
        await self._pool.putconn(connection)

    def _publish_soon(self, ids: list[int], records: list[Record]) -> None:
        if ids:
            task = asyncio.create_task(self._publish(ids, records))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)

    async def _publish(self, ids: Sequence[int], records: Sequence[Record]) -> None:
        """Publish, and mark soon; what fails stays waiting and is swept again, here or on another replica."""
        answers = await asyncio.gather(*map(self._publisher.publish, records), return_exceptions=True)
        done = [i for i, answer in zip(ids, answers, strict=True) if not isinstance(answer, BaseException)]
        if failed := [answer for answer in answers if isinstance(answer, BaseException)]:
            telemetry.log().warning("not published yet", records=len(failed), error=str(failed[0]))
        self._published += done
        if self._published and self._marking is None:
            self._marking = asyncio.create_task(self._mark())

    async def _mark(self) -> None:
        """Mark what has been published, many at a time. A mark that is lost only means that a record is published twice."""
        await asyncio.sleep(_MARK_AFTER_S)
        self._marking, done, self._published = None, self._published, []
        try:
            async with self.statements() as db:
                await db.execute(f"UPDATE outbox SET published_at = clock_timestamp() FROM {NOT_DURABLE} WHERE id = ANY(%s)", [done])
        except Unavailable:
            telemetry.log().warning("published but not marked; will be published again", records=len(done))

    async def sweep(self) -> None:
        """For ever: publish what a crash, of this replica or another, left behind; forget what is a day old."""
        for turn in itertools.count():
            try:
                async with self.statements() as db:
                    rows = await db.all(_CLAIM)
                    if turn % 100 == 0:
                        await db.execute(_FORGET)
                records = [Record(r["topic"], bytes(r["key"]), bytes(r["value"]), r["headers"]) for r in rows]
                await self._publish([row["id"] for row in rows], records)
            except TRANSIENT as error:
                telemetry.log().warning("sweep waits", error=str(error))
            await asyncio.sleep(0.3)


# A connection that was asked a moment ago is not asked again whether it is good: that would cost every transaction a round trip.
_checked: WeakKeyDictionary[psycopg.AsyncConnection[Row], float] = WeakKeyDictionary()
_READ_ONLY = "25006"


async def _check_now_and_then(connection: psycopg.AsyncConnection[Row]) -> None:
    """Raise unless the connection lives and takes writes. One that only reads shows the past: it is of a primary that was one."""
    if time.monotonic() - _checked.get(connection, 0.0) < _CHECK_EVERY_S:
        return
    await connection.set_autocommit(True)
    row = await (await connection.execute("SELECT current_setting('transaction_read_only') AS it")).fetchone()
    if row is None or row["it"] != "off":
        raise psycopg.OperationalError("the server does not take writes any more")
    _checked[connection] = time.monotonic()


def _passes(error: psycopg.Error) -> bool:
    """Whether the same may work later. What the data itself makes fail (a key too long, say) is not the database's state.

    Connection lost, rolled back to be repeated, out of resources, locked, stopped by an operator; our own process was frozen in a
    transaction (25P03); a standby that is not yet the primary (25006).
    """
    state = error.sqlstate
    return state is None or state[:2] in ("08", "40", "53", "55", "57") or state in ("25P03", _READ_ONLY)


async def _surely(work: Awaitable[T]) -> T:
    """Finish what must not be left half done, even while the caller is being cancelled."""
    task: asyncio.Future[T] = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def migrate(url: str, schema: str, versions: Path) -> None:
    """Bring a service's schema up to date as its owner, and give its role, named like the schema, what it needs."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("version_locations", str(versions))
    config.set_main_option("path_separator", "os")
    config.attributes |= {"url": url, "schema": schema}
    command.upgrade(config, "head")
    with psycopg.connect(url) as connection:  # one transaction: no right is there for a moment
        name = sql.Identifier(schema)
        for statement in (
            "GRANT USAGE ON SCHEMA {0} TO {0}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {0} TO {0}",
            # The role that runs the service cannot rewrite what it has recorded.
            "REVOKE UPDATE, DELETE ON {0}.audit_record FROM {0}",
            "GRANT UPDATE (seq, published_at) ON {0}.audit_record TO {0}",
            "REVOKE ALL ON {0}.alembic_version FROM {0}",
        ):
            connection.execute(sql.SQL(statement).format(name))
        # What a migration comments like this the role that runs the service cannot change.
        for comment, revoked in (("append-only", "UPDATE, DELETE, TRUNCATE"), ("never changed", "UPDATE")):
            for (table,) in connection.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND obj_description(oid, 'pg_class') = %s",
                [schema, comment],
            ).fetchall():
                connection.execute(sql.SQL("REVOKE {2} ON {0}.{1} FROM {0}").format(name, sql.Identifier(table), sql.SQL(revoked)))
