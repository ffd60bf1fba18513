"""A database that somebody else has written to: whatever is changed is found and named, and a fork is not gone on with (F34-F36).

Each trial is a transaction on a real PostgreSQL that is rolled back.
"""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
import pytest_asyncio
from chassis.audit import Audit
from chassis.bus import Publisher
from chassis.clock import SystemClock
from chassis.db import Database, Transaction
from chassis.settings import DatabaseSettings
from contracts.topics import AUDIT_RECORD
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg.rows import dict_row
from tlog.note import COSIGNATURE, SignedNote, Signer
from tlog.verify import Finding

from services.audit.model import Inconsistent, Signed
from services.audit.service import AuditService, Recheck
from services.audit.store import FileCopies, Store
from services.audit.tests.test_service import LOG, SEALER, Told, arrived, make, record, take

SCHEMA = "audit"
WITNESS = Signer("test.example/witness", Ed25519PrivateKey.generate(), COSIGNATURE)
SIZE, TRIALS, FORKS = 120, 500, 100
SIZES = (1, 7, 8, 40, 64, 101, SIZE)
Connection = psycopg.AsyncConnection[dict[str, Any]]


class OneConnection(Database):
    """A database of which all transactions are parts of one that never commits."""

    def __init__(self, connection: Connection) -> None:
        self._connection_ = connection

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Transaction]:
        async with self._connection_.transaction():
            yield Transaction(self._connection_)

    @asynccontextmanager
    async def statements(self) -> AsyncIterator[Transaction]:
        yield Transaction(self._connection_)


class Witnessing:
    """A witness that signs whatever it gets."""

    verifier = WITNESS.verifier

    async def cosign(self, old: int, path: Any, note: str) -> SignedNote:
        found = SignedNote.parse(note)
        return found.signed(WITNESS.sign(found.text, 1_800_000_000))


@pytest_asyncio.fixture(loop_scope="session", name="connection")
async def _connection(
    databases: DatabaseSettings, database: Database, publisher: Publisher, tmp_path_factory: Any
) -> AsyncIterator[Connection]:
    """A connection to a log of some leaves, checkpoints and cosignatures."""
    folder = tmp_path_factory.mktemp("copies")
    async with database.statements() as db:
        await db.execute("TRUNCATE leaf, node, checkpoint, cosignature, subject_key, forgotten")
    log = make(database, publisher, Told(), folder)
    at = 0
    for size in SIZES:
        await take(log, [record(n, actor=f"officer-{n % 7}") for n in range(at + 1, size + 1)])
        if size in (8, 64):
            assert await log.ask_witness(Witnessing())
        at = size
    async with await psycopg.AsyncConnection.connect(**databases.conninfo(), row_factory=dict_row) as connection:
        await connection.execute(f"SET search_path = {SCHEMA}")
        await connection.commit()
        yield connection


async def rechecked(connection: Connection) -> list[Finding]:
    """What a whole round finds."""
    recheck = Recheck(OneConnection(connection), Store(), SEALER, LOG.verifier, [WITNESS.verifier])
    found, whole = [], False
    while not whole:
        more, whole = await recheck.step()
        found += more
    return found


@asynccontextmanager
async def trial(connection: Connection) -> AsyncIterator[None]:
    """What is done in it is undone."""
    async with connection.transaction(force_rollback=True):
        yield


async def test_an_untouched_log_has_no_findings(connection: Connection) -> None:
    async with trial(connection):
        assert await rechecked(connection) == []


# Everything that is kept of the log, by table: columns, and the place that a row is about.
PLACES: dict[str, tuple[LiteralString, tuple[LiteralString, ...]]] = {
    "leaf": (
        "index",
        ("record_id", "producer", "producer_seq", "action", "agency_id", "emergency_id", "at", "leaf", "key_id", "target", "sealed"),
    ),
    "node": ("((index + 1) << level) - 1", ("hash",)),
    "checkpoint": ("size - 1", ("root", "note")),
    "cosignature": ("size - 1", ("line",)),
    "subject_key": ("(SELECT min(l.index) FROM leaf l WHERE l.key_id = subject_key.key_id)", ("subject", "wrapped")),
}


