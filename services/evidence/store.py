"""The SQL of recordings, segments and holds."""

import random
from collections.abc import Sequence
from dataclasses import astuple
from datetime import datetime
from typing import LiteralString

from chassis.db import Row, Statements, Transaction

from services.evidence.model import Activated, Deleted, DeletionResult, Hold, HoldReason, KnownEmergency, Recording, RecordingState, Segment

_DELETIONS_AT_ONCE, _HEADS_AT_ONCE = 200, 10_000  # an answer has at most 4 MiB
_RECORDING: LiteralString = (
    "r.recording_id::text, r.version, r.agency_id, r.camera_id, r.officer_id, r.emergency_id::text, r.began_at, r.ended_at, r.state,"
    " r.retain_until, r.held, r.delete_after, r.deleted_at"
)
_SEGMENT: LiteralString = (
    "s.recording_id::text, s.segment_id, s.relay_id, s.pieces, s.size, s.chain, s.received_at, s.captured_from, s.captured_until,"
    " s.deleted_at, s.missing"
)
_HOLD: LiteralString = (
    "h.hold_id::text, h.recording_id::text, h.reason, h.note, h.emergency_id::text, h.placed_by, h.placed_at, h.released_by,"
    " h.released_at, h.release_note, h.lapsed"
)
# What time may make another state of; `Recording.due` decides.
_DUE: LiteralString = (
    " FROM recording r WHERE r.state = 'KEPT' AND NOT r.held AND r.ended_at IS NOT NULL AND r.retain_until <= %(now)s"
    " OR r.state = 'MARKED' AND (r.held OR r.retain_until > %(now)s OR r.delete_after <= %(now)s)"
    " ORDER BY r.recording_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED"
)
_KEEP_HEADS: LiteralString = """
INSERT INTO segment AS s (recording_id, segment_id, relay_id, pieces, size, chain, received_at, captured_from, captured_until)
SELECT * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bytea[], %s::timestamptz[], %s::timestamptz[],
                     %s::timestamptz[])
ON CONFLICT (recording_id, segment_id, relay_id) DO UPDATE
SET pieces = excluded.pieces, size = excluded.size, chain = excluded.chain, received_at = excluded.received_at,
    captured_from = coalesce(s.captured_from, excluded.captured_from), captured_until = coalesce(excluded.captured_until, s.captured_until)
WHERE s.pieces < excluded.pieces
"""
# Each head moves the end of the time on; not for less than a minute, so that a live recording's row is not written every second.
_MOVE_ON: LiteralString = """
WITH wanted AS (
    SELECT r.recording_id, max(n.at) + make_interval(days => coalesce(min(t.days), %s)) AS until
      FROM unnest(%s::uuid[], %s::timestamptz[]) AS n (id, at) JOIN recording r ON r.recording_id = n.id
      LEFT JOIN retention t USING (agency_id) GROUP BY r.recording_id),
     there AS (
    SELECT r.recording_id FROM recording r JOIN wanted USING (recording_id) WHERE r.retain_until < until - interval '1 min'
     ORDER BY r.recording_id FOR UPDATE OF r)
UPDATE recording r SET retain_until = greatest(r.retain_until, until) FROM wanted JOIN there USING (recording_id)
 WHERE r.recording_id = wanted.recording_id
"""
# The emergency that a recording was begun for, and those that its camera was started for meanwhile; not drills and false alarms, nor
# those whose hold is there, or was released by a person.
_REASONS: LiteralString = """
SELECT e.id::text FROM (
    SELECT %(emergency)s::uuid AS id
    UNION SELECT a.emergency_id FROM activated a LEFT JOIN known_emergency k USING (emergency_id)
     WHERE a.agency_id = %(agency)s AND a.camera_id = %(camera)s AND a.officer_id = %(officer)s
       AND a.since <= coalesce(%(ended_at)s::timestamptz, 'infinity') AND coalesce(k.cleared_at, 'infinity') >= %(began_at)s) e
  LEFT JOIN known_emergency k ON k.emergency_id = e.id WHERE NOT coalesce(k.spares, false)
   AND NOT EXISTS (SELECT 1 FROM hold h WHERE h.recording_id = %(recording)s AND h.emergency_id = e.id AND NOT h.lapsed) ORDER BY 1
"""


