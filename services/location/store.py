"""The location service's SQL: tracks, each device's newest fix, and agencies' wishes."""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import LiteralString

from chassis.db import Row, Statements, Transaction

from services.location.model import Name, Point, Privacy

_COLUMNS: LiteralString = (
    "unit_key, fixed_at, source, taken_at, latitude, longitude, accuracy_m, speed_mps, course_deg, coarse, clock_suspect, emergency_id,"
    " visible_to, delete_on"
)
_TYPES = (
    "int4", "timestamptz", "int2", "timestamptz", "float8", "float8", "float4", "float4", "float4", "bool", "bool", "text", "text", "date",
)  # fmt: skip


class Store:
    """All access to the location service's tables."""

    async def unit_keys(self, tx: Transaction, names: Iterable[Name]) -> dict[Name, int]:
        """Keys of units; new ones are made."""
        wanted = sorted(set(names))
        columns = [list(column) for column in zip(*wanted, strict=True)] or [[], [], []]
        await tx.execute(
            "INSERT INTO unit (agency_id, kind, unit_id) SELECT * FROM unnest(%s::text[], %s::int2[], %s::text[]) ON CONFLICT DO NOTHING",
            columns,
        )
        rows = await tx.all(
            "SELECT unit_key, agency_id, kind, unit_id FROM unit"
            " JOIN unnest(%s::text[], %s::int2[], %s::text[]) AS n (agency_id, kind, unit_id) USING (agency_id, kind, unit_id)",
            columns,
        )
        return {(row["agency_id"], row["kind"], row["unit_id"]): row["unit_key"] for row in rows}

    async def make_day(self, tx: Transaction, day: date) -> None:
        """A place for points that are deleted on a day."""
        await tx.execute("SELECT make_day(%s)", [day])

    async def drop_days(self, db: Statements) -> list[date]:
        """Drop what was to be deleted by now; the days dropped."""
        return [row["drop_days"] for row in await db.all("SELECT drop_days()")]

    async def keep(self, tx: Transaction, rows: Sequence[tuple[int, Point]]) -> None:
        """Add points with their units' keys; those that are there already change nothing."""
        await tx.execute("CREATE TEMPORARY TABLE IF NOT EXISTS incoming (LIKE position) ON COMMIT DELETE ROWS")
        await tx.copy(f"COPY incoming ({_COLUMNS}) FROM STDIN (FORMAT BINARY)", _TYPES, (_row(key, point) for key, point in rows))
        await tx.execute(f"INSERT INTO position ({_COLUMNS}) SELECT {_COLUMNS} FROM incoming ON CONFLICT DO NOTHING")

    async def track(
        self, tx: Transaction, name: Name, groups: Sequence[str], span: tuple[datetime, datetime], after: tuple[datetime, int] | None,
        limit: int,
    ) -> list[Row]:  # fmt: skip
        """Points of a unit in a span that come after a time and source, in order of time; what only others may see is left out."""
        return await tx.all(
            f"SELECT DISTINCT ON (fixed_at, source) {_COLUMNS} FROM position"
            " WHERE unit_key = (SELECT unit_key FROM unit WHERE agency_id = %s AND kind = %s AND unit_id = %s)"
            " AND fixed_at >= %s AND fixed_at < %s AND (%s::timestamptz IS NULL OR (fixed_at, source) > (%s, %s))"
            " AND (visible_to = '' OR visible_to = ANY(%s)) ORDER BY fixed_at, source, taken_at LIMIT %s",
            [*name, *span, *(after or (None, None))[:1], *(after or (None, None)), list(groups), limit],
        )

    async def unit_exists(self, tx: Transaction, name: Name) -> bool:
        """Whether there has ever been a point of a unit."""
        return await tx.one("SELECT 1 FROM unit WHERE agency_id = %s AND kind = %s AND unit_id = %s", name) is not None

    # --- each device's newest fix ------------------------------------------------------------------------------------

    async def flush(self, tx: Transaction, newest: Sequence[tuple[bytes, datetime, bytes]], gone: Sequence[tuple[bytes, datetime]]) -> None:
        """Keep the newest fixes (device, its time, the record), and forget those of devices that are not newer than a time."""
        columns = [list(column) for column in zip(*newest, strict=True)] or [[], [], []]
        await tx.execute(
            "DELETE FROM latest AS l USING unnest(%s::bytea[], %s::timestamptz[]) AS g (device, at)"
            " WHERE l.device = g.device AND l.fixed_at <= g.at",
            [list(column) for column in zip(*gone, strict=True)] or [[], []],
        )
        await tx.execute(
            "INSERT INTO latest AS l (device, fixed_at, record) SELECT * FROM unnest(%s::bytea[], %s::timestamptz[], %s::bytea[])"
            " ON CONFLICT (device) DO UPDATE SET fixed_at = excluded.fixed_at, record = excluded.record"
            " WHERE l.fixed_at < excluded.fixed_at",
            columns,
        )
        await tx.execute("UPDATE flushed SET at = now()")

    async def drop_latest(self, db: Statements) -> int:
        """Forget devices that have told nothing for a day; how many."""
        return await db.execute("DELETE FROM latest WHERE fixed_at < now() - interval '1 day'")

    async def only_one_flushes(self, tx: Transaction) -> bool:
        """True for one replica at a time, until its transaction ends."""
        row = await tx.one("SELECT pg_try_advisory_xact_lock(hashtext(current_schema() || '/latest')) AS mine")
        return bool(row and row["mine"])

    async def latest(self, db: Statements) -> tuple[list[tuple[bytes, bytes]], datetime]:
        """Every device's key and newest record, and when that was last written."""
        rows = await db.all("SELECT device, record FROM latest")
        flushed = await db.one("SELECT at FROM flushed")
        return [(bytes(row["device"]), bytes(row["record"])) for row in rows], flushed["at"] if flushed else datetime.fromtimestamp(0, UTC)

    # --- what agencies wish ------------------------------------------------------------------------------------------

    async def privacies(self, db: Statements) -> dict[str, Privacy]:
        """By agency, for those that have said."""
        rows = await db.all("SELECT agency_id, idle_resolution, keep_days, keep_idle_days FROM privacy")
        return {row.pop("agency_id"): Privacy(**row) for row in rows}

    async def set_privacy(self, tx: Transaction, agency_id: str, privacy: Privacy) -> None:
        """From now on."""
        await tx.execute(
            "INSERT INTO privacy (agency_id, idle_resolution, keep_days, keep_idle_days) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (agency_id) DO UPDATE SET idle_resolution = excluded.idle_resolution, keep_days = excluded.keep_days,"
            " keep_idle_days = excluded.keep_idle_days",
            [agency_id, privacy.idle_resolution, privacy.keep_days, privacy.keep_idle_days],
        )


def _row(key: int, point: Point) -> tuple[object, ...]:
    fix = point.fix
    return (
        key, datetime.fromtimestamp(fix.fixed_at, UTC), point.source, datetime.fromtimestamp(point.taken_at, UTC),
        fix.latitude, fix.longitude, fix.accuracy_m, fix.speed_mps, fix.course_deg, point.coarse, point.clock_suspect, point.emergency_id,
        point.visible_to, point.delete_on,
    )  # fmt: skip
