"""The SQL of the log, and the copies of its checkpoints in a folder."""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import LiteralString

from chassis.db import Row as DbRow
from chassis.db import Statements, Transaction
from chassis.files import write_surely

from services.audit.model import Arrived, Producer, Row, Search, Signed, Stored

_STORED: LiteralString = (
    "SELECT l.index, l.record_id::text, l.agency_id, l.leaf, l.sealed, l.key_id::text, k.subject, k.wrapped FROM leaf l"
    " LEFT JOIN subject_key k USING (key_id)"
)
_ROWS: LiteralString = (
    "SELECT l.index, l.record_id::text, l.agency_id, l.leaf, l.sealed, k.subject, k.wrapped, l.key_id::text, l.producer, l.producer_seq,"
    " l.action, l.emergency_id, l.at, l.target FROM leaf l LEFT JOIN subject_key k USING (key_id)"
    " WHERE l.index >= %s ORDER BY l.index LIMIT %s"
)
_SEARCH: LiteralString = (
    " WHERE l.agency_id = %(agency)s AND (%(before)s::bigint IS NULL OR l.index < %(before)s) AND l.index < %(size)s"
    " AND (%(subjects)s::bytea[] IS NULL OR k.subject = ANY(%(subjects)s)) AND (%(target)s::bytea IS NULL OR l.target = %(target)s)"
    " AND (%(action)s = '' OR l.action = %(action)s) AND (%(emergency)s = '' OR l.emergency_id = %(emergency)s)"
    " AND (%(since)s::timestamptz IS NULL OR l.at >= %(since)s) AND (%(until)s::timestamptz IS NULL OR l.at < %(until)s)"
    " ORDER BY l.index DESC LIMIT %(limit)s"
)


