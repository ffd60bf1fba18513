"""The streams service's SQL."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from datetime import datetime, timedelta
from typing import LiteralString

from chassis.db import NOT_DURABLE, Row, Statements, Transaction

from services.streams.model import (
    Activation,
    CameraFault,
    CameraView,
    Decision,
    Gap,
    Handled,
    KnownEmergency,
    OpenEmergency,
    Order,
    Orders,
    Publish,
    Report,
    State,
)

# A link counts while its replica lives: replicas say so every second.
_LINKED: LiteralString = (
    "c.link_id IS NOT NULL AND EXISTS (SELECT 1 FROM replica r WHERE r.replica_id = c.replica_id AND r.seen_at > now() - interval '3 s')"
)
_ACTIVATION: LiteralString = (
    "a.emergency_id::text, a.epoch, a.camera_id, a.version, a.agency_id, a.officer_id, a.state, a.requested_at, a.expires_at,"
    " a.refusal_reason, a.no_camera_reason, a.ordered_at, a.answered_at, a.device_time, a.traceparent"
)
# What a camera `c` shall stream, and whether somebody watches; `sessions` writes these tables.
_PUBLISH: LiteralString = (
    "coalesce((SELECT json_agg(json_build_object('session_id', s.session_id, 'url', r.ingest_url, 'token', s.token,"
    " 'traceparent', s.traceparent)) FROM session s JOIN relay r ON r.relay_id = s.relay_id"
    " WHERE s.agency_id = c.agency_id AND s.camera_id = c.camera_id AND s.state <> 'ENDED'), '[]')"
)
_WATCHED: LiteralString = (
    "EXISTS (SELECT 1 FROM session s JOIN viewer_grant g ON g.session_id = s.session_id AND g.redeemed_at IS NOT NULL"
    " AND g.ended_at IS NULL WHERE s.agency_id = c.agency_id AND s.camera_id = c.camera_id AND s.state <> 'ENDED')"
)
# The start `a` is wanted by its emergency `k`: of the present epoch, or of an earlier officer who may be involved.
_WANTED: LiteralString = (
    "k.emergency_id = a.emergency_id AND k.is_open"
    " AND (k.epoch = a.epoch OR a.officer_id = ANY(k.involved) AND a.epoch < k.epoch AND a.state <> 'WITHDRAWN')"
)
# An emergency of the camera `c` is open, also when it is too late to start the camera for it.
_IN_EMERGENCY: LiteralString = (
    f"EXISTS (SELECT 1 FROM activation a JOIN known_emergency k ON {_WANTED}"
    " WHERE a.camera_id = c.camera_id AND a.agency_id = c.agency_id AND a.state <> 'WITHDRAWN')"
)
# Values of a field that are kept at the most: a camera that makes up new ones for ever says nothing new.
_VALUES_AT_MOST = 5
_UNFINISHED: LiteralString = "a.state IN ('REQUESTED', 'UNREACHABLE', 'TIMED_OUT', 'WITHDRAWN')"


class Store:
    """All access to the streams service's tables. Methods work inside the caller's transaction."""

    async def keep_emergency(self, tx: Transaction, known: KnownEmergency) -> bool:
        """Keep what is newer than what is known; False if it is not."""
        return bool(
            await tx.execute(
                "INSERT INTO known_emergency AS k (emergency_id, version, epoch, agency_id, is_open, exercise, officer_id, involved)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (emergency_id) DO UPDATE SET"
                " version = excluded.version, epoch = excluded.epoch, is_open = excluded.is_open, officer_id = excluded.officer_id,"
                " involved = excluded.involved WHERE k.version < excluded.version",
                [*astuple(known)[:-1], list(known.involved)],
            )
        )

    async def emergency(self, tx: Transaction, emergency_id: str) -> KnownEmergency | None:
        """What is known of an emergency; it cannot be cleared under the caller."""
        row = await tx.one(
            "SELECT emergency_id::text, version, epoch, agency_id, is_open, exercise, officer_id, involved FROM known_emergency"
            " WHERE emergency_id = %s FOR SHARE",
            [emergency_id],
        )
        return KnownEmergency(**row | {"involved": tuple(row["involved"])}) if row else None

    async def newest_versions(self, db: Statements, limit: int) -> list[tuple[str, int]]:
        """The newest emergencies with their versions, oldest first."""
        rows = await db.all("SELECT emergency_id::text, version FROM known_emergency ORDER BY emergency_id DESC LIMIT %s", [limit])
        return [(row["emergency_id"], row["version"]) for row in reversed(rows)]

    async def versions(self, db: Statements, ids: Sequence[str]) -> dict[str, int]:
        """Versions of those emergencies that are known."""
        rows = await db.all("SELECT emergency_id::text, version FROM known_emergency WHERE emergency_id = ANY(%s::uuid[])", [list(ids)])
        return {row["emergency_id"]: row["version"] for row in rows}

    async def answers(self, db: Statements, names: Iterable[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
        """The accepted answer of each (emergency, epoch) that is known; empty if there is none yet."""
        ids, epochs = zip(*names, strict=True)
        rows = await db.all(
            "SELECT n.id::text, n.epoch, coalesce(d.answer, d.content, '') AS answer FROM unnest(%s::uuid[], %s::int[]) AS n (id, epoch)"
            " JOIN known_emergency k ON k.emergency_id = n.id AND k.epoch >= n.epoch"
            " LEFT JOIN decision d ON d.emergency_id = n.id AND d.epoch = n.epoch",
            [list(ids), list(epochs)],
        )
        return {(row["id"], row["epoch"]): bytes(row["answer"]) for row in rows}

    async def newest_answers(self, db: Statements, limit: int) -> list[tuple[tuple[str, int], bytes]]:
        """The newest decisions' answers by (emergency, epoch), oldest first."""
        rows = await db.all(
            "SELECT emergency_id::text, epoch, answer FROM decision WHERE answer IS NOT NULL ORDER BY emergency_id DESC LIMIT %s", [limit]
        )
        return [((row["emergency_id"], row["epoch"]), bytes(row["answer"])) for row in reversed(rows)]

    async def gaps(self, db: Statements, there: Sequence[OpenEmergency]) -> list[Gap]:
        """Which of the open emergencies are not known in their present version, or have no decision."""
        rows = await db.all(
            "SELECT o.id::text AS emergency_id, o.epoch, coalesce(k.version < o.version, true) AS behind,"
            " d.emergency_id IS NULL AS undecided FROM unnest(%s::uuid[], %s::bigint[], %s::int[]) AS o (id, version, epoch)"
            " LEFT JOIN known_emergency k ON k.emergency_id = o.id LEFT JOIN decision d ON d.emergency_id = o.id AND d.epoch = o.epoch"
            " WHERE k.version IS NULL OR k.version < o.version OR d.emergency_id IS NULL",
            [[e.emergency_id for e in there], [e.version for e in there], [e.epoch for e in there]],
        )
        return [Gap(**row) for row in rows]

    async def open_but_for(self, db: Statements, ids: Sequence[str], limit: int) -> list[str]:
        """Emergencies that are open as far as we know, without some; any of them, so that none waits behind the same others for ever."""
        rows = await db.all(
            "SELECT emergency_id::text FROM known_emergency WHERE is_open AND NOT emergency_id = ANY(%s::uuid[])"
            " ORDER BY random() LIMIT %s",
            [list(ids), limit],
        )
        return [row["emergency_id"] for row in rows]

    async def accept(self, tx: Transaction, decision: Decision, now: datetime) -> bool:
        """Make this the decision of its (emergency, epoch); False if there is one."""
        return bool(
            await tx.execute(
                "INSERT INTO decision (emergency_id, epoch, agency_id, content, answer, decided_by, accepted_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [decision.emergency_id, decision.epoch, decision.agency_id, decision.content, decision.answer, decision.decided_by, now],
            )
        )

    async def accepted(self, db: Statements, emergency_id: str, epoch: int | None = None) -> Row | None:
        """The decision of an epoch, or of the newest; with the number of rejected ones."""
        return await db.one(
            "SELECT content, answer, decided_by, agency_id, epoch,"
            " (SELECT count(*) FROM rejected_decision r WHERE r.emergency_id = d.emergency_id) AS rejected"
            " FROM decision d WHERE emergency_id = %s AND (%s::int IS NULL OR epoch = %s) ORDER BY epoch DESC LIMIT 1",
            [emergency_id, epoch, epoch],
        )

    async def reject(self, tx: Transaction, decision: Decision, why: str, now: datetime) -> bool:
        """Record a decision that is not executed; False if the same one has been recorded."""
        digest = hashlib.sha256(decision.content).digest()
        return bool(
            await tx.execute(
                "INSERT INTO rejected_decision (emergency_id, epoch, decided_by, content_hash, content, why, at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [decision.emergency_id, decision.epoch, decision.decided_by, digest, decision.content, why, now],
            )
        )

    async def add(self, tx: Transaction, new: Sequence[Activation]) -> None:
        """Insert the activations of an accepted decision."""
        await tx.many(
            "INSERT INTO activation (emergency_id, epoch, camera_id, version, agency_id, officer_id, state, requested_at, expires_at,"
            " refusal_reason, no_camera_reason, ordered_at, answered_at, device_time, traceparent)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [astuple(activation) for activation in new],
        )

    async def save(self, tx: Transaction, changed: Sequence[Activation]) -> None:
        """Write the next version of activations that the caller has locked."""
        await tx.many(
            "UPDATE activation SET version = %s, state = %s, refusal_reason = %s, answered_at = %s, device_time = %s"
            " WHERE emergency_id = %s AND epoch = %s AND camera_id = %s",
            [(a.version, a.state, a.refusal_reason, a.answered_at, a.device_time, a.emergency_id, a.epoch, a.camera_id) for a in changed],
        )

    async def of_emergency(self, db: Statements, emergency_id: str, *, epoch: int | None = None, lock: bool = False) -> list[Activation]:
        """Activations of an emergency, or of one of its epochs."""
        query: LiteralString = (
            f"SELECT {_ACTIVATION} FROM activation a WHERE emergency_id = %s AND (%s::int IS NULL OR epoch = %s) ORDER BY epoch, camera_id"
        )
        return [_activation(row) for row in await db.all(query + (" FOR UPDATE" if lock else ""), [emergency_id, epoch, epoch])]

    async def any_overdue(self, db: Statements, requested_before: datetime) -> bool:
        """Whether there are activations without a word that were requested before a time."""
        return (
            await db.one("SELECT 1 FROM activation WHERE state = 'REQUESTED' AND requested_at < %s LIMIT 1", [requested_before]) is not None
        )

    async def overdue(self, tx: Transaction, requested_before: datetime) -> list[tuple[Activation, bool]]:
        """Activations without a word that were requested before a time, and whether their camera is linked."""
        rows = await tx.all(
            f"SELECT {_ACTIVATION}, coalesce({_LINKED}, false) AS linked FROM activation a LEFT JOIN camera c USING (agency_id, camera_id)"
            " WHERE a.state = 'REQUESTED' AND a.requested_at < %s ORDER BY a.requested_at LIMIT 200 FOR UPDATE OF a SKIP LOCKED",
            [requested_before],
        )
        return [(_activation({k: v for k, v in row.items() if k != "linked"}), row["linked"]) for row in rows]

    async def handled(self, tx: Transaction, camera_id: str, agency_id: str, names: Sequence[Handled]) -> list[tuple[Handled, Activation]]:
        """Unfinished activations that a camera now reports on, the newest hundred; locked."""
        by_name = {(h.emergency_id, h.epoch): h for h in names}
        rows = await tx.all(
            f"SELECT {_ACTIVATION} FROM activation a WHERE camera_id = %s AND agency_id = %s AND {_UNFINISHED}"
            " ORDER BY expires_at DESC LIMIT 100 FOR UPDATE OF a",
            [camera_id, agency_id],
        )
        found = [_activation(row) for row in rows]
        return [(by_name[name], a) for a in found if (name := (a.emergency_id, a.epoch)) in by_name]

    async def unexpected(self, tx: Transaction, camera_id: str, agency_id: str, names: Sequence[Handled]) -> list[tuple[str, int]]:
        """Names that this camera was never given."""
        rows = await tx.all(
            "SELECT n.id::text AS emergency_id, n.epoch FROM unnest(%s::uuid[], %s::int[]) AS n (id, epoch)"
            " WHERE NOT EXISTS (SELECT 1 FROM activation a"
            " WHERE a.camera_id = %s AND a.agency_id = %s AND a.emergency_id = n.id AND a.epoch = n.epoch)",
            [[h.emergency_id for h in names], [h.epoch for h in names], camera_id, agency_id],
        )
        return [(row["emergency_id"], row["epoch"]) for row in rows]

    async def add_faults(self, tx: Transaction, camera_id: str, agency_id: str, faults: Mapping[str, str], now: datetime) -> list[str]:
        """Keep values that could not be right, each once; returns the fields of those that are new."""
        rows = await tx.all(
            "INSERT INTO camera_fault (agency_id, camera_id, field, value, first_at)"
            " SELECT %(agency)s, %(camera)s, n.field, n.value, %(now)s"
            " FROM unnest(%(fields)s::text[], %(values)s::text[]) AS n (field, value) WHERE (SELECT count(*) FROM camera_fault f"
            " WHERE f.agency_id = %(agency)s AND f.camera_id = %(camera)s AND f.field = n.field) < %(most)s"
            " ON CONFLICT DO NOTHING RETURNING field",
            {
                "agency": agency_id, "camera": camera_id, "now": now, "fields": list(faults), "values": list(faults.values()),
                "most": _VALUES_AT_MOST,
            },
        )  # fmt: skip
        return [row["field"] for row in rows]

    async def raise_orders(self, tx: Transaction, camera_ids: Sequence[str], agency_id: str) -> None:
        """The orders of these cameras have changed; in one order, so that two callers cannot block each other."""
        await tx.many(
            "INSERT INTO camera AS c (agency_id, camera_id) VALUES (%s, %s)"
            " ON CONFLICT (agency_id, camera_id) DO UPDATE SET orders_version = c.orders_version + 1, changed_at = now()",
            [(agency_id, camera_id) for camera_id in sorted(camera_ids)],
        )

    async def take_orders(self, db: Statements, camera_id: str, agency_id: str, now: datetime) -> Orders:
        """The camera's orders; what they name counts as ordered now."""
        rows = await db.all(
            "WITH told AS (UPDATE activation a SET ordered_at = %(now)s"
            f" FROM {NOT_DURABLE}, known_emergency k WHERE a.camera_id = %(camera)s AND a.agency_id = %(agency)s AND a.ordered_at IS NULL"
            f" AND a.expires_at > %(now)s AND {_WANTED})"
            " SELECT c.orders_version, a.emergency_id::text, a.epoch, a.expires_at, a.traceparent, k.exercise,"
            f" {_PUBLISH} AS publish, {_WATCHED} AS watched, {_IN_EMERGENCY} AS in_emergency FROM camera c"
            f" LEFT JOIN (activation a JOIN known_emergency k ON {_WANTED})"
            " ON a.camera_id = c.camera_id AND a.agency_id = c.agency_id AND a.expires_at > %(now)s"
            " WHERE c.camera_id = %(camera)s AND c.agency_id = %(agency)s ORDER BY a.requested_at",
            {"camera": camera_id, "agency": agency_id, "now": now},
        )
        orders = [
            Order(r["emergency_id"], r["epoch"], r["expires_at"] - now, r["traceparent"], r["exercise"]) for r in rows if r["emergency_id"]
        ]
        if not rows:
            return Orders(0, ())
        publish = tuple(Publish(**each) for each in rows[0]["publish"])
        return Orders(rows[0]["orders_version"], tuple(orders), publish, rows[0]["watched"], rows[0]["in_emergency"])

    async def link(self, tx: Transaction, camera_id: str, agency_id: str, link_id: str, replica_id: str, now: datetime) -> None:
        """Make this the camera's link, ending any other."""
        await tx.execute(
            "INSERT INTO camera AS c (agency_id, camera_id, link_id, replica_id, linked_at) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (agency_id, camera_id) DO UPDATE"
            " SET link_id = excluded.link_id, replica_id = excluded.replica_id, linked_at = excluded.linked_at, changed_at = now()",
            [agency_id, camera_id, link_id, replica_id, now],
        )

    async def unlink(self, tx: Transaction, camera_id: str, agency_id: str, link_id: str) -> None:
        """The link is gone, unless a newer one has taken its place."""
        await tx.execute(
            "UPDATE camera SET link_id = NULL WHERE agency_id = %s AND camera_id = %s AND link_id = %s", [agency_id, camera_id, link_id]
        )

    async def unlink_lost(self, db: Statements, replica_id: str, here: Sequence[str]) -> None:
        """End the links that this replica is said to have and has not: their end could not be written. Forget old replicas."""
        await db.execute(
            "UPDATE camera SET link_id = NULL WHERE (agency_id, camera_id) IN (SELECT agency_id, camera_id FROM camera"
            " WHERE replica_id = %s AND link_id IS NOT NULL AND NOT link_id = ANY(%s::uuid[]) AND linked_at < now() - interval '5 s'"
            " ORDER BY agency_id, camera_id FOR UPDATE)",
            [replica_id, list(here)],
        )
        await db.execute("DELETE FROM replica WHERE seen_at < now() - interval '1 day'")

    async def links(self, db: Statements, link_ids: Sequence[str], replica_id: str) -> dict[str, int]:
        """Which of a replica's links still are their cameras' links, with the version of the camera's orders."""
        rows = await db.all(
            "SELECT link_id::text, orders_version FROM camera WHERE replica_id = %s AND link_id = ANY(%s::uuid[])",
            [replica_id, list(link_ids)],
        )
        return {row["link_id"]: row["orders_version"] for row in rows}

    async def changed(self, db: Statements, lately: timedelta) -> list[Row]:
        """Cameras, of any replica, whose orders or link have changed lately."""
        return await db.all(
            "SELECT agency_id, camera_id, link_id::text, orders_version FROM camera WHERE changed_at > now() - %s", [lately]
        )

    async def alive(self, db: Statements, replica_id: str) -> None:
        """This replica lives, and so do its links."""
        await db.execute(
            f"INSERT INTO replica (replica_id, seen_at) SELECT %s, now() FROM {NOT_DURABLE}"
            " ON CONFLICT (replica_id) DO UPDATE SET seen_at = now()",
            [replica_id],
        )

    async def keep_report(self, db: Statements, camera_id: str, agency_id: str, report: Report, now: datetime) -> None:
        """The camera's newest report; an older one is not its state."""
        await db.execute(
            "UPDATE camera SET boot_id = %s, sequence = %s, report = %s, audio_muted = %s, reported_at = %s WHERE camera_id = %s"
            " AND agency_id = %s AND (boot_id IS NULL OR (boot_id, sequence) < (%s, %s))",
            [
                report.boot_id,
                report.sequence,
                report.content,
                report.audio_muted,
                now,
                camera_id,
                agency_id,
                report.boot_id,
                report.sequence,
            ],
        )

    async def untold(self, db: Statements, before: datetime, limit: int) -> list[tuple[CameraView, int]]:
        """Cameras whose link or report the world does not know, or was told of before a time; each counts as told now, as a version."""
        rows = await db.all(
            "WITH due AS (SELECT agency_id, camera_id FROM camera c WHERE linked_at IS NOT NULL AND (told_at IS NULL OR told_at < %s"
            f" OR told_linked <> ({_LINKED}) OR (boot_id, sequence) IS DISTINCT FROM (told_boot_id, told_sequence))"
            " LIMIT %s FOR UPDATE SKIP LOCKED)"
            f" UPDATE camera c SET told_at = now(), told_version = told_version + 1, told_linked = ({_LINKED}),"
            f" told_boot_id = boot_id, told_sequence = sequence FROM due, {NOT_DURABLE}"
            " WHERE c.agency_id = due.agency_id AND c.camera_id = due.camera_id"
            " RETURNING c.camera_id, c.agency_id, told_linked AS linked, linked_at, reported_at, report, told_version",
            [before, limit],
        )
        return [(CameraView(**{k: v for k, v in row.items() if k != "told_version"}), row["told_version"]) for row in rows]

    async def cameras(self, db: Statements, agency_id: str, after: str, limit: int) -> list[CameraView]:
        """A page of an agency's cameras that have ever linked."""
        rows = await db.all(
            f"SELECT camera_id, agency_id, {_LINKED} AS linked, linked_at, reported_at, report FROM camera c"
            " WHERE agency_id = %s AND camera_id > %s AND linked_at IS NOT NULL ORDER BY camera_id LIMIT %s",
            [agency_id, after, limit],
        )
        found = await db.all(
            "SELECT camera_id, field, value, first_at FROM camera_fault WHERE agency_id = %s AND camera_id = ANY(%s)"
            " ORDER BY first_at, field",
            [agency_id, [row["camera_id"] for row in rows]],
        )
        faults: dict[str, list[CameraFault]] = {}
        for row in found:
            faults.setdefault(row["camera_id"], []).append(CameraFault(row["field"], row["value"], row["first_at"]))
        return [CameraView(**row, faults=tuple(faults.get(row["camera_id"], ()))) for row in rows]


def _activation(row: Row) -> Activation:
    return Activation(**row | {"state": State(row["state"])})