async def _pick(connection: Connection, dice: random.Random, table: str) -> dict[str, Any]:
    rows = await (
        await connection.execute(f"SELECT ctid::text AS row_, *, {PLACES[table][0]} AS place FROM {table} ORDER BY place, row_")
    ).fetchall()
    return dice.choice(rows)


async def flip(connection: Connection, dice: random.Random) -> tuple[int, int]:
    """One bit of one value; of texts and numbers, one character or the lowest bit."""
    table = dice.choice(["leaf", "leaf", "leaf", "node", "node", "checkpoint", "cosignature", "subject_key"])
    column = dice.choice(PLACES[table][1])
    row = await _pick(connection, dice, table)
    value = row[column]
    if isinstance(value, bytes | memoryview):
        content = bytearray(value)
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        value = bytes(content)
    elif isinstance(value, int):
        value += 1000
    elif isinstance(value, str):
        value = value or "?"
        at = dice.randrange(len(value))
        value = value[:at] + chr(ord(value[at]) ^ 1 if value[at] not in "\x01" else 0x41) + value[at + 1 :]
    elif column == "at":
        value = value.replace(microsecond=value.microsecond ^ 1)
    else:  # an id
        value = str(value).translate(str.maketrans("0123456789abcdef", "1032547698badcfe"))
    await connection.execute(f"UPDATE {table} SET {column} = %s WHERE ctid = %s::tid", [value, row["row_"]])
    return row["place"], row["place"]


async def delete(connection: Connection, dice: random.Random) -> tuple[int, int]:
    """A leaf, a hash, or a key that nobody has forgotten."""
    table = dice.choice(["leaf", "node", "subject_key"])
    row = await _pick(connection, dice, table)
    await connection.execute(f"DELETE FROM {table} WHERE ctid = %s::tid", [row["row_"]])
    return row["place"], row["place"]


async def swap(connection: Connection, dice: random.Random) -> tuple[int, int]:
    """Two leaves change their places."""
    one, other = sorted(dice.sample(range(SIZE), 2))
    for a, b in ((one, -1), (other, one), (-1, other)):
        await connection.execute("UPDATE leaf SET index = %s WHERE index = %s", [b, a])
    return one, other


async def insert(connection: Connection, dice: random.Random) -> tuple[int, int]:
    """A leaf of somebody's making between two others, with its hash; or a hash that nothing asks for."""
    at = dice.randrange(SIZE)
    if dice.random() < 0.3:
        await connection.execute("INSERT INTO node VALUES (%s, %s, %s)", [dice.randrange(70), 10**6 + at, dice.randbytes(32)])
        return 0, SIZE - 1
    await connection.execute("UPDATE leaf SET index = -index - 2 WHERE index >= %s", [at])
    await connection.execute("UPDATE leaf SET index = -index - 1 WHERE index < 0")
    [forged] = arrived([record(10**6)])
    await connection.execute(
        "INSERT INTO leaf SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, key_id, target, sealed FROM leaf WHERE index = 0 OR index = 1 LIMIT 1",
        [at, forged.record_id, forged.producer, forged.producer_seq, forged.action, forged.agency_id, "", forged.at, forged.leaf],
    )
    return at, at


async def truncate(connection: Connection, dice: random.Random) -> tuple[int, int]:
    """The last leaves go, or their hashes too."""
    at = dice.randrange(SIZE)
    await connection.execute("DELETE FROM leaf WHERE index >= %s", [at])
    if dice.random() < 0.5:
        await connection.execute("DELETE FROM node WHERE (index + 1) << level > %s", [at])
    return at, at


