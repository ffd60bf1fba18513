"""The SQL of sessions and grants."""

from collections.abc import Sequence
from dataclasses import astuple, fields
from datetime import datetime
from typing import LiteralString

from chassis.db import NOT_DURABLE, Row, Statements, Transaction
from psycopg.types.range import Range

from services.streams.sessions.model import Grant, Holding, Relay, Session, SessionState, Wanted

_ALIVE: LiteralString = "seen_at > now() - interval '3 s'"
_SESSION: LiteralString = (
    "s.session_id::text, s.version, s.agency_id, s.camera_id, s.officer_id, s.emergency_id::text, s.epoch, s.relay_id, s.state, s.degraded,"
    " s.created_at, s.live_at, s.last_media_at, s.ended_at, s.end_cause, s.gaps, s.token, s.traceparent, s.audio_muted, s.not_kept_at"
)
_GRANT: LiteralString = (
    "g.grant_id::text, g.version, g.session_id::text, g.camera_id, g.emergency_id::text, g.agency_id, g.viewer, g.relay_id, g.token_hash,"
    " g.token_expires_at, g.issued_at, g.expires_at, g.redeemed_at, g.lease_until, g.revoked_at, g.end_cause, g.ended_at, g.last_byte_at,"
    " g.bytes, g.skipped"
)
# Cameras that shall stream: named by the present decision of an open emergency, able to record, not asked before, and not named
# for another officer since.
_WANTED: LiteralString = (
    " FROM known_emergency k JOIN activation a ON a.emergency_id = k.emergency_id AND a.epoch = k.epoch WHERE k.is_open"
    " AND a.camera_id <> '' AND a.state NOT IN ('REFUSED', 'WITHDRAWN', 'NO_CAMERA') AND NOT EXISTS (SELECT 1 FROM session s"
    " WHERE s.emergency_id = a.emergency_id AND s.epoch = a.epoch AND s.camera_id = a.camera_id AND s.end_cause <> 'CAMERA_LOST')"
    " AND NOT EXISTS (SELECT 1 FROM session s"
    " WHERE s.agency_id = a.agency_id AND s.camera_id = a.camera_id AND s.officer_id = a.officer_id AND s.state <> 'ENDED')"
    " AND NOT EXISTS (SELECT 1 FROM session s WHERE s.agency_id = a.agency_id AND s.camera_id = a.camera_id"
    " AND s.officer_id = a.officer_id AND s.end_cause = 'HOLDER_CHANGED' AND s.ended_at > a.requested_at)"
    " AND NOT EXISTS (SELECT 1 FROM activation n WHERE n.agency_id = a.agency_id AND n.camera_id = a.camera_id"
    " AND n.officer_id <> a.officer_id AND n.requested_at > a.requested_at)"
)
_HOMELESS: LiteralString = (
    " FROM session s WHERE s.state <> 'ENDED' AND NOT EXISTS (SELECT 1 FROM relay r WHERE r.relay_id = s.relay_id AND NOT draining AND "
    + _ALIVE
    + ")"
    " AND EXISTS (SELECT 1 FROM relay WHERE NOT draining AND " + _ALIVE + ")"
)
# The emergency `k` is a reason for the session `s`: it is open, and about the session's officer, as far as that is settled, or was and
# nobody has said that he or she is not involved.
_REASON: LiteralString = "k.is_open AND (coalesce(k.officer_id, s.officer_id) = s.officer_id OR s.officer_id = ANY(k.involved))"
_POINTLESS: LiteralString = (
    " FROM session s JOIN known_emergency k ON k.emergency_id = s.emergency_id WHERE s.state IN ('GRANTED', 'CONNECTING') AND NOT ("
    + _REASON
    + ")"
)
_SILENT: LiteralString = (
    " FROM session s WHERE s.state = 'LIVE' AND (s.last_media_at < now() - interval '15 s'"
    " OR (NOT s.degraded AND s.last_media_at < now() - interval '3 s'))"
    " OR s.state = 'INTERRUPTED' AND s.last_media_at < now() - interval '7 days'"
)
_GROUNDLESS: LiteralString = (
    " FROM viewer_grant g JOIN known_emergency k ON k.emergency_id = g.emergency_id JOIN session s ON s.session_id = g.session_id"
    " WHERE g.revoked_at IS NULL AND g.ended_at IS NULL AND NOT (" + _REASON + " AND s.state <> 'ENDED')"
)
_LAPSED: LiteralString = (
    " FROM viewer_grant g WHERE g.ended_at IS NULL AND (g.revoked_at IS NULL AND g.expires_at <= now()"
    " OR g.redeemed_at IS NULL AND g.token_expires_at <= now() OR g.lease_until <= now() - interval '60 s')"
)
_MUTED: LiteralString = (
    " FROM session s JOIN camera c USING (agency_id, camera_id) WHERE s.state <> 'ENDED' AND s.audio_muted <> c.audio_muted"
)
_AT_ONCE: LiteralString = " LIMIT 200"
# Sweeps of several replicas do not wait for each other, nor for anybody: the next one comes soon.
_WHO_IS_FREE: LiteralString = " SKIP LOCKED"