class Store:
    """All access to leaves, nodes and checkpoints. Methods work inside the caller's transaction."""

    async def lock(self, tx: Transaction) -> None:
        """One transaction at a time, among all replicas, gives places or signs."""
        await tx.execute("SELECT pg_advisory_xact_lock(hashtext(current_schema() || '/log'))")

    async def known(self, tx: Transaction, names: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """Ids of records that have a place, by producer and number."""
        rows = await tx.all(
            "SELECT l.producer, l.producer_seq, l.record_id::text FROM leaf l JOIN unnest(%s::text[], %s::bigint[]) AS n (producer, seq)"
            " ON l.producer = n.producer AND l.producer_seq = n.seq",
            [[producer for producer, _ in names], [seq for _, seq in names]],
        )
        return {(row["producer"], row["producer_seq"]): row["record_id"] for row in rows}

    async def next_index(self, tx: Transaction) -> int:
        """The next free place."""
        row = await tx.one("SELECT coalesce(max(index) + 1, 0) AS index FROM leaf")
        return int(row["index"]) if row else 0

    async def keys(self, tx: Transaction, new: Sequence[tuple[str, bytes, bytes]]) -> dict[bytes, tuple[str, bytes]]:
        """Subjects' keys, as (id, wrapped); `new` are (id, subject, wrapped) for those that have none yet."""
        columns = [list(column) for column in zip(*new, strict=True)]
        await tx.execute(
            "INSERT INTO subject_key (key_id, subject, wrapped) SELECT * FROM unnest(%s::uuid[], %s::bytea[], %s::bytea[])"
            " ON CONFLICT DO NOTHING",
            columns,
        )
        return await self.keys_of(tx, columns[1])

    async def keys_of(self, db: Statements, subjects: Sequence[bytes]) -> dict[bytes, tuple[str, bytes]]:
        """Subjects' keys, as (id, wrapped); those that there are."""
        rows = await db.all("SELECT key_id::text, subject, wrapped FROM subject_key WHERE subject = ANY(%s)", [list(subjects)])
        return {bytes(row["subject"]): (row["key_id"], bytes(row["wrapped"])) for row in rows}

    async def append(self, tx: Transaction, rows: Sequence[tuple[int, Arrived, str, bytes, bytes]]) -> None:
        """Insert leaves: place, record, key, target, sealed personal part."""
        columns = zip(
            *(
                (
                    index,
                    a.record_id,
                    a.producer,
                    a.producer_seq,
                    a.action,
                    a.agency_id,
                    a.emergency_id,
                    a.at,
                    a.leaf,
                    key_id,
                    target,
                    sealed,
                )
                for index, a, key_id, target, sealed in rows
            ),
            strict=True,
        )
        await tx.execute(
            "INSERT INTO leaf (index, record_id, producer, producer_seq, action, agency_id, emergency_id, at, leaf, key_id, target,"
            " sealed)"
            " SELECT * FROM unnest(%s::bigint[], %s::uuid[], %s::text[], %s::bigint[], %s::text[], %s::text[], %s::text[],"
            " %s::timestamptz[], %s::bytea[], %s::uuid[], %s::bytea[], %s::bytea[])",
            [list(column) for column in columns],
        )

    async def rows(self, db: Statements, since: int, limit: int) -> list[Row]:
        """Rows from a place on, in order, as they are stored."""
        rows = await db.all(_ROWS, [since, limit])
        return [
            Row(
                _stored(row), row["producer"], row["producer_seq"], row["action"], row["emergency_id"], row["at"], bytes(row["target"])
            )
            for row in rows
        ]  # fmt: skip

    async def nodes_between(self, db: Statements, since: int, until: int) -> dict[tuple[int, int], bytes]:
        """Hashes of all subtrees whose last leaf is in a range."""
        levels = range(max(1, until.bit_length()))
        rows = await db.all(
            "SELECT n.level, n.index, n.hash FROM unnest(%s::int[], %s::bigint[], %s::bigint[]) AS w (level, lo, hi)"
            " JOIN node n ON n.level = w.level AND n.index >= w.lo AND n.index < w.hi",
            [list(levels), [since >> level for level in levels], [until >> level for level in levels]],
        )
        return {(row["level"], row["index"]): bytes(row["hash"]) for row in rows}

    async def checkpoints_between(self, db: Statements, since: int, until: int) -> list[Signed]:
        """Checkpoints of more than `since` and at most `until` leaves, in order."""
        rows = await db.all("SELECT size, root, note FROM checkpoint WHERE size > %s AND size <= %s ORDER BY size", [since, until])
        return [Signed(row["size"], bytes(row["root"]), row["note"]) for row in rows]

    async def cosignatures_between(self, db: Statements, since: int, until: int) -> list[tuple[int, str, str]]:
        """What witnesses said of those checkpoints: size, witness, line."""
        rows = await db.all("SELECT size, witness, line FROM cosignature WHERE size > %s AND size <= %s", [since, until])
        return [(row["size"], row["witness"], row["line"]) for row in rows]

    async def strays(self, db: Statements, size: int) -> int:
        """Rows that no log of that size, or a longer one, can have."""
        row = await db.one(
            "SELECT (SELECT count(*) FROM leaf WHERE index < 0) + (SELECT count(*) FROM checkpoint WHERE size < 1)"
            " + (SELECT count(*) FROM node WHERE index < 0 OR level NOT BETWEEN 0 AND 60"
            " OR index >= %(size)s >> least(greatest(level, 0), 60)) AS strays",
            {"size": size},
        )
        return int(row["strays"]) if row else 0

    async def marks(self, db: Statements, key_ids: Sequence[str]) -> dict[str, bytes]:
        """Marks of those of these keys that were forgotten."""
        rows = await db.all("SELECT key_id::text, mark FROM forgotten WHERE key_id = ANY(%s::uuid[])", [list(key_ids)])
        return {row["key_id"]: bytes(row["mark"]) for row in rows}

    async def mark_forgotten(self, tx: Transaction, key_id: str, mark: bytes) -> None:
        """Note that a key was forgotten."""
        await tx.execute("INSERT INTO forgotten (key_id, mark) VALUES (%s, %s)", [key_id, mark])

    async def forget(self, tx: Transaction, subject: bytes, signed: int) -> str | None:
        """Delete a subject's key unless a leaf that is not signed yet needs it; returns the key's id."""
        row = await tx.one(
            "DELETE FROM subject_key k WHERE subject = %s AND NOT EXISTS"
            " (SELECT FROM leaf l WHERE l.key_id = k.key_id AND l.index >= %s) RETURNING key_id::text",
            [subject, signed],
        )
        return row["key_id"] if row else None

    async def hashed_leaves(self, db: Statements, since: int, until: int) -> list[tuple[int, str, bytes, bytes]]:
        """Leaves of a range, in order, as (place, agency, bytes, hash in the tree)."""
        rows = await db.all(
            "SELECT l.index, l.agency_id, l.leaf, n.hash FROM leaf l LEFT JOIN node n ON n.level = 0 AND n.index = l.index"
            " WHERE l.index >= %s AND l.index < %s ORDER BY l.index",
            [since, until],
        )
        return [(row["index"], row["agency_id"], bytes(row["leaf"]), bytes(row["hash"] or b"")) for row in rows]

    async def entries(self, db: Statements, agency_id: str, since: int, until: int, limit: int) -> list[Stored]:
        """An agency's entries of a range, in order."""
        query: LiteralString = _STORED + " WHERE l.agency_id = %s AND l.index >= %s AND l.index < %s ORDER BY l.index LIMIT %s"
        return [_stored(row) for row in await db.all(query, [agency_id, since, until, limit])]

    async def unsigned(self, db: Statements, size: int) -> int:
        """How many leaves a log of that size does not cover yet."""
        row = await db.one("SELECT coalesce(max(index) + 1, 0) AS size FROM leaf")
        return max(0, int(row["size"]) - size) if row else 0

    async def nodes(self, db: Statements, names: Sequence[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Hashes of subtrees, by level and index; those that are there."""
        rows = await db.all(
            "SELECT n.level, n.index, n.hash FROM node n JOIN unnest(%s::int[], %s::bigint[]) AS w (level, index)"
            " ON n.level = w.level AND n.index = w.index",
            [[level for level, _ in names], [index for _, index in names]],
        )
        return {(row["level"], row["index"]): bytes(row["hash"]) for row in rows}

    async def add_nodes(self, tx: Transaction, nodes: Sequence[tuple[int, int, bytes]]) -> None:
        """Insert hashes of subtrees."""
        columns = [list(column) for column in zip(*nodes, strict=True)]
        await tx.execute("INSERT INTO node (level, index, hash) SELECT * FROM unnest(%s::int[], %s::bigint[], %s::bytea[])", columns)

    async def newest(self, db: Statements) -> Signed | None:
        """The newest checkpoint."""
        row = await db.one("SELECT size, root, note FROM checkpoint ORDER BY size DESC LIMIT 1")
        return Signed(row["size"], bytes(row["root"]), row["note"]) if row else None

    async def checkpoint(self, db: Statements, size: int) -> Signed | None:
        """The checkpoint of that size, if one was signed."""
        row = await db.one("SELECT size, root, note FROM checkpoint WHERE size = %s", [size])
        return Signed(row["size"], bytes(row["root"]), row["note"]) if row else None

    async def cosigned(self, db: Statements) -> tuple[str, list[str]]:
        """The newest checkpoint that a witness has cosigned, and the witnesses' lines; empty if there is none."""
        rows = await db.all(
            "SELECT c.note, s.line FROM cosignature s JOIN checkpoint c USING (size)"
            " WHERE size = (SELECT max(size) FROM cosignature) ORDER BY s.witness"
        )
        return (rows[0]["note"] if rows else ""), [row["line"] for row in rows]

    async def witnessed(self, db: Statements, witness: str) -> int:
        """Size of the newest checkpoint that a witness has cosigned; 0 if there is none."""
        row = await db.one("SELECT coalesce(max(size), 0) AS size FROM cosignature WHERE witness = %s", [witness])
        return int(row["size"]) if row else 0

    async def add_cosignature(self, tx: Transaction, size: int, witness: str, line: str) -> None:
        """Keep what a witness said of a checkpoint; the first stays."""
        await tx.execute("INSERT INTO cosignature (size, witness, line) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", [size, witness, line])

    async def sign(self, tx: Transaction, signed: Signed, after: int) -> bool:
        """Insert a checkpoint if the one before it is the newest; False if it is not."""
        return bool(
            await tx.execute(
                "INSERT INTO checkpoint (size, root, note) SELECT %s, %s, %s WHERE (SELECT coalesce(max(size), 0) FROM checkpoint) = %s",
                [signed.size, signed.root, signed.note, after],
            )
        )

    async def entry(self, db: Statements, index: int) -> Stored | None:
        """One entry."""
        row = await db.one(f"{_STORED} WHERE l.index = %s", [index])
        return _stored(row) if row else None

    async def search(
        self,
        db: Statements,
        search: Search,
        size: int,
        subjects: Sequence[bytes] | None,
        target: bytes | None,
        before: int | None,
        limit: int,
    ) -> list[Stored]:
        """Entries of a log of that size, the newest first."""
        parameters = {
            "agency": search.agency_id, "before": before, "size": size, "subjects": subjects, "target": target, "action": search.action,
            "emergency": search.emergency_id, "since": search.since, "until": search.until, "limit": limit,
        }  # fmt: skip
        return [_stored(row) for row in await db.all(_STORED + _SEARCH, parameters)]

    async def producers(self, db: Statements) -> list[Producer]:
        """How far each producer's records have come."""
        rows = await db.all("SELECT producer, highest, highest - count AS missing, newest_at FROM producer ORDER BY producer")
        return [Producer(**row) for row in rows]

    async def heard(self, tx: Transaction, producers: Sequence[tuple[str, int, int, datetime]]) -> None:
        """New leaves of producers: name, highest number, how many, newest time."""
        await tx.execute(
            "INSERT INTO producer (producer, highest, count, newest_at) SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[],"
            " %s::timestamptz[]) ON CONFLICT (producer) DO UPDATE SET highest = greatest(producer.highest, excluded.highest),"
            " count = producer.count + excluded.count, newest_at = greatest(producer.newest_at, excluded.newest_at),"
            " heard_at = clock_timestamp()",
            [list(column) for column in zip(*producers, strict=True)],
        )


def _stored(row: DbRow) -> Stored:
    subject, wrapped = row["subject"], row["wrapped"]
    return Stored(
        row["index"], row["record_id"], row["agency_id"], bytes(row["leaf"]), bytes(row["sealed"]), row["key_id"],
        bytes(subject) if subject is not None else None, bytes(wrapped) if wrapped is not None else None,
    )  # fmt: skip


class FileCopies:
    """The newest checkpoint as a file, which nobody who has only the database can take back."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "newest.json"

    def newest(self) -> Signed | None:
        """The newest that was copied."""
        if not self._file.exists():
            return None
        content = json.loads(self._file.read_text())
        return Signed(int(content["size"]), bytes.fromhex(content["root"]), str(content["note"]))

    def keep(self, signed: Signed) -> None:
        """Copy one, whole or not at all, and for good; an older one changes nothing."""
        with self._turn():
            there = self.newest()
            if there is None or there.size < signed.size:
                write_surely(self._file, json.dumps({"size": signed.size, "root": signed.root.hex(), "note": signed.note}))

    def keep_cosigned(self, signed: Signed, witness: str) -> None:
        """Copy the newest that a witness has cosigned, as a note that anybody can check."""
        name = re.sub(r"[^A-Za-z0-9.-]", "-", witness)
        with self._turn():
            write_surely(self._file.with_name(f"cosigned-{name}.txt"), signed.note)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        folder = os.open(self._file.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # replicas may share it
            yield
        finally:
            os.close(folder)
