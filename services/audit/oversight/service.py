"""Use cases of oversight: what is signed is looked at, accounts are compared, and what is noticed becomes somebody's task."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from chassis import telemetry
from chassis.audit import Audit, Entry
from chassis.clock import Clock
from chassis.db import Database, Statements, Transaction
from chassis.errors import Forbidden, NotFound, WrongState
from chassis.identity import Caller
from chassis.names import PLATFORM
from chassis.sealing import Sealer
from figures import Tally, canonical, half_year, statement
from google.protobuf.message import DecodeError
from sightline.audit.v1.leaf_pb2 import AuditLeaf, AuditPersonal
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from tlog.note import SignedNote, Signer
from uuid_utils import uuid7

from services.audit.model import LEAF_VERSION, Row, Signed, Stored
from services.audit.oversight.model import (
    DUE,
    WINDOW,
    Account,
    Alert,
    Granted,
    Observation,
    Outcome,
    Progress,
    Rule,
    Served,
    Suspicion,
    choose_reviewer,
    discrepancies,
    is_looked_at,
    observe,
    suspicions,
    troubles,
)
from services.audit.service import open_personal, size_of

_SYSTEM = Actor(kind=ActorKind.ACTOR_KIND_SERVICE, id="service/audit", agency_id=PLATFORM)
_AT_ONCE = 500
_KEPT = WINDOW + timedelta(days=5)


class Log(Protocol):
    """What oversight reads of the log; `services.audit.store.Store` describes each."""

    async def newest(self, db: Statements) -> Signed | None: ...
    async def rows(self, db: Statements, since: int, limit: int) -> list[Row]: ...
    async def entry(self, db: Statements, index: int) -> Stored | None: ...
    async def entries(self, db: Statements, agency_id: str, since: int, until: int, limit: int) -> list[Stored]: ...
    async def keys_of(self, db: Statements, subjects: Sequence[bytes]) -> dict[bytes, tuple[str, bytes]]: ...


class Store(Protocol):
    """What the use cases need of the store; `store.Store` describes each."""

    async def lock(self, tx: Transaction) -> None: ...
    async def progress(self, tx: Transaction) -> tuple[int, int]: ...
    async def observed(self, tx: Transaction, until: int, some: Sequence[Observation]) -> None: ...
    async def judged(self, tx: Transaction, until: int) -> None: ...
    async def agencies(self, db: Statements, since: int) -> list[str]: ...
    async def observations(self, db: Statements, agency_id: str, since: datetime) -> list[Observation]: ...
    async def forget_before(self, tx: Transaction, when: datetime) -> None: ...
    async def serve(self, tx: Transaction, some: Sequence[Served], now: datetime) -> None: ...
    async def grant(self, tx: Transaction, some: Sequence[Granted], now: datetime) -> None: ...
    async def accounts(self, tx: Transaction) -> list[Account]: ...
    async def close(self, tx: Transaction, grant_ids: Sequence[str]) -> None: ...
    async def producers(self, tx: Transaction, now: datetime) -> list[Progress]: ...
    async def new(self, db: Statements, found: Sequence[Suspicion]) -> list[Suspicion]: ...
    async def add(self, tx: Transaction, key: str, alert: Alert) -> bool: ...
    async def save(self, tx: Transaction, alert: Alert) -> None: ...
    async def alert(self, tx: Transaction, alert_id: str) -> Alert | None: ...
    async def alerts(
        self, db: Statements, agencies: Sequence[str], not_of: Sequence[str], before: str | None, limit: int, *, resolved_too: bool
    ) -> list[Alert]: ...
    async def loads(self, tx: Transaction, agency_id: str) -> dict[str, int]: ...
    async def set_reviewers(self, tx: Transaction, agency_id: str, people: Sequence[str]) -> list[Alert]: ...
    async def overdue(self, db: Statements, now: datetime) -> int: ...


class Announcer(Protocol):
    """Tells the world of alerts."""

    def announce(self, tx: Transaction, alert: Alert) -> None:
        """Publish the snapshot with the transaction."""
        ...


class OversightService:
    """Looks, compares, asks people."""

    def __init__(
        self, database: Database, log: Log, store: Store, sealer: Sealer, signer: Signer, announcer: Announcer, audit: Audit, clock: Clock,
        settled: timedelta, silence: timedelta,
    ) -> None:  # fmt: skip
        """Accounts are compared, and a missing number is an alert, after `settled`; a producer that is silent for `silence` is one, too."""
        self._database, self._log, self._store = database, log, store
        self._sealer, self._signer, self._announcer, self._audit, self._clock = sealer, signer, announcer, audit, clock
        self._settled, self._silence, self._since = settled, silence, clock.now()
        self._counting = asyncio.Semaphore(1)

    # --- in ------------------------------------------------------------------------------------------------------

    async def observe(self) -> bool:
        """Look at some more of what is signed; True if there may be more. Any replica may; one at a time does."""
        async with self._database.transaction() as tx:
            await self._store.lock(tx)
            since, _ = await self._store.progress(tx)
            size = size_of(await self._log.newest(tx))
            rows = [row for row in await self._log.rows(tx, since, _AT_ONCE) if row.stored.index < size] if since < size else []
            if not rows:
                return False
            seen = await asyncio.to_thread(lambda: [found for row in rows if (found := self._observe(row)) is not None])
            await self._store.observed(tx, rows[-1].stored.index + 1, seen)
        return len(rows) == _AT_ONCE

    def _observe(self, row: Row) -> Observation | None:
        try:
            leaf = AuditLeaf.FromString(row.stored.leaf.removeprefix(LEAF_VERSION))
        except DecodeError as error:  # changed since it was signed; whoever rereads the log says so
            telemetry.log().error("a leaf cannot be read", index=row.stored.index, error=str(error))
            return None
        if not is_looked_at(leaf):
            return None
        personal = AuditPersonal.FromString(open_personal(row.stored, self._sealer) or b"")
        return observe(row.stored.index, leaf, personal, row.stored.key_id, row.at, lambda *names: self._sealer.tag(*names).hex())

    async def take_served(self, some: Sequence[Served]) -> None:
        """What relays say that they gave out."""
        async with self._database.transaction() as tx:
            await self._store.serve(tx, some, self._clock.now())

    async def take_granted(self, some: Sequence[Granted]) -> None:
        """What is said of grants."""
        async with self._database.transaction() as tx:
            await self._store.grant(tx, some, self._clock.now())

    # --- what is noticed -----------------------------------------------------------------------------------------

    async def judge(self) -> None:
        """Compare, apply the rules, and raise what is new. Any replica may; one at a time does."""
        now = self._clock.now()
        async with self._database.transaction() as tx:
            await self._store.lock(tx)
            found = [each for progress in await self._store.producers(tx, now) for each in self._troubles(progress, now)]
            over = []
            for account in await self._store.accounts(tx):
                suspects, is_over = discrepancies(account, now, self._settled)
                found += suspects
                if is_over:
                    over.append(account.grant_id)
            await self._raise(tx, found)
            await self._store.close(tx, over)
            await self._store.forget_before(tx, now - _KEPT)
        await self._judge_people(now)
        async with self._database.statements() as db:
            if overdue := await self._store.overdue(db, now):
                telemetry.log().error("nobody has said in time what alerts were", alerts=overdue)

    def _troubles(self, progress: Progress, now: datetime) -> list[Suspicion]:
        # While we were away we heard nobody: silence is counted from our start.
        return troubles(replace(progress, heard_at=max(progress.heard_at, self._since)), now, self._settled, self._silence)

    async def _judge_people(self, now: datetime) -> None:
        async with self._database.transaction() as tx:
            observed, judged = await self._store.progress(tx)
            agencies = await self._store.agencies(tx, judged)
        for agency_id in agencies:
            async with self._database.statements() as db:
                observations = await self._store.observations(db, agency_id, now - WINDOW)
            found = await asyncio.to_thread(suspicions, observations)
            async with self._database.transaction() as tx:
                await self._raise(tx, found)
        async with self._database.transaction() as tx:
            await self._store.judged(tx, observed)

    async def dispute(self, why: str) -> None:
        """The log itself is in question."""
        async with self._database.transaction() as tx:
            await self._raise(tx, [Suspicion(Rule.LOG_DISPUTED, why, PLATFORM, why)])

    async def _raise(self, tx: Transaction, found: Sequence[Suspicion]) -> None:
        now = self._clock.now()
        for each in await self._store.new(tx, found) if found else ():
            loads = await self._store.loads(tx, each.agency_id)
            concerned = await self._concerned(tx, each.agency_id, list(loads), each.concerns)
            alert = Alert(
                str(uuid7()), each.rule, each.agency_id, each.explanation, each.evidence, each.concerns, now, now + DUE,
                choose_reviewer(loads, concerned),
            )  # fmt: skip
            if not await self._store.add(tx, each.key, alert):
                continue
            self._tell(tx, alert, "alert.raised", _SYSTEM)
            telemetry.log().warning("alert", rule=alert.rule, alert=alert.alert_id, reviewer=bool(alert.reviewer))

    async def _concerned(self, db: Statements, agency_id: str, people: Sequence[str], key_id: str) -> frozenset[str]:
        """Which of these people of an agency has this key."""
        subjects = {self._sealer.tag("actor", agency_id, person): person for person in people}
        keys = await self._log.keys_of(db, list(subjects)) if key_id else {}
        return frozenset(subjects[subject] for subject, (their_key, _) in keys.items() if their_key == key_id)

    def _tell(self, tx: Transaction, alert: Alert, action: str, actor: Actor, note: str = "") -> None:
        self._announcer.announce(tx, alert)
        details = {"rule": alert.rule.value, "reviewer": alert.reviewer, "outcome": alert.outcome or "", "note": note}
        entry = Entry(action, actor, f"alerts/{alert.alert_id}", alert.agency_id, details={k: v for k, v in details.items() if v})
        self._audit.record(tx, entry)

    # --- what people ask -----------------------------------------------------------------------------------------

    async def alerts(self, caller: Caller, before: str | None, limit: int, *, resolved_too: bool) -> list[Alert]:
        """A page of alerts of the caller's agency and of the platform; none that concerns the caller."""
        async with self._database.transaction() as tx:
            own = await self._own_key(tx, caller)
            agencies = sorted({caller.agency_id, PLATFORM})
            found = await self._store.alerts(tx, agencies, own, before, limit, resolved_too=resolved_too)
            self._note(tx, caller, "alerts.listed", "alerts", {"found": str(len(found))})
        return found

    async def alert(self, caller: Caller, alert_id: str) -> tuple[Alert, Actor | None]:
        """One, and whom it concerns; NotFound also if that is the caller."""
        async with self._database.transaction() as tx:
            alert = await self._alert(tx, caller, alert_id)
            stored = await self._log.entry(tx, alert.evidence[0]) if alert.concerns and alert.evidence else None
            self._note(tx, caller, "alert.read", f"alerts/{alert_id}", {})
        personal = open_personal(stored, self._sealer) if stored else None
        return alert, AuditPersonal.FromString(personal).actor if personal else None

    async def resolve(self, caller: Caller, alert_id: str, outcome: Outcome, note: str) -> Alert:
        """Say what it was. Forbidden for who is no reviewer, WrongState if that was said already."""
        async with self._database.transaction() as tx:
            alert = await self._alert(tx, caller, alert_id)
            if caller.agency_id != alert.agency_id or caller.actor.id not in await self._store.loads(tx, alert.agency_id):
                raise Forbidden(
                    Reason.ERROR_REASON_CALLER_NOT_ALLOWED,
                    f"only reviewers of {alert.agency_id} say what it was; see SetReviewers",
                )
            if alert.outcome is not None:
                raise WrongState(Reason.ERROR_REASON_ALREADY_EXISTS, f"{alert.resolved_by} has said what it was: {alert.outcome}")
            resolved = replace(alert, outcome=outcome, resolved_at=self._clock.now(), resolved_by=caller.actor.id)
            await self._store.save(tx, resolved)
            self._tell(tx, resolved, "alert.resolved", caller.actor, note)
        return resolved

    async def _alert(self, tx: Transaction, caller: Caller, alert_id: str) -> Alert:
        alert = await self._store.alert(tx, alert_id)
        if alert is None or alert.agency_id not in (caller.agency_id, PLATFORM) or alert.concerns in await self._own_key(tx, caller):
            raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such alert")
        return alert

    async def _own_key(self, db: Statements, caller: Caller) -> list[str]:
        keys = await self._log.keys_of(db, [self._sealer.tag("actor", caller.actor.agency_id, caller.actor.id)])
        return [key_id for key_id, _ in keys.values()]

    async def set_reviewers(self, caller: Caller, people: Sequence[str]) -> None:
        """Who looks at the alerts of the caller's agency from now on; open alerts of nobody, or of others, get one of them."""
        async with self._database.transaction() as tx:
            await self._store.lock(tx)
            waiting = await self._store.set_reviewers(tx, caller.agency_id, people)
            self._note(tx, caller, "reviewers.set", f"agencies/{caller.agency_id}", {"reviewers": ", ".join(people)[:1000]})
            for alert in waiting:
                loads = await self._store.loads(tx, caller.agency_id)
                concerned = await self._concerned(tx, caller.agency_id, list(loads), alert.concerns)
                assigned = replace(alert, reviewer=choose_reviewer(loads, concerned))
                if assigned.reviewer != alert.reviewer:
                    await self._store.save(tx, assigned)
                    self._tell(tx, assigned, "alert.assigned", caller.actor)

    async def reviewers(self, caller: Caller) -> list[str]:
        """Who looks at the alerts of the caller's agency."""
        async with self._database.transaction() as tx:
            return sorted(await self._store.loads(tx, caller.agency_id))

    # --- what the public is told ---------------------------------------------------------------------------------

    async def report(self, caller: Caller, period: str) -> tuple[bytes, str, str]:
        """Figures of a half year of the caller's agency, the note that signs them, and the checkpoint that they were counted from."""
        tally = Tally(caller.agency_id, *half_year(period))
        async with self._counting:
            async with self._database.transaction() as tx:
                newest = await self._log.newest(tx)
                self._note(tx, caller, "report.counted", "audit", {"period": period})
            if newest is None:
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "the log is empty")
            start = 0
            while start < newest.size:
                async with self._database.statements() as db:
                    some = await self._log.entries(db, caller.agency_id, start, newest.size, _AT_ONCE)
                for stored in some:
                    tally.add(AuditLeaf.FromString(stored.leaf.removeprefix(LEAF_VERSION)))
                start = some[-1].index + 1 if len(some) == _AT_ONCE else newest.size
        figures = canonical(tally.figures())
        text = statement(figures, self._signer.verifier.name, newest.size, newest.root)
        return figures, str(SignedNote(text, (self._signer.sign(text),))), newest.note

    @property
    def key(self) -> str:
        """What the notes are checked with."""
        return str(self._signer.verifier)

    def _note(self, tx: Transaction, caller: Caller, action: str, target: str, details: dict[str, str]) -> None:
        self._audit.record(tx, Entry(action, caller.actor, target, caller.agency_id, details=details))