class Store:
    """All access to recordings. Methods work inside the caller's transaction."""

    # --- recordings ----------------------------------------------------------------------------------------------

    async def recording(self, tx: Transaction, recording_id: str) -> Recording | None:
        """One recording, locked, and with it its holds."""
        row = await tx.one(f"SELECT {_RECORDING} FROM recording r WHERE r.recording_id = %s FOR UPDATE", [recording_id])
        return _recording(row) if row else None

    async def find(self, db: Statements, recording_id: str) -> Recording | None:
        """One recording, as it is at the moment."""
        row = await db.one(f"SELECT {_RECORDING} FROM recording r WHERE r.recording_id = %s", [recording_id])
        return _recording(row) if row else None

    async def add(self, tx: Transaction, recording: Recording) -> bool:
        """Insert a new recording; False if there is one of that id."""
        return bool(
            await tx.execute(
                "INSERT INTO recording (recording_id, version, agency_id, camera_id, officer_id, emergency_id, began_at, ended_at, state,"
                " retain_until, held, delete_after, deleted_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                astuple(recording),
            )
        )

    async def save(self, tx: Transaction, changed: Sequence[Recording]) -> None:
        """Write the next state of recordings that the caller has locked."""
        await tx.many(
            "UPDATE recording SET version = %s, ended_at = %s, state = %s, retain_until = %s, held = %s, delete_after = %s, deleted_at = %s"
            " WHERE recording_id = %s",
            [(r.version, r.ended_at, r.state, r.retain_until, r.held, r.delete_after, r.deleted_at, r.recording_id) for r in changed],
        )

    async def due(self, tx: Transaction, now: datetime, limit: int) -> list[Recording]:
        """Recordings that time makes something of; locked, without waiting for what others have locked."""
        return [_recording(row) for row in await tx.all(f"SELECT {_RECORDING}{_DUE}", {"now": now, "limit": limit})]

    async def page(
        self, db: Statements, agency_id: str, before: str, limit: int, emergency_id: str, state: RecordingState | None
    ) -> list[Recording]:
        """An agency's recordings, the newest first: ids are made of times."""
        rows = await db.all(
            f"SELECT {_RECORDING} FROM recording r WHERE r.agency_id = %(agency)s"
            " AND (%(before)s = '' OR r.recording_id < nullif(%(before)s, '')::uuid) AND (%(state)s::text IS NULL OR r.state = %(state)s)"
            " AND (%(emergency)s = '' OR r.emergency_id = nullif(%(emergency)s, '')::uuid OR r.recording_id IN"
            " (SELECT h.recording_id FROM hold h WHERE h.emergency_id = nullif(%(emergency)s, '')::uuid))"
            " ORDER BY r.recording_id DESC LIMIT %(limit)s",
            {"agency": agency_id, "before": before, "emergency": emergency_id, "state": state, "limit": limit},
        )
        return [_recording(row) for row in rows]

    # --- segments ------------------------------------------------------------------------------------------------

    async def keep_heads(self, tx: Transaction, heads: Sequence[Segment], default_days: int) -> None:
        """Note what was kept, in the order given, and move the ends of the recordings' time on."""
        columns = [list(column) for column in zip(*(astuple(head)[:9] for head in heads), strict=True)]
        # Recordings before their segments, as everywhere: the other order is a deadlock with a deletion's confirmation.
        await tx.execute(
            "SELECT 1 FROM recording WHERE recording_id = ANY(%s::uuid[]) ORDER BY recording_id FOR NO KEY UPDATE", [columns[0]]
        )
        await tx.execute(_KEEP_HEADS, columns)
        await tx.execute(_MOVE_ON, [default_days, [h.recording_id for h in heads], [h.received_at for h in heads]])

    async def segments(self, db: Statements, recording_id: str) -> list[Segment]:
        """All known segments of a recording."""
        rows = await db.all(f"SELECT {_SEGMENT} FROM segment s WHERE s.recording_id = %s", [recording_id])
        return [Segment(**row) for row in rows]

    async def gone(self, tx: Transaction, recording_id: str, relay_id: str, deleted: Sequence[Deleted], now: datetime) -> None:
        """Segments are not at their relay any more; what was deleted is noted as the relay had it."""
        await tx.many(
            "INSERT INTO segment AS s (recording_id, segment_id, relay_id, pieces, size, chain, received_at, deleted_at, missing)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (recording_id, segment_id, relay_id) DO UPDATE"
            " SET deleted_at = coalesce(s.deleted_at, excluded.deleted_at), missing = excluded.missing,"
            " pieces = greatest(s.pieces, excluded.pieces),"
            " size = greatest(s.size, excluded.size), chain = CASE WHEN excluded.pieces > s.pieces THEN excluded.chain ELSE s.chain END",
            [
                (recording_id, d.segment_id, relay_id, d.pieces, d.size, d.chain, now, d.deleted_at or now,
                 d.result == DeletionResult.MISSING)
                for d in deleted
            ],
        )  # fmt: skip

    async def deletions(self, db: Statements, relay_id: str, ids: Sequence[str]) -> dict[str, list[Segment]]:
        """By recording, what a relay shall delete: of those that it names, and of those that it should have."""
        rows = await db.all(
            "SELECT recording_id::text FROM recording WHERE recording_id = ANY(%s::uuid[]) AND state IN ('DELETING', 'DELETED')",
            [list(ids)],
        )
        named = [row["recording_id"] for row in rows]
        more = [] if len(ids) == 1 else await self._missing(db, relay_id, named)
        # Not always the same ones first: one that cannot be deleted must not stand before the others.
        names = (random.sample(named, len(named)) + random.sample(more, len(more)))[:_DELETIONS_AT_ONCE]
        heads = await db.all(
            # A chain that is empty is not compared: somebody has looked at what differs, and let it go.
            "SELECT s.recording_id::text, s.segment_id, s.relay_id, s.pieces, s.size, s.received_at, CASE WHEN EXISTS ("
            "SELECT 1 FROM hold h WHERE h.recording_id = s.recording_id AND h.reason = 'INTEGRITY' AND h.released_at IS NOT NULL)"
            " THEN ''::bytea ELSE s.chain END AS chain FROM segment s"
            " WHERE s.recording_id = ANY(%s::uuid[]) AND s.relay_id = %s AND s.deleted_at IS NULL",
            [names, relay_id],
        )
        found: dict[str, list[Segment]] = {name: [] for name in names}
        for row in heads:
            found[row["recording_id"]].append(Segment(**row))
        return _as_many_as_fit(found)

    async def _missing(self, db: Statements, relay_id: str, but: Sequence[str]) -> list[str]:
        """Recordings that a relay should have something of, and has not named."""
        rows = await db.all(
            "SELECT DISTINCT r.recording_id::text FROM recording r JOIN segment s USING (recording_id) WHERE r.state = 'DELETING'"
            " AND s.relay_id = %s AND s.deleted_at IS NULL AND r.recording_id <> ALL(%s::uuid[]) LIMIT 1000",
            [relay_id, list(but)],
        )
        return [row["recording_id"] for row in rows]

    async def stuck(self, db: Statements, before: datetime) -> int:
        """Recordings whose deletion was due before a time, and that some relay has not confirmed."""
        row = await db.one("SELECT count(*) AS n FROM recording WHERE state = 'DELETING' AND delete_after < %s", [before])
        return int(row["n"]) if row else 0

    async def unknown(self, db: Statements, ids: Sequence[str], before: datetime) -> list[str]:
        """Those of the ids, made before a time, that no recording has."""
        oldest = f"{int(before.timestamp() * 1000):012x}"
        old = [each for each in ids if each.replace("-", "")[:12] < oldest]
        rows = await db.all(
            "SELECT id::text FROM unnest(%s::uuid[]) AS n (id) WHERE NOT EXISTS (SELECT 1 FROM recording r WHERE r.recording_id = n.id)",
            [old],
        )
        return [row["id"] for row in rows]

    # --- holds ---------------------------------------------------------------------------------------------------

    async def holds(self, db: Statements, recording_id: str) -> list[Hold]:
        """All holds of a recording, the newest last."""
        rows = await db.all(f"SELECT {_HOLD} FROM hold h WHERE h.recording_id = %s ORDER BY h.placed_at, h.hold_id", [recording_id])
        return [_hold(row) for row in rows]

    async def hold(self, db: Statements, hold_id: str) -> Hold | None:
        """One hold."""
        row = await db.one(f"SELECT {_HOLD} FROM hold h WHERE h.hold_id = %s", [hold_id])
        return _hold(row) if row else None

    async def add_hold(self, tx: Transaction, hold: Hold) -> bool:
        """Insert a hold of a recording that the caller has locked; False if it, or one for the same emergency, is or was there."""
        return bool(
            await tx.execute(
                "INSERT INTO hold (hold_id, recording_id, reason, note, emergency_id, placed_by, placed_at, released_by, released_at,"
                " release_note, lapsed) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                astuple(hold),
            )
        )

    async def save_hold(self, tx: Transaction, hold: Hold) -> None:
        """Write the release of a hold."""
        await tx.execute(
            "UPDATE hold SET released_by = %s, released_at = %s, release_note = %s, lapsed = %s WHERE hold_id = %s",
            [hold.released_by, hold.released_at, hold.release_note, hold.lapsed, hold.hold_id],
        )

    async def held_for(self, db: Statements, emergency_id: str) -> list[Hold]:
        """Holds of an emergency that are not released."""
        rows = await db.all(f"SELECT {_HOLD} FROM hold h WHERE h.emergency_id = %s AND h.released_at IS NULL", [emergency_id])
        return [_hold(row) for row in rows]

    async def reasons(self, db: Statements, recording: Recording) -> list[str]:
        """Emergencies that a recording has to be kept for."""
        rows = await db.all(
            _REASONS,
            {
                "recording": recording.recording_id, "emergency": recording.emergency_id,
                "agency": recording.agency_id, "camera": recording.camera_id,
                "officer": recording.officer_id, "began_at": recording.began_at, "ended_at": recording.ended_at,
            },
        )  # fmt: skip
        return [row["id"] for row in rows]

    # --- emergencies, retention ----------------------------------------------------------------------------------

    async def keep_emergency(self, db: Statements, known: KnownEmergency) -> None:
        """Note the newest that is known."""
        await db.execute(
            "INSERT INTO known_emergency AS k (emergency_id, version, agency_id, cleared_at, spares) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (emergency_id) DO UPDATE SET version = excluded.version, cleared_at = excluded.cleared_at,"
            " spares = excluded.spares"
            " WHERE k.version < excluded.version",
            astuple(known),
        )

    async def emergency(self, db: Statements, emergency_id: str) -> KnownEmergency | None:
        """What is known of an emergency."""
        row = await db.one(
            "SELECT emergency_id::text, version, agency_id, cleared_at, spares FROM known_emergency WHERE emergency_id = %s", [emergency_id]
        )
        return KnownEmergency(**row) if row else None

    async def keep_activated(self, db: Statements, activated: Activated) -> bool:
        """Note a camera that was started; False if it was known."""
        return bool(
            await db.execute(
                "INSERT INTO activated (emergency_id, agency_id, camera_id, officer_id, since) VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                astuple(activated),
            )
        )

    async def of_emergency(self, db: Statements, emergency_id: str) -> list[str]:
        """Recordings that were begun for an emergency, or of cameras that were started for it and had not ended before."""
        rows = await db.all(
            "SELECT recording_id::text FROM recording WHERE emergency_id = %(id)s UNION SELECT r.recording_id::text FROM activated a"
            " JOIN recording r USING (agency_id, camera_id) WHERE a.emergency_id = %(id)s AND coalesce(r.ended_at, 'infinity') >= a.since"
            " ORDER BY 1",
            {"id": emergency_id},
        )
        return [row["recording_id"] for row in rows]

    async def overlapping(self, db: Statements, activated: Activated) -> list[str]:
        """Recordings of the camera that had not ended when it was started."""
        rows = await db.all(
            "SELECT recording_id::text FROM recording WHERE agency_id = %s AND camera_id = %s AND coalesce(ended_at, 'infinity') >= %s"
            " ORDER BY recording_id",
            [activated.agency_id, activated.camera_id, activated.since],
        )
        return [row["recording_id"] for row in rows]

    async def days(self, db: Statements, agency_id: str) -> int | None:
        """How long an agency keeps recordings; None if it has not said."""
        row = await db.one("SELECT days FROM retention WHERE agency_id = %s", [agency_id])
        return int(row["days"]) if row else None

    async def set_days(self, tx: Transaction, agency_id: str, days: int) -> int:
        """Set it, and move the ends of what is kept on where that is later; returns of how many."""
        await tx.execute(
            "INSERT INTO retention (agency_id, days) VALUES (%s, %s) ON CONFLICT (agency_id) DO UPDATE SET days = excluded.days",
            [agency_id, days],
        )
        return await tx.execute(
            "WITH there AS (SELECT r.recording_id, greatest(r.began_at, r.ended_at, (SELECT max(s.received_at) FROM segment s"
            " WHERE s.recording_id = r.recording_id)) + make_interval(days => %s) AS until FROM recording r"
            " WHERE r.agency_id = %s AND r.state IN ('KEPT', 'MARKED') ORDER BY r.recording_id FOR UPDATE OF r)"
            " UPDATE recording r SET retain_until = until FROM there WHERE r.recording_id = there.recording_id AND r.retain_until < until",
            [days, agency_id],
        )


def _as_many_as_fit(found: dict[str, list[Segment]]) -> dict[str, list[Segment]]:
    """Whole recordings, up to so many heads in all, but one at least."""
    fitting: dict[str, list[Segment]] = {}
    room = _HEADS_AT_ONCE
    for name, heads in found.items():
        room -= len(heads)
        if room < 0 and fitting:
            break
        fitting[name] = heads
    return fitting


def _recording(row: Row) -> Recording:
    return Recording(**row | {"state": RecordingState(row["state"])})


def _hold(row: Row) -> Hold:
    return Hold(**row | {"reason": HoldReason(row["reason"])})