class Store:
    """All access to relays, sessions and grants. Methods work inside the caller's transaction."""

    async def report(self, db: Statements, relay: Relay) -> None:
        """A relay is there."""
        await db.execute(
            "INSERT INTO relay (relay_id, ingest_url, view_url, draining, is_full, seen_at)"
            f" SELECT %s, %s, %s, %s, %s, now() FROM {NOT_DURABLE} ON CONFLICT (relay_id) DO UPDATE SET"
            " ingest_url = excluded.ingest_url, view_url = excluded.view_url, draining = excluded.draining, is_full = excluded.is_full,"
            " seen_at = now()",
            astuple(relay),
        )

    async def relay(self, db: Statements, relay_id: str) -> Relay | None:
        """A relay that is there now."""
        row = await db.one(
            f"SELECT relay_id, ingest_url, view_url, draining, is_full FROM relay WHERE relay_id = %s AND {_ALIVE}", [relay_id]
        )
        return Relay(**row) if row else None

    async def loads(self, db: Statements) -> tuple[dict[str, int], set[str]]:
        """Relays that take sessions, with how many they have; and which of them have little room."""
        rows = await db.all(
            "SELECT r.relay_id, r.is_full, (SELECT count(*) FROM session s WHERE s.relay_id = r.relay_id AND s.state <> 'ENDED')"
            " AS sessions"
            f" FROM relay r WHERE NOT draining AND {_ALIVE}"
        )
        return {row["relay_id"]: row["sessions"] for row in rows}, {row["relay_id"] for row in rows if row["is_full"]}

    async def due(self, db: Statements) -> set[str]:
        """What there is to do: place, move, end, silence, mute, revoke, lapse."""
        row = await db.one(
            f"SELECT EXISTS (SELECT 1 {_WANTED}) AS place, EXISTS (SELECT 1 {_HOMELESS}) AS move, EXISTS (SELECT 1 {_POINTLESS}) AS end,"
            f" EXISTS (SELECT 1 {_SILENT}) AS silence, EXISTS (SELECT 1 {_MUTED}) AS mute,"
            f" EXISTS (SELECT 1 {_GROUNDLESS}) AS revoke, EXISTS (SELECT 1 {_LAPSED}) AS lapse"
        )
        return {name for name, is_due in (row or {}).items() if is_due}

    # --- sessions ------------------------------------------------------------------------------------------------

    async def wanted(self, db: Statements) -> list[Wanted]:
        """Cameras that shall stream and have no session."""
        rows = await db.all(
            f"SELECT a.agency_id, a.camera_id, a.officer_id, a.emergency_id::text, a.epoch, a.traceparent {_WANTED}"
            f" ORDER BY a.requested_at{_AT_ONCE}"
        )
        return [Wanted(**row) for row in rows]

    async def add(self, tx: Transaction, new: Sequence[Session]) -> list[Session]:
        """Insert sessions; returns those for which nobody was quicker."""
        added = []
        for session in new:
            if await tx.execute(
                "INSERT INTO session (session_id, version, agency_id, camera_id, officer_id, emergency_id, epoch, relay_id, state,"
                " degraded, created_at, live_at, last_media_at, ended_at, end_cause, gaps, token, traceparent, audio_muted, not_kept_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [getattr(session, each.name) if each.name != "gaps" else [] for each in fields(Session)],
            ):
                added.append(session)
        return added

    async def save(self, tx: Transaction, changed: Sequence[Session]) -> None:
        """Write the next state of sessions that the caller has locked."""
        await tx.many(
            "UPDATE session SET version = %s, relay_id = %s, state = %s, degraded = %s, live_at = %s, last_media_at = %s, ended_at = %s,"
            " end_cause = %s, gaps = %s, audio_muted = %s, not_kept_at = %s WHERE session_id = %s",
            [
                (s.version, s.relay_id, s.state, s.degraded, s.live_at, s.last_media_at, s.ended_at, s.end_cause,
                 [Range(since, until) for since, until in s.gaps], s.audio_muted, s.not_kept_at, s.session_id)
                for s in changed
            ],
        )  # fmt: skip

    async def session(self, tx: Transaction, session_id: str) -> Session | None:
        """One session, locked."""
        found = await self._sessions(tx, " FROM session s WHERE s.session_id = %s", [session_id])
        return found[0] if found else None

    async def sessions(self, tx: Transaction, ids: Sequence[str]) -> list[Session]:
        """Several, locked."""
        return await self._sessions(tx, " FROM session s WHERE s.session_id = ANY(%s::uuid[]) ORDER BY s.session_id", [list(ids)])

    async def open_of_cameras(self, tx: Transaction, names: Sequence[tuple[str, str]]) -> list[Session]:
        """Sessions of cameras, named by agency and camera, that are not over; locked."""
        query: LiteralString = (
            " FROM session s JOIN unnest(%s::text[], %s::text[]) AS n (agency, camera) ON s.agency_id = n.agency AND s.camera_id = n.camera"
            " WHERE s.state <> 'ENDED' ORDER BY s.session_id"
        )
        return await self._sessions(tx, query, [[agency for agency, _ in names], [camera for _, camera in names]])

    async def held_by_others(self, tx: Transaction, holdings: Sequence[Holding]) -> list[Session]:
        """Sessions of cameras that somebody else wears, as was told since they began: older news is of before; locked."""
        query: LiteralString = (
            " FROM session s JOIN unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[]) AS n (agency, camera, officer, at)"
            " ON s.agency_id = n.agency AND s.camera_id = n.camera WHERE s.state <> 'ENDED' AND s.officer_id <> n.officer"
            " AND s.created_at < n.at ORDER BY s.session_id"
        )
        columns = ([getattr(each, name.name) for each in holdings] for name in fields(Holding))
        return await self._sessions(tx, query, list(columns))

    async def homeless(self, tx: Transaction) -> list[Session]:
        """Sessions whose relay is gone, while there are others; locked."""
        return await self._sessions(tx, _HOMELESS + _AT_ONCE, lock=_WHO_IS_FREE)

    async def pointless(self, tx: Transaction) -> list[Session]:
        """Sessions without media whose emergency has been cleared; locked."""
        return await self._sessions(tx, _POINTLESS + _AT_ONCE, lock=_WHO_IS_FREE)

    async def silent(self, tx: Transaction) -> list[Session]:
        """Sessions that have had no media for too long; locked."""
        return await self._sessions(tx, _SILENT + _AT_ONCE, lock=_WHO_IS_FREE)

    async def muted(self, tx: Transaction) -> list[tuple[Session, bool]]:
        """Sessions whose camera reports another state of its microphone, with that; locked."""
        rows = await tx.all(f"SELECT {_SESSION}, c.audio_muted AS is_muted {_MUTED}{_AT_ONCE} FOR UPDATE OF s{_WHO_IS_FREE}")
        return [(_session({k: v for k, v in row.items() if k != "is_muted"}), row["is_muted"]) for row in rows]

    async def _sessions(
        self, tx: Transaction, query: LiteralString, parameters: Sequence[object] = (), lock: LiteralString = ""
    ) -> list[Session]:
        return [_session(row) for row in await tx.all(f"SELECT {_SESSION} {query} FOR UPDATE OF s{lock}", list(parameters))]

    async def still_live(self, db: Statements, relay_id: str, heard: Sequence[tuple[str, datetime]]) -> dict[str, bool]:
        """Note fresh media of a relay's sessions about which nothing else changes; returns those, and whether they are muted."""
        rows = await db.all(
            f"UPDATE session s SET last_media_at = greatest(s.last_media_at, n.at) FROM {NOT_DURABLE},"
            " unnest(%s::uuid[], %s::timestamptz[]) AS n (id, at) WHERE s.session_id = n.id AND s.relay_id = %s AND s.state = 'LIVE'"
            " AND NOT s.degraded"
            " AND n.at > now() - interval '2 s' RETURNING s.session_id::text, s.audio_muted",
            [[session_id for session_id, _ in heard], [at for _, at in heard], relay_id],
        )
        return {row["session_id"]: row["audio_muted"] for row in rows}

    async def of_emergency(self, db: Statements, emergency_id: str, agency_id: str) -> list[Session]:
        """The sessions that were begun for an emergency, and those that its officers' cameras had when it began; the newest first."""
        rows = await db.all(
            f"SELECT {_SESSION} FROM session s WHERE s.agency_id = %(agency)s AND s.session_id IN ("
            "SELECT session_id FROM session WHERE emergency_id = %(id)s UNION SELECT o.session_id FROM activation a JOIN session o"
            " ON o.agency_id = a.agency_id AND o.camera_id = a.camera_id AND o.officer_id = a.officer_id"
            " AND o.created_at <= a.requested_at AND (o.ended_at IS NULL OR o.ended_at > a.requested_at)"
            " WHERE a.emergency_id = %(id)s) ORDER BY s.created_at DESC LIMIT 100",
            {"id": emergency_id, "agency": agency_id},
        )
        return [_session(row) for row in rows]

    # --- grants --------------------------------------------------------------------------------------------------

    async def watchable(self, tx: Transaction, emergency_id: str, camera_id: str) -> Row | None:
        """An emergency's agency, whether it is open, and whom its decisions name with the camera; it cannot be cleared meanwhile."""
        return await tx.one(
            "SELECT k.agency_id, k.is_open, (SELECT a.officer_id FROM activation a WHERE a.emergency_id = k.emergency_id"
            " AND (a.epoch = k.epoch OR a.officer_id = ANY(k.involved)) AND a.agency_id = k.agency_id AND a.camera_id = %s"
            " AND a.state NOT IN ('REFUSED', 'WITHDRAWN', 'NO_CAMERA') ORDER BY a.epoch DESC LIMIT 1) AS officer_id"
            " FROM known_emergency k WHERE k.emergency_id = %s FOR SHARE",
            [camera_id, emergency_id],
        )

    async def add_grant(self, tx: Transaction, grant: Grant) -> None:
        """Insert a new grant."""
        await tx.execute(
            "INSERT INTO viewer_grant (grant_id, version, session_id, camera_id, emergency_id, agency_id, viewer, relay_id, token_hash,"
            " token_expires_at, issued_at, expires_at, redeemed_at, lease_until, revoked_at, end_cause, ended_at, last_byte_at, bytes,"
            " skipped) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            astuple(grant),
        )

    async def save_grants(self, tx: Transaction, changed: Sequence[Grant]) -> None:
        """Write the next state of grants that the caller has locked."""
        await tx.many(
            "UPDATE viewer_grant SET version = %s, relay_id = %s, expires_at = %s, redeemed_at = %s, lease_until = %s, revoked_at = %s,"
            " end_cause = %s, ended_at = %s, last_byte_at = %s, bytes = %s, skipped = %s WHERE grant_id = %s",
            [
                (g.version, g.relay_id, g.expires_at, g.redeemed_at, g.lease_until, g.revoked_at, g.end_cause, g.ended_at, g.last_byte_at,
                 g.bytes, g.skipped, g.grant_id)
                for g in changed
            ],
        )  # fmt: skip

    async def grant_of_token(self, tx: Transaction, token_hash: bytes) -> Grant | None:
        """The grant that a token is for, locked, if its reason still holds."""
        query: LiteralString = (
            " FROM viewer_grant g JOIN known_emergency k ON k.emergency_id = g.emergency_id JOIN session s ON s.session_id = g.session_id"
            " WHERE g.token_hash = %s AND " + _REASON + " AND s.state <> 'ENDED'"
        )
        found = await self._grants(tx, query, [token_hash])
        return found[0] if found else None

    async def grants(self, tx: Transaction, ids: Sequence[str]) -> list[Grant]:
        """Grants, locked."""
        return await self._grants(tx, " FROM viewer_grant g WHERE g.grant_id = ANY(%s::uuid[]) ORDER BY g.grant_id", [list(ids)])

    async def groundless(self, tx: Transaction) -> list[tuple[Grant, str]]:
        """Grants whose emergency was cleared, whose session is over or whose officer it is not about, with why; locked."""
        rows = await tx.all(
            f"SELECT {_GRANT}, CASE WHEN NOT k.is_open THEN '' WHEN s.state = 'ENDED' THEN s.end_cause"
            f" ELSE 'NOT_INVOLVED' END AS cause {_GROUNDLESS}{_AT_ONCE}"
            f" FOR UPDATE OF g{_WHO_IS_FREE}"
        )
        return [(Grant(**{k: v for k, v in row.items() if k != "cause"}), row["cause"]) for row in rows]

    async def lapsed(self, tx: Transaction) -> list[Grant]:
        """Grants that time has ended; locked."""
        return await self._grants(tx, _LAPSED + _AT_ONCE, lock=_WHO_IS_FREE)

    async def _grants(
        self, tx: Transaction, query: LiteralString, parameters: Sequence[object] = (), lock: LiteralString = ""
    ) -> list[Grant]:
        return [Grant(**row) for row in await tx.all(f"SELECT {_GRANT} {query} FOR UPDATE OF g{lock}", list(parameters))]

    async def renew(self, db: Statements, relay_id: str, ids: Sequence[str], until: datetime) -> set[str]:
        """Prolong the leases of those grants that hold; returns them."""
        rows = await db.all(
            f"UPDATE viewer_grant g SET lease_until = %s, relay_id = %s FROM {NOT_DURABLE} WHERE g.grant_id = ANY(%s::uuid[])"
            " AND g.redeemed_at IS NOT NULL AND g.revoked_at IS NULL AND g.expires_at > now() RETURNING g.grant_id::text",
            [until, relay_id, list(ids)],
        )
        return {row["grant_id"] for row in rows}

    async def causes(self, db: Statements, ids: Sequence[str]) -> dict[str, str]:
        """Why grants are over, of those that are known."""
        rows = await db.all("SELECT grant_id::text, end_cause FROM viewer_grant WHERE grant_id = ANY(%s::uuid[])", [list(ids)])
        return {row["grant_id"]: row["end_cause"] for row in rows}


def _session(row: Row) -> Session:
    gaps = tuple((each.lower, each.upper) for each in row["gaps"])
    return Session(**row | {"state": SessionState(row["state"]), "gaps": gaps})
