"""The emergency service's SQL. An emergency is one JSON document, with columns for what the database must enforce."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import LiteralString

from chassis import telemetry
from chassis.db import Row, Statements, Transaction
from psycopg.types.json import Jsonb
from pydantic import TypeAdapter, ValidationError

from services.emergency.events import outcome_in
from services.emergency.model import KEY_LIFE, Emergency, Fact, Outcome, Press, RadioId, outcome_of
from services.emergency.service import KnownPress, OpenEmergency, Result, Seen

_EMERGENCY, _FACT = TypeAdapter(Emergency), TypeAdapter(Fact)
_SEEN: LiteralString = (
    "SELECT emergency_id::text, agency_id, shown FROM emergency WHERE shown_at > now() - %s OR emergency_id = ANY(%s::uuid[])"
)


class Store:
    """All access to the emergency service's tables. Methods work inside the caller's transaction."""

    async def lock_radio(self, tx: Transaction, radio: RadioId) -> None:
        """Presses and cancels of one radio take turns until the transaction ends."""
        await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [str(radio)])

    async def known_press(self, tx: Transaction, press: Press) -> KnownPress | None:
        """What an equal press was answered. One that an older release took has no identity, and counts for the key's life."""
        names = press.names
        if not names.identity:
            return None
        row = await tx.one(
            "SELECT emergency_id::text, version, outcome FROM press"
            " WHERE identity = %(identity)s AND (%(lasts)s OR received_at > %(since)s)"
            " OR identity IS NULL AND key = %(key)s AND request_key = %(request_key)s AND received_at > %(since)s"
            " ORDER BY press_id DESC LIMIT 1",
            {
                "identity": names.identity, "lasts": names.lasts, "key": names.key, "request_key": names.request_key,
                "since": press.clocks.platform_received_at - KEY_LIFE,
            },
        )  # fmt: skip
        return KnownPress(**row) if row else None

    async def emergency_of_press(self, tx: Transaction, key: str, since: datetime) -> tuple[Emergency, str] | None:
        """The emergency that a named press belongs to, and the press's own key."""
        row = await tx.one(
            "SELECT document, key FROM emergency JOIN press USING (emergency_id)"
            " WHERE (key = %s OR request_key = %s) AND received_at > %s ORDER BY press_id DESC LIMIT 1 FOR UPDATE OF emergency",
            [key, key, since],
        )
        return (_EMERGENCY.validate_python(row["document"]), row["key"]) if row else None

    async def came(self, tx: Transaction, emergency: Emergency) -> tuple[Sequence[str], Outcome]:
        """Whose cameras the present epoch's decision named, and what came of it, as far as results have come."""
        rows = await tx.all(
            "SELECT result FROM activation WHERE emergency_id = %s AND epoch = %s", [emergency.emergency_id, emergency.epoch]
        )
        results = [outcome_in(bytes(row["result"])) for row in rows]
        return sorted({officer for officer, _ in results if officer}), outcome_of([state for _, state in results])

    async def press_of_other_radio(self, tx: Transaction, radio: RadioId, agency_id: str, request_id: str) -> bool:
        """Whether another radio's press, through the same agency, had this request_id."""
        found = await tx.one(
            "SELECT 1 FROM press JOIN emergency USING (emergency_id) WHERE request_id = %s AND agency_id = %s AND radio <> %s LIMIT 1",
            [request_id.lower(), agency_id, str(radio)],
        )
        return found is not None

    async def newest_of_radio(self, tx: Transaction, radio: RadioId, agency_id: str) -> Emergency | None:
        """The radio's open emergency in an agency, else its newest."""
        return _emergency(
            await tx.one(
                "SELECT document FROM emergency WHERE radio = %s AND agency_id = %s"
                " ORDER BY is_open DESC, emergency_id DESC LIMIT 1 FOR UPDATE",
                [str(radio), agency_id],
            )
        )

    async def get(self, db: Statements, emergency_id: str, *, lock: bool = False) -> Emergency | None:
        """One emergency; `lock` for a change."""
        query: LiteralString = "SELECT document FROM emergency WHERE emergency_id = %s"
        return _emergency(await db.one(query + (" FOR UPDATE" if lock else ""), [emergency_id]))

    async def insert(self, tx: Transaction, emergency: Emergency) -> None:
        """A new emergency; the database refuses a second open one of the same radio."""
        await tx.execute(
            "INSERT INTO emergency (emergency_id, radio, agency_id, is_open, version, document) VALUES (%s, %s, %s, %s, %s, %s)",
            [emergency.emergency_id, str(emergency.radio), emergency.agency_id, emergency.is_open, emergency.version, _document(emergency)],
        )

    async def update(self, tx: Transaction, emergency: Emergency) -> None:
        """The next version of an emergency that this transaction has locked."""
        done = await tx.execute(
            # What another release keeps in the document stays in it.
            "UPDATE emergency SET is_open = %s, version = %s, document = document || %s, shown = shown + 1, shown_at = now()"
            " WHERE emergency_id = %s AND version = %s",
            [emergency.is_open, emergency.version, _document(emergency), emergency.emergency_id, emergency.version - 1],
        )
        if done != 1:
            raise RuntimeError(f"emergency {emergency.emergency_id} changed under its lock")

    async def add_press(self, tx: Transaction, press: Press, answer: KnownPress) -> None:
        """Remember a press and its answer."""
        await tx.execute(
            "INSERT INTO press (identity, key, request_key, request_id, received_at, emergency_id, version, outcome)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [
                press.names.identity,
                press.names.key,
                press.names.request_key,
                press.request_id,
                press.clocks.platform_received_at,
                answer.emergency_id,
                answer.version,
                answer.outcome,
            ],
        )

    async def keep_cancel(self, tx: Transaction, key: str, fact: Fact) -> None:
        """A cancel that came before its press waits for it; the first one stays. Old ones go."""
        await tx.execute("DELETE FROM pending_cancel WHERE at < %s", [fact.at - KEY_LIFE])
        await tx.execute("INSERT INTO pending_cancel (key, at, fact) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                         [key, fact.at, Jsonb(_FACT.dump_python(fact, mode="json"))])  # fmt: skip

    async def take_cancel(self, tx: Transaction, press: Press) -> Fact | None:
        """The cancel that waits for this press, by either of its names."""
        names = [press.names.key, press.names.request_key]
        row = await tx.one("DELETE FROM pending_cancel WHERE key IN (%s, %s) RETURNING at, fact", names)
        since = press.clocks.platform_received_at - KEY_LIFE
        return _FACT.validate_python(row["fact"]) if row and row["at"] > since else None

    async def page(self, db: Statements, agency_id: str | None, is_open: bool | None, before: str, limit: int) -> list[Emergency]:
        """Emergencies, newest first, that are older than one; of one agency, or of all for None."""
        rows = await db.all(
            "SELECT document FROM emergency WHERE (%s::text IS NULL OR agency_id = %s) AND (%s::bool IS NULL OR is_open = %s)"
            " AND (%s::uuid IS NULL OR emergency_id < %s) ORDER BY emergency_id DESC LIMIT %s",
            [agency_id, agency_id, is_open, is_open, before or None, before or None, limit],
        )
        return _readable(rows)

    async def scan_open(self, db: Statements, after: str, limit: int) -> list[OpenEmergency]:
        """What is open, in short, ordered by id, after an id."""
        rows = await db.all(
            "SELECT emergency_id::text, version, (document->>'epoch')::int AS epoch, (document->>'epoch_started_at')::timestamptz"
            " AS epoch_started_at FROM emergency WHERE is_open AND (%s::uuid IS NULL OR emergency_id > %s) ORDER BY emergency_id LIMIT %s",
            [after or None, after or None, limit],
        )
        return [OpenEmergency(**row) for row in rows]

    async def unpinned(self, db: Statements, limit: int) -> list[Emergency]:
        """Open emergencies that wait for the registry's word on who held the radio, at the epoch's press or at a later one."""
        rows = await db.all(
            "SELECT document FROM emergency WHERE is_open AND (document->'subject'->>'state' = 'UNPINNED'"
            " OR document->>'unsettled_press_at' IS NOT NULL) ORDER BY emergency_id LIMIT %s",
            [limit],
        )
        return _readable(rows)

    async def seen(self, db: Statements, lately: timedelta, *, and_open: bool, also: Sequence[str] = ()) -> list[Seen]:
        """All that changed lately, all that is open with `and_open`, and some by their ids."""
        return [Seen(**row) for row in await db.all(_SEEN + (" OR is_open" if and_open else ""), [lately, list(also)])]

    async def several(self, db: Statements, ids: Sequence[str]) -> list[Emergency]:
        """Emergencies by id."""
        rows = await db.all("SELECT document FROM emergency WHERE emergency_id = ANY(%s::uuid[]) ORDER BY emergency_id", [list(ids)])
        return _readable(rows)

    async def results(self, db: Statements, ids: Sequence[str]) -> Mapping[str, list[bytes]]:
        """Activation results by emergency, in order of epoch and camera."""
        rows = await db.all(
            "SELECT emergency_id::text, result FROM activation WHERE emergency_id = ANY(%s::uuid[]) ORDER BY epoch, camera_id", [list(ids)]
        )
        found: dict[str, list[bytes]] = {}
        for row in rows:
            found.setdefault(row["emergency_id"], []).append(bytes(row["result"]))
        return found

    async def keep_results(self, db: Statements, results: Sequence[Result]) -> None:
        """Keep those that are newer than what is known, and let watchers see it; given in order of their names."""
        columns = [[r.emergency_id for r in results], [r.epoch for r in results], [r.camera_id for r in results],
                   [r.version for r in results], [r.content for r in results]]  # fmt: skip
        # Emergencies are locked in one order, so that two replicas cannot block each other.
        await db.execute(
            "WITH kept AS (INSERT INTO activation AS a (emergency_id, epoch, camera_id, version, result)"
            " SELECT * FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::bigint[], %s::bytea[])"
            " ON CONFLICT (emergency_id, epoch, camera_id) DO UPDATE SET version = excluded.version, result = excluded.result"
            " WHERE a.version < excluded.version RETURNING emergency_id),"
            " shown AS (SELECT emergency_id FROM emergency WHERE emergency_id IN (SELECT emergency_id FROM kept)"
            " ORDER BY emergency_id FOR UPDATE)"
            " UPDATE emergency SET shown = shown + 1, shown_at = now() WHERE emergency_id IN (SELECT emergency_id FROM shown)",
            columns,
        )

    async def newest_results(self, db: Statements, limit: int) -> list[tuple[tuple[str, int, str], int]]:
        """Versions of the newest emergencies' results by (emergency, epoch, camera), oldest first."""
        rows = await db.all(
            "SELECT emergency_id::text, epoch, camera_id, version FROM activation ORDER BY emergency_id DESC LIMIT %s", [limit]
        )
        return [((row["emergency_id"], row["epoch"], row["camera_id"]), row["version"]) for row in reversed(rows)]


def _document(emergency: Emergency) -> Jsonb:
    return Jsonb(_EMERGENCY.dump_python(emergency, mode="json"))


def _readable(rows: Sequence[Row]) -> list[Emergency]:
    """One document that cannot be read must not hide the others."""
    found = []
    for row in rows:
        try:
            found.append(_EMERGENCY.validate_python(row["document"]))
        except ValidationError as error:
            telemetry.log().error("an emergency cannot be read", emergency=row["document"].get("emergency_id"), error=str(error))
    return found


def _emergency(row: Row | None) -> Emergency | None:
    return _EMERGENCY.validate_python(row["document"]) if row else None
