"""The SQL of the log, and the copies of its checkpoints in a folder."""

import fcntl
import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import LiteralString

from chassis.db import Row, Statements, Transaction

from services.audit.model import Arrived, Producer, Search, Signed, Stored

_STORED: LiteralString = (
    "SELECT l.index, l.record_id::text, l.agency_id, l.leaf, l.sealed, k.subject, k.wrapped FROM leaf l"
    " LEFT JOIN subject_key k USING (key_id)"
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
        rows = await tx.all("SELECT key_id::text, subject, wrapped FROM subject_key WHERE subject = ANY(%s)", [columns[1]])
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

    async def leaves(self, db: Statements, since: int, limit: int) -> list[tuple[int, bytes]]:
        """Leaves from a place on, in order, as they are stored."""
        rows = await db.all("SELECT index, leaf FROM leaf WHERE index >= %s ORDER BY index LIMIT %s", [since, limit])
        return [(row["index"], bytes(row["leaf"])) for row in rows]

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

    async def sign(self, tx: Transaction, signed: Signed, after: int, at: datetime) -> bool:
        """Insert a checkpoint if the one before it is the newest; False if it is not."""
        return bool(
            await tx.execute(
                "INSERT INTO checkpoint (size, root, note, signed_at) SELECT %s, %s, %s, %s"
                " WHERE (SELECT coalesce(max(size), 0) FROM checkpoint) = %s",
                [signed.size, signed.root, signed.note, at, after],
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
        rows = await db.all(
            "SELECT producer, max(producer_seq) AS highest, max(producer_seq) - count(*) AS missing, max(at) AS newest_at"
            " FROM leaf GROUP BY producer ORDER BY producer"
        )
        return [Producer(**row) for row in rows]


def _stored(row: Row) -> Stored:
    subject, wrapped = row["subject"], row["wrapped"]
    return Stored(
        row["index"], row["record_id"], row["agency_id"], bytes(row["leaf"]), bytes(row["sealed"]),
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
        folder = os.open(self._file.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # replicas may share it
            there = self.newest()
            if there is not None and there.size >= signed.size:
                return
            with NamedTemporaryFile("w", dir=self._file.parent, prefix=".", delete=False) as file:
                json.dump({"size": signed.size, "root": signed.root.hex(), "note": signed.note}, file)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(self._file)
            os.fsync(folder)
        finally:
            os.close(folder)
