"""The SQL of oversight."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString

from chassis.db import Row, Statements, Transaction

from services.audit.oversight.model import Account, Alert, Granted, Observation, Outcome, Progress, Rule, Served, Suspicion

_OPEN_AT_MOST, _OBSERVED_AT_MOST, _GAPS_NAMED = 10_000, 200_000, 5
_GAPS: LiteralString = (
    "SELECT before + 1 AS since, producer_seq - 1 AS until FROM"
    " (SELECT producer_seq, lag(producer_seq, 1, 0::bigint) OVER (ORDER BY producer_seq) AS before FROM leaf WHERE producer = %s) AS l"
    " WHERE producer_seq > before + 1 ORDER BY 1 LIMIT %s"
)
_ALERT: LiteralString = (
    "SELECT alert_id::text, rule, agency_id, explanation, evidence, concerns, raised_at, due_at, reviewer, outcome, resolved_at,"
    " resolved_by FROM alert"
)


class Store:
    """All access to observations, accounts and alerts. Methods work inside the caller's transaction."""

    async def lock(self, tx: Transaction) -> None:
        """One transaction at a time, among all replicas, observes or judges."""
        await tx.execute("SELECT pg_advisory_xact_lock(hashtext(current_schema() || '/oversight'))")

    # --- observations --------------------------------------------------------------------------------------------

    async def progress(self, tx: Transaction) -> tuple[int, int]:
        """The first leaf that was not looked at, and the first that was not judged."""
        row = await tx.one("SELECT observed, judged FROM progress")
        return (int(row["observed"]), int(row["judged"])) if row else (0, 0)

    async def observed(self, tx: Transaction, until: int, some: Sequence[Observation]) -> None:
        """Keep what was seen in leaves before `until`, and what it says of grants."""
        await tx.execute("UPDATE progress SET observed = %s", [until])
        await tx.many(
            "INSERT INTO observation (index, at, agency_id, action, who, emergency_id, grant_id, session_id, officer, text, disposition)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [
                (o.index, o.at, o.agency_id, o.action, o.who, o.emergency_id, o.grant_id, o.session_id, o.officer, o.text, o.disposition)
                for o in some
            ],
        )
        await tx.many(
            "INSERT INTO account (grant_id, issued_index, issued_by) VALUES (%s, %s, %s) ON CONFLICT (grant_id) DO UPDATE"
            " SET issued_index = coalesce(account.issued_index, excluded.issued_index), issued_by = excluded.issued_by, is_judged = false",
            [(o.grant_id, o.index, o.who) for o in some if o.action == "grant.issued"],
        )
        await tx.many(
            "INSERT INTO account (grant_id, ended_index, recorded_bytes) VALUES (%s, %s, %s) ON CONFLICT (grant_id) DO UPDATE"
            " SET ended_index = excluded.ended_index, recorded_bytes = excluded.recorded_bytes, is_judged = false",
            [(o.grant_id, o.index, o.bytes) for o in some if o.action == "grant.ended"],
        )

    async def judged(self, tx: Transaction, until: int) -> None:
        """All observations before `until` have been judged."""
        await tx.execute("UPDATE progress SET judged = %s", [until])

    async def agencies(self, db: Statements, since: int) -> list[str]:
        """Agencies that observations from a leaf on are of."""
        return [row["agency_id"] for row in await db.all("SELECT DISTINCT agency_id FROM observation WHERE index >= %s", [since])]

    async def observations(self, db: Statements, agency_id: str, since: datetime) -> list[Observation]:
        """An agency's observations since a time, in the log's order; the newest ones if there are too many."""
        rows = await db.all(
            "SELECT index, at, agency_id, action, who, emergency_id, grant_id, session_id, officer, text, disposition FROM observation"
            " WHERE agency_id = %s AND at >= %s ORDER BY index DESC LIMIT %s",
            [agency_id, since, _OBSERVED_AT_MOST],
        )
        return [Observation(**row) for row in reversed(rows)]

    async def forget_before(self, tx: Transaction, when: datetime) -> None:
        """Observations and accounts that no rule asks for any more."""
        await tx.execute("DELETE FROM observation WHERE at < %s", [when])
        await tx.execute("DELETE FROM account WHERE began_at < %s", [when])

    # --- accounts ------------------------------------------------------------------------------------------------

    async def serve(self, tx: Transaction, some: Sequence[Served], now: datetime) -> None:
        """What relays say; told again, or in another order, it changes nothing."""
        await tx.many(
            "INSERT INTO account AS a (grant_id, served_bytes, last_byte_at, served_over, served_since) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (grant_id) DO UPDATE SET served_bytes = greatest(a.served_bytes, excluded.served_bytes),"
            " last_byte_at = greatest(a.last_byte_at, excluded.last_byte_at), served_over = a.served_over OR excluded.served_over,"
            " served_since = coalesce(a.served_since, excluded.served_since), is_judged = false"
            " WHERE (a.served_bytes, a.served_over) IS DISTINCT FROM (excluded.served_bytes, excluded.served_over)",
            [(s.grant_id, s.bytes, s.last_byte_at, s.is_over, now) for s in some],
        )

    async def grant(self, tx: Transaction, some: Sequence[Granted], now: datetime) -> None:
        """What the giver of grants says; the highest version counts."""
        await tx.many(
            "INSERT INTO account AS a (grant_id, version, agency_id, bytes, revoked_at, end_cause, ended_at, ended_since)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (grant_id) DO UPDATE SET"
            " version = excluded.version, agency_id = excluded.agency_id, bytes = excluded.bytes, revoked_at = excluded.revoked_at,"
            " end_cause = excluded.end_cause, ended_at = excluded.ended_at, ended_since = excluded.ended_since, is_judged = false"
            " WHERE a.version IS NULL OR a.version < excluded.version",
            [
                (g.grant_id, g.version, g.agency_id, g.bytes, g.revoked_at, g.end_cause, g.ended_at, now if g.ended_at else None)
                for g in some
            ],
        )

    async def accounts(self, tx: Transaction) -> list[Account]:
        """Those whose last word was not judged."""
        rows = await tx.all(
            "SELECT grant_id, served_bytes, last_byte_at, served_over, served_since, version, agency_id, bytes, revoked_at, end_cause,"
            " ended_at, ended_since, issued_index, issued_by, ended_index, recorded_bytes FROM account WHERE NOT is_judged"
            " ORDER BY began_at LIMIT %s",
            [_OPEN_AT_MOST],
        )
        return [_account(row) for row in rows]

    async def close(self, tx: Transaction, grant_ids: Sequence[str]) -> None:
        """The last word on these was judged."""
        await tx.execute("UPDATE account SET is_judged = true WHERE grant_id = ANY(%s)", [list(grant_ids)])

    # --- producers -----------------------------------------------------------------------------------------------

    async def producers(self, tx: Transaction, now: datetime) -> list[Progress]:
        """How all of them come on, with the first numbers that are missing of those that miss some."""
        await tx.execute(
            "UPDATE producer SET gap_since = CASE WHEN highest > count THEN coalesce(gap_since, %s) END"
            " WHERE (highest > count) IS DISTINCT FROM (gap_since IS NOT NULL)",
            [now],
        )
        found = []
        for row in await tx.all("SELECT producer, highest, highest - count AS missing, gap_since, heard_at FROM producer"):
            gaps = await tx.all(_GAPS, [row["producer"], _GAPS_NAMED]) if row["missing"] else []
            found.append(Progress(**row, gaps=[(gap["since"], gap["until"]) for gap in gaps]))
        return found

    # --- alerts --------------------------------------------------------------------------------------------------

    async def new(self, db: Statements, found: Sequence[Suspicion]) -> list[Suspicion]:
        """Those that are no alert yet, each once."""
        by_name = {(each.rule.value, each.key): each for each in found}
        rows = await db.all(
            "SELECT n.rule, n.key FROM unnest(%s::text[], %s::text[]) AS n (rule, key) JOIN alert a ON a.rule = n.rule AND a.key = n.key",
            [[rule for rule, _ in by_name], [key for _, key in by_name]],
        )
        known = {(row["rule"], row["key"]) for row in rows}
        return [each for name, each in by_name.items() if name not in known]

    async def add(self, tx: Transaction, key: str, alert: Alert) -> bool:
        """Insert one; False if it is there."""
        return bool(
            await tx.execute(
                "INSERT INTO alert (alert_id, rule, key, agency_id, explanation, evidence, concerns, raised_at, due_at, reviewer)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [
                    alert.alert_id, alert.rule.value, key, alert.agency_id, alert.explanation, list(alert.evidence), alert.concerns,
                    alert.raised_at, alert.due_at, alert.reviewer,
                ],
            )
        )  # fmt: skip

    async def save(self, tx: Transaction, alert: Alert) -> None:
        """Write who looks at it, and what it was."""
        await tx.execute(
            "UPDATE alert SET reviewer = %s, outcome = %s, resolved_at = %s, resolved_by = %s WHERE alert_id = %s",
            [alert.reviewer, alert.outcome, alert.resolved_at, alert.resolved_by, alert.alert_id],
        )

    async def alert(self, tx: Transaction, alert_id: str) -> Alert | None:
        """One, kept for this transaction."""
        row = await tx.one(f"{_ALERT} WHERE alert_id = %s FOR UPDATE", [alert_id])
        return _to_alert(row) if row else None

    async def alerts(
        self, db: Statements, agencies: Sequence[str], not_of: Sequence[str], before: str | None, limit: int, *, resolved_too: bool
    ) -> list[Alert]:
        """A page of agencies' alerts, the newest first, without those that concern `not_of`."""
        rows = await db.all(
            f"{_ALERT} WHERE agency_id = ANY(%s) AND concerns <> ALL(%s) AND (%s::uuid IS NULL OR alert_id < %s::uuid)"
            " AND (%s OR outcome IS NULL) ORDER BY alert_id DESC LIMIT %s",
            [list(agencies), list(not_of), before, before, resolved_too, limit],
        )
        return [_to_alert(row) for row in rows]

    async def loads(self, tx: Transaction, agency_id: str) -> dict[str, int]:
        """Reviewers of an agency, and how many open alerts each has."""
        rows = await tx.all(
            "SELECT r.person, count(a.alert_id) AS open FROM reviewer r LEFT JOIN alert a"
            " ON a.agency_id = r.agency_id AND a.reviewer = r.person AND a.outcome IS NULL WHERE r.agency_id = %s GROUP BY r.person",
            [agency_id],
        )
        return {row["person"]: int(row["open"]) for row in rows}

    async def set_reviewers(self, tx: Transaction, agency_id: str, people: Sequence[str]) -> list[Alert]:
        """Replace them; returns the open alerts whose reviewer is none of them."""
        await tx.execute("DELETE FROM reviewer WHERE agency_id = %s", [agency_id])
        await tx.execute("INSERT INTO reviewer (agency_id, person) SELECT %s, unnest(%s::text[])", [agency_id, list(people)])
        rows = await tx.all(
            f"{_ALERT} WHERE agency_id = %s AND outcome IS NULL AND reviewer <> ALL(%s) ORDER BY alert_id FOR UPDATE",
            [agency_id, list(people)],
        )
        return [_to_alert(row) for row in rows]

    async def overdue(self, db: Statements, now: datetime) -> int:
        """How many open alerts are past their date."""
        row = await db.one("SELECT count(*) AS n FROM alert WHERE outcome IS NULL AND due_at < %s", [now])
        return int(row["n"]) if row else 0


def _account(row: Mapping[str, Any]) -> Account:
    served = granted = None
    if row["served_since"]:
        served = Served(row["grant_id"], row["served_bytes"], row["last_byte_at"], row["served_over"])
    if row["version"] is not None:
        granted = Granted(
            row["grant_id"], row["version"], row["agency_id"], row["bytes"], row["revoked_at"], row["end_cause"], row["ended_at"]
        )
    return Account(
        row["grant_id"], served, row["served_since"], granted, row["ended_since"], row["issued_index"], row["issued_by"],
        row["ended_index"], row["recorded_bytes"],
    )  # fmt: skip


def _to_alert(row: Row) -> Alert:
    outcome = Outcome(row["outcome"]) if row["outcome"] else None
    return Alert(**row | {"rule": Rule(row["rule"]), "outcome": outcome})