async def test_whatever_is_changed_is_found_and_named(connection: Connection) -> None:
    dice = random.Random(36)
    for n in range(TRIALS):
        change = (flip, flip, delete, swap, insert, truncate)[n % 6]
        async with trial(connection):
            first, last = await change(connection, dice)
            found = await rechecked(connection)
            where = f"trial {n}: {change.__name__} at {first}, found {list(map(str, found[:4]))}"
            assert any(each.since <= first < each.until for each in found), where
            assert any(each.since <= last < each.until for each in found), where
            if change in (swap, delete) or first == last:  # by its place, not by "somewhere"
                assert min(each.until - each.since for each in found) <= SIZE // 2 + 8, where


async def test_a_hundred_forks_are_not_gone_on_with(connection: Connection, tmp_path: Path) -> None:
    """An older copy of the database, to which others were appended and signed with our key by somebody who has not the copies."""
    dice = random.Random(35)
    [newest] = await (await connection.execute("SELECT size, root, note FROM checkpoint ORDER BY size DESC LIMIT 1")).fetchall()
    kept = FileCopies(tmp_path)
    kept.keep(Signed(newest["size"], bytes(newest["root"]), newest["note"]))
    (tmp_path / "none").mkdir()
    for n in range(FORKS):
        async with trial(connection):
            old = dice.choice(SIZES[:-1])
            await connection.execute("DELETE FROM leaf WHERE index >= %s", [old])
            await connection.execute("DELETE FROM node WHERE (index + 1) << level > %s", [old])
            await connection.execute("DELETE FROM cosignature WHERE size > %s", [old])
            await connection.execute("DELETE FROM checkpoint WHERE size > %s", [old])
            database = OneConnection(connection)
            audit = Audit("audit", AUDIT_RECORD, database, Publisher.__new__(Publisher), SystemClock())
            copies = FileCopies(tmp_path / "none" / str(n))
            (tmp_path / "none" / str(n)).mkdir()
            fork = AuditService(database, Store(), SEALER, LOG, copies, Told(), audit)
            await take(fork, [record(k, "forger") for k in range(1, dice.randrange(0, 2 * SIZE) + 2)])
            ours = AuditService(database, Store(), SEALER, LOG, kept, Told(), audit)
            with pytest.raises(Inconsistent):
                await ours.check_copies()
            await ours.take(arrived([record(10**6)]))
            with pytest.raises(Inconsistent):
                await ours.integrate()


WRITTEN = {
    "another leaf": "UPDATE leaf SET leaf = %(leaf)s WHERE index = 121",
    "another row": "UPDATE leaf SET leaf = %(leaf)s, record_id = %(id)s, producer_seq = 1000000 WHERE index = 121",
    "another action": "UPDATE leaf SET action = 'nothing' WHERE index = 121",
    "no keys": "DELETE FROM subject_key",
    "one more": "INSERT INTO leaf SELECT 122, %(id)s, producer, 1000000, action, agency_id, emergency_id, at, %(leaf)s, key_id, target,"
    " sealed FROM leaf WHERE index = 0",
}


@pytest.mark.parametrize("sql", WRITTEN.values(), ids=WRITTEN.keys())
async def test_what_others_write_into_the_database_is_not_signed(connection: Connection, tmp_path: Path, sql: LiteralString) -> None:
    """Whoever has only the database cannot seal: neither a leaf of theirs nor a change to one of ours becomes part of the log."""
    [forged] = arrived([record(10**6)])
    async with trial(connection):
        database = OneConnection(connection)
        audit = Audit("audit", AUDIT_RECORD, database, Publisher.__new__(Publisher), SystemClock())
        log = AuditService(database, Store(), SEALER, LOG, FileCopies(tmp_path), Told(), audit)
        await log.take(arrived([record(10**5), record(10**5 + 1)]))
        await connection.execute(sql, {"leaf": forged.leaf, "id": forged.record_id})
        with pytest.raises(Inconsistent, match=r"leaf 12[012]: (it is not|its row)"):
            await log.integrate()
