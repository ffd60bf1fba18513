"""The streams service's use cases: decisions become orders, reports become outcomes."""

import asyncio
import random
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, Protocol

from chassis import telemetry
from chassis.audit import Audit, Entry
from chassis.bus import TRANSIENT
from chassis.clock import Clock
from chassis.db import Database, Row, Statements, Transaction
from chassis.errors import Changed, NotFound, Unavailable
from chassis.identity import Caller, Machine
from chassis.recent import Recent, Tally, Waiting
from sightline.audit.v1.record_pb2 import AuditOutcome
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from services.streams.model import (
    RECONCILE_AFTER,
    UNREACHABLE_AFTER,
    Activation,
    CameraView,
    Decision,
    Gap,
    Handled,
    KnownEmergency,
    OpenEmergency,
    Orders,
    Report,
    activations,
    is_early,
    refusal_of_decision,
)  # fmt: skip

# What waits at the most; `reconcile` brings back what gives way. Decisions wait for their emergency only so long.
_WAITING_AT_MOST, _EARLY_FOR = 1000, timedelta(seconds=2)
# What another replica is expected to do is looked at after this time.
_LATER = timedelta(milliseconds=150)
# Gaps that one turn closes at the most, and how many at a time.
_GAPS_AT_MOST, _GAPS_AT_ONCE = 500, 8
# Entries that a start reads: more than a day of emergencies, or of decisions.
_WARM = 20_000
# What changed lately is looked at again and again; a commit seldom takes longer.
_LATELY = timedelta(seconds=3)
# Names of a report that are looked up at the most.
_LOOKED_UP = 200
_UNDECIDED_AFTER = timedelta(seconds=5)
_SYSTEM = Actor(kind=ActorKind.ACTOR_KIND_SERVICE, id="service/streams", agency_id="platform")


class Streams(Protocol):
    """What the use cases need of the store; `store.Store` describes each."""

    async def keep_emergency(self, tx: Transaction, known: KnownEmergency) -> bool: ...
    async def emergency(self, tx: Transaction, emergency_id: str) -> KnownEmergency | None: ...
    async def newest_versions(self, db: Statements, limit: int) -> list[tuple[str, int]]: ...
    async def versions(self, db: Statements, ids: Sequence[str]) -> dict[str, int]: ...
    async def answers(self, db: Statements, names: Iterable[tuple[str, int]]) -> dict[tuple[str, int], bytes]: ...
    async def newest_answers(self, db: Statements, limit: int) -> list[tuple[tuple[str, int], bytes]]: ...
    async def gaps(self, db: Statements, there: Sequence[OpenEmergency]) -> list[Gap]: ...
    async def open_but_for(self, db: Statements, ids: Sequence[str], limit: int) -> list[str]: ...
    async def accept(self, tx: Transaction, decision: Decision, now: datetime) -> bool: ...
    async def accepted(self, db: Statements, emergency_id: str, epoch: int | None = None) -> Row | None: ...
    async def reject(self, tx: Transaction, decision: Decision, why: str, now: datetime) -> bool: ...
    async def add(self, tx: Transaction, new: Sequence[Activation]) -> None: ...
    async def save(self, tx: Transaction, changed: Sequence[Activation]) -> None: ...
    async def of_emergency(
        self, db: Statements, emergency_id: str, *, epoch: int | None = None, lock: bool = False
    ) -> list[Activation]: ...
    async def any_overdue(self, db: Statements, requested_before: datetime) -> bool: ...
    async def overdue(self, tx: Transaction, requested_before: datetime) -> list[tuple[Activation, bool]]: ...
    async def handled(
        self, tx: Transaction, camera_id: str, agency_id: str, names: Sequence[Handled]
    ) -> list[tuple[Handled, Activation]]: ...
    async def unexpected(self, tx: Transaction, camera_id: str, agency_id: str, names: Sequence[Handled]) -> list[tuple[str, int]]: ...
    async def add_faults(self, tx: Transaction, camera_id: str, agency_id: str, faults: Mapping[str, str], now: datetime) -> list[str]: ...
    async def raise_orders(self, tx: Transaction, camera_ids: Sequence[str], agency_id: str) -> None: ...
    async def take_orders(self, db: Statements, camera_id: str, agency_id: str, now: datetime) -> Orders: ...
    async def link(self, tx: Transaction, camera_id: str, agency_id: str, link_id: str, replica_id: str, now: datetime) -> None: ...
    async def unlink(self, tx: Transaction, camera_id: str, agency_id: str, link_id: str) -> None: ...
    async def unlink_lost(self, db: Statements, replica_id: str, here: Sequence[str]) -> None: ...
    async def links(self, db: Statements, link_ids: Sequence[str], replica_id: str) -> dict[str, int]: ...
    async def changed(self, db: Statements, lately: timedelta) -> list[Row]: ...
    async def alive(self, db: Statements, replica_id: str) -> None: ...
    async def keep_report(self, db: Statements, camera_id: str, agency_id: str, report: Report, now: datetime) -> None: ...
    async def cameras(self, db: Statements, agency_id: str, after: str, limit: int) -> list[CameraView]: ...


class Peers(Protocol):
    """What we ask the emergency service and the registry; Unavailable without an answer. `peers.Peers` describes each."""

    async def open_emergencies(self) -> list[OpenEmergency]: ...
    def here(self, at: datetime) -> datetime: ...
    async def emergency(self, emergency_id: str) -> KnownEmergency | None: ...
    async def decide(self, emergency_id: str) -> tuple[KnownEmergency | None, Decision | None]: ...


class Announcer(Protocol):
    """Tells the world what becomes of decisions, with the transaction; `events.ActivationAnnouncer` describes each."""

    def announce(self, tx: Transaction, activation: Activation) -> None: ...
    def announce_rejection(self, tx: Transaction, decision: Decision, why: str, now: datetime) -> None: ...


Name = tuple[str, int, str, bytes]
Came = Literal["done", "waits", "failed"]


def _name(decision: Decision) -> Name:
    return decision.emergency_id, decision.epoch, decision.decided_by, decision.answer


@dataclass(eq=False)
class LocalLink:
    """A camera's link on this replica. `wake` is set when its orders may have changed."""

    camera: Machine
    link_id: str
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    sent_version: int = 0
    superseded: bool = False

    def __post_init__(self) -> None:
        self.wake.set()  # its first orders


class StreamsService:
    """Decisions, orders, reports."""

    def __init__(
        self, database: Database, store: Streams, peers: Peers, announcer: Announcer, audit: Audit, clock: Clock, replica: str,
        nudge: asyncio.Event | None = None,
    ) -> None:  # fmt: skip
        """`nudge` is set when cameras may have to stream, or people to stop watching."""
        self._database, self._store, self._peers, self._announcer = database, store, peers, announcer
        self._audit, self._clock, self._replica = audit, clock, replica
        self._links: dict[tuple[str, str], LocalLink] = {}
        self._decisions: Waiting[Name, Decision] = Waiting(_WAITING_AT_MOST)
        self._news: Waiting[str, KnownEmergency] = Waiting(_WAITING_AT_MOST)
        self._cameras: Recent[str, tuple[str, ...]] = Recent()  # of an emergency, as the last decision named them
        # Records come twice and more: from two lanes, from a start that reads a day again. These spare the database.
        self._versions: Recent[str, int] = Recent()
        self._answers: Recent[tuple[str, int], bytes] = Recent()
        self._undecided: set[tuple[str, int]] = set()
        # What cameras say and nobody ordered, each name once; and values that could not be right, each once.
        self._named: Recent[tuple[str, str, str, int], bool] = Recent()
        self._unexpected: Tally[tuple[str, str]] = Tally()
        self._faults: Recent[tuple[str, str, str, str], bool] = Recent()
        self._nudge = nudge or asyncio.Event()
        self.reconciled = asyncio.Event()

    # --- what comes from Kafka -----------------------------------------------------------------------------------

    async def warm_up(self) -> None:
        """Remember what the database knows, before topics are read from their past."""
        async with self._database.statements() as db:
            self._versions.warm(await self._store.newest_versions(db, _WARM))
            self._answers.warm(await self._store.newest_answers(db, _WARM))

    async def take_emergency(self, known: KnownEmergency) -> None:
        """An emergency has changed; decisions that have waited for it go on.

        The replica that holds the link of its camera acts at once. The others look a moment later whether it was done.
        """
        key = known.emergency_id
        is_news = (self._versions.get(key) or 0) < known.version
        if is_news:
            await self._make_room()
            self._notice(known)
        await self._take_waiting(key)  # each keeps the news with it
        if is_news and self._news.get(key) is not None and self._holds_a_link(known.agency_id, self._cameras.get(key) or ()):
            await self._keep_emergency(known)

    async def _make_room(self) -> None:
        """Unavailable, so that the record comes again, rather than forget what has not been written."""
        if self._news.is_full:
            await self.look_again(timedelta(0))
            if self._news.is_full:
                raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "too much waits to be written")

    async def catch_up(self) -> None:
        """Write all that has been heard of emergencies up to now; Unavailable while it cannot be written."""
        began = self._clock.now()
        await self.look_again(timedelta(0))
        if waiting := self._news.since(began):
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, f"{len(waiting)} changes of emergencies wait to be written")

    def _notice(self, known: KnownEmergency) -> None:
        waits = self._news.get(known.emergency_id)
        if waits is None or waits.version < known.version:
            self._news.put(known.emergency_id, known, self._clock.now())

    async def _take_waiting(self, emergency_id: str, *, all_of_them: bool = False) -> None:
        for decision in self._decisions.all():
            if decision.emergency_id == emergency_id and (all_of_them or self._is_ours(decision)):
                await self._take_decision(decision)

    async def _keep_emergency(self, known: KnownEmergency) -> None:
        async with self._database.transaction() as tx:
            cameras = await self._keep(tx, known)
            await self._store.raise_orders(tx, cameras, known.agency_id)
        self._kept(known, cameras)

    async def _keep(self, tx: Transaction, known: KnownEmergency) -> Sequence[str]:
        """Write what is newer. A clear or a new epoch withdraws what no camera has answered; returns cameras whose orders change.

        The caller raises those, once in a transaction: two sorted lists one after the other are not sorted, and so a deadlock.
        """
        if not await self._store.keep_emergency(tx, known) or (known.is_open and known.epoch == 1):
            return ()
        there = await self._store.of_emergency(tx, known.emergency_id, lock=True)
        gone = [a for a in there if not known.stands(a)]
        await self._save(tx, gone, [a.withdrawn() for a in gone])
        return sorted({a.camera_id for a in gone if a.camera_id})

    def _kept(self, known: KnownEmergency, cameras: Sequence[str]) -> None:
        """It is committed, by us or by another replica."""
        key = known.emergency_id
        self._versions.put(key, max(known.version, self._versions.get(key) or 0))
        waits = self._news.get(key)
        if waits is not None and waits.version <= known.version:
            self._news.remove(key)
        self.wake(known.agency_id, cameras)
        if not known.is_open:
            self._nudge.set()

    async def take_decision(self, decision: Decision) -> None:
        """The first decision of an (emergency, epoch) is executed; others are recorded.

        It waits for its emergency, and for the replica that holds the camera's link.
        """
        self._cameras.put(decision.emergency_id, decision.camera_ids)
        if self._answers.get((decision.emergency_id, decision.epoch)) == decision.answer:
            return  # it has been seen committed here, and our links have been woken
        if self._decisions.is_full:
            await self.look_again(timedelta(0))
        # Kept before we look, so that its emergency cannot slip past us.
        self._decisions.put(_name(decision), decision, self._clock.now())
        if self._is_ours(decision):
            await self._take_decision(decision)

    async def _take_surely(self, decision: Decision) -> None:
        """Ask the database, whatever we remember of it."""
        self._cameras.put(decision.emergency_id, decision.camera_ids)
        self._decisions.put(_name(decision), decision, self._clock.now())
        await self._take_decision(decision)

    async def _take_decision(self, decision: Decision, *, wait: bool = True) -> None:
        try:
            why = await self._decide(decision, wait=wait)
        except TRANSIENT:
            raise
        except Exception:
            self._decisions.remove(_name(decision))  # it will never be managed: whoever brought it sets it aside
            raise
        if why is not None:
            self._settled(decision, executed=not why)

    def _settled(self, decision: Decision, *, executed: bool) -> None:
        if executed:
            self._answers.put((decision.emergency_id, decision.epoch), decision.answer)
        self._decisions.remove(_name(decision))
        self.wake(decision.agency_id, decision.camera_ids)
        self._nudge.set()

    async def _decide(self, decision: Decision, *, wait: bool) -> str | None:
        """Execute or reject; why it was rejected, empty if it stands, None if it has to wait for its emergency."""
        news, why = self._news.get(decision.emergency_id), None
        raised: set[str] = set()
        async with self._database.transaction() as tx:
            if news is not None:
                raised.update(await self._keep(tx, news))
            known = await self._store.emergency(tx, decision.emergency_id)
            if not (wait and is_early(decision, known)):
                why = await self._judge(tx, decision, known, raised)
            await self._store.raise_orders(tx, sorted(raised), (news or decision).agency_id)
        if news is not None:
            self._kept(news, sorted(raised))
        return why

    async def _judge(self, tx: Transaction, decision: Decision, known: KnownEmergency | None, raised: set[str]) -> str:
        """Why it is rejected; empty if it stands. Adds the cameras that it starts."""
        why = refusal_of_decision(decision, known)
        if not why and await self._store.accept(tx, decision, self._clock.now()):
            await self._execute(tx, decision, emergency_is_open=bool(known and known.is_open))
            raised.update(decision.camera_ids)
            return ""
        accepted = await self._store.accepted(tx, decision.emergency_id, decision.epoch)
        if accepted is not None and bytes(accepted["answer"] or accepted["content"]) == decision.answer:
            return ""  # the other lane's, also when the emergency has changed in between
        why = why or "differs from the decision that was accepted first"
        await self._reject(tx, decision, why)
        return why

    async def look_again(self, after: timedelta = _LATER) -> None:
        """Do what another replica has had time to do and has not done."""
        before = self._clock.now() - after
        if news := self._news.since(before):
            async with self._database.statements() as db:
                versions = await self._store.versions(db, [known.emergency_id for known in news])
            for known in news:
                if versions.get(known.emergency_id, 0) >= known.version:
                    self._kept(known, ())
                elif await self._apart(known.emergency_id, self._keep_emergency(known)) == "failed":
                    self._news.remove(known.emergency_id)
        if waiting := self._decisions.since(before):
            async with self._database.statements() as db:
                answers = await self._store.answers(db, {(each.emergency_id, each.epoch) for each in waiting})
            for decision in waiting:
                answer = answers.get((decision.emergency_id, decision.epoch))
                if answer == decision.answer:
                    self._settled(decision, executed=True)
                elif answer is not None:
                    await self._apart(decision.emergency_id, self._take_decision(decision))

    async def _apart(self, emergency_id: str, work: Awaitable[None]) -> Came:
        """What one emergency makes fail must not keep us from the others; `reconcile` looks after what has failed."""
        try:
            await work
        except TRANSIENT as error:
            telemetry.log().warning("waits", emergency=emergency_id, error=str(error))
            return "waits"
        except Exception:
            telemetry.log().exception("cannot be handled", emergency=emergency_id)
            return "failed"
        return "done"

    async def _execute(self, tx: Transaction, decision: Decision, *, emergency_is_open: bool) -> None:
        now = self._clock.now()
        expires_at = self._peers.here(decision.expires_at)
        new = activations(decision, emergency_is_open=emergency_is_open, now=now, expires_at=expires_at, traceparent=decision.traceparent)
        await self._store.add(tx, new)
        for activation in new:
            self._announcer.announce(tx, activation)
        details = {"cameras": ",".join(decision.camera_ids), "reason": decision.no_camera_reason, "by": decision.decided_by}
        self._note(tx, "activation.decided", decision, details)

    async def _reject(self, tx: Transaction, decision: Decision, why: str) -> None:
        now = self._clock.now()
        if await self._store.reject(tx, decision, why, now):
            self._announcer.announce_rejection(tx, decision, why, now)
            telemetry.log().error("decision not executed", emergency=decision.emergency_id, by=decision.decided_by, why=why)
            details = {"cameras": ",".join(decision.camera_ids), "by": decision.decided_by, "why": why}
            self._note(tx, "activation.decision_rejected", decision, details, AuditOutcome.AUDIT_OUTCOME_REFUSED)

    # --- reconcile -----------------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Close the gaps that lost events, decisions and lanes leave: compare what is open with its owner.

        What is behind is asked for, what is undecided is joined here, what is open only for us is closed.
        """
        there = await self._peers.open_emergencies()
        async with self._database.statements() as db:
            gaps = await self._store.gaps(db, there)
            gone = await self._store.open_but_for(db, [each.emergency_id for each in there], _GAPS_AT_MOST)
        open_now = {each.emergency_id: each for each in there}
        due = [gap for gap in gaps if open_now[gap.emergency_id].epoch_age >= RECONCILE_AFTER]
        overlooked = self._decisions.since(self._clock.now() - _EARLY_FOR)
        self._undecided &= {(gap.emergency_id, gap.epoch) for gap in due}
        random.shuffle(due)  # so that replicas do not do the same work at the same time
        gate = asyncio.Semaphore(_GAPS_AT_ONCE)

        async def close(work: Awaitable[None], emergency_id: str) -> Came:
            async with gate:
                return await self._apart(emergency_id, work)

        came = await asyncio.gather(
            *(close(self._close_gap(open_now[gap.emergency_id]), gap.emergency_id) for gap in due[:_GAPS_AT_MOST]),
            *(close(self._refresh(emergency_id), emergency_id) for emergency_id in gone),
            *(close(self._settle(decision), decision.emergency_id) for decision in overlooked[:_GAPS_AT_MOST]),
        )
        if "waits" not in came:
            self.reconciled.set()

    async def _close_gap(self, found: OpenEmergency) -> None:
        async with self._database.statements() as db:
            there = await self._store.gaps(db, [found])
        gap = next(iter(there), None)
        if gap is None:
            return  # another replica has closed it while we were at others
        if not gap.undecided:
            return await self._refresh(gap.emergency_id)
        known, decision = await self._peers.decide(gap.emergency_id)
        if known is not None and gap.behind:
            await self._learn(known)
        if decision is not None:
            with telemetry.span("streams reconcile", parent=decision.traceparent or None):
                await self._take_surely(replace(decision, traceparent=telemetry.traceparent()))
        elif found.epoch_age > _UNDECIDED_AFTER and (gap.emergency_id, gap.epoch) not in self._undecided:
            self._undecided.add((gap.emergency_id, gap.epoch))
            telemetry.log().error("an open emergency has no decision", emergency=gap.emergency_id, epoch=gap.epoch)

    async def _refresh(self, emergency_id: str) -> None:
        found = await self._peers.emergency(emergency_id)
        if found is not None:
            await self._learn(found)

    async def _learn(self, known: KnownEmergency) -> None:
        """Keep what the owner says, whatever we remember: the comparison was the database's."""
        await self._keep_emergency(known)
        await self._take_waiting(known.emergency_id, all_of_them=True)

    async def _settle(self, decision: Decision) -> None:
        """A decision whose emergency does not come: its owner has the last word."""
        await self._refresh(decision.emergency_id)
        await self._take_decision(decision, wait=False)

    # --- camera links --------------------------------------------------------------------------------------------

    async def open_link(self, camera: Machine, link_id: str) -> LocalLink:
        """A camera has connected: the newest link wins, here at once, on other replicas within their sweep."""
        async with self._database.transaction() as tx:
            await self._store.link(tx, camera.id, camera.agency_id, link_id, self._replica, self._clock.now())
        name = (camera.agency_id, camera.id)
        if older := self._links.get(name):
            older.superseded = True
            older.wake.set()
        self._links[name] = LocalLink(camera, link_id)
        return self._links[name]

    async def close_link(self, link: LocalLink) -> None:
        """The link has ended."""
        name = (link.camera.agency_id, link.camera.id)
        if self._links.get(name) is link:
            del self._links[name]
        async with self._database.transaction() as tx:
            await self._store.unlink(tx, link.camera.id, link.camera.agency_id, link.link_id)

    async def next_orders(self, link: LocalLink) -> Orders:
        """Wait until the camera's orders differ from what it was sent; Changed when a newer link has taken over."""
        while True:
            await link.wake.wait()
            if link.superseded:
                raise Changed(Reason.ERROR_REASON_LINK_SUPERSEDED, "a newer link of this camera has taken over")
            link.wake.clear()
            try:
                async with self._database.statements() as db:
                    orders = await self._store.take_orders(db, link.camera.id, link.camera.agency_id, self._clock.now())
            except BaseException:
                link.wake.set()  # nobody has looked
                raise
            if orders.version > link.sent_version:
                link.sent_version = orders.version
                return orders

    async def take_report(self, camera: Machine, report: Report) -> None:
        """A camera tells its state and what it did; its word is accepted at any time, whatever else it says."""
        now = self._clock.now()
        if report.faults:
            await self._note_faults(camera, report.faults, now)
        if not report.handled:
            async with self._database.statements() as db:
                return await self._store.keep_report(db, camera.id, camera.agency_id, report, now)
        async with self._database.transaction() as tx:
            await self._take_handled(tx, camera, report.handled, now)
            # The camera's row comes after its activations, as everywhere: the other order is a deadlock with a clear.
            await self._store.keep_report(tx, camera.id, camera.agency_id, report, now)

    async def _take_handled(self, tx: Transaction, camera: Machine, names: Sequence[Handled], now: datetime) -> None:
        found = await self._store.handled(tx, camera.id, camera.agency_id, names)
        for handled, activation in found:
            with telemetry.span("camera answered", parent=activation.traceparent or None):
                answered = activation.answered(handled.state, handled.refusal_reason, handled.device_time, now)
                await self._save(tx, [activation], [answered], camera.actor)
        if len(found) < len(names):
            await self._note_unexpected(tx, camera, names, now)

    async def _note_unexpected(self, tx: Transaction, camera: Machine, names: Sequence[Handled], now: datetime) -> None:
        """A camera acted on orders that nobody gave: told at once, then once a minute how many more, for it can name any number."""
        news = [each for each in names if (camera.agency_id, camera.id, each.emergency_id, each.epoch) not in self._named][-_LOOKED_UP:]
        unknown = await self._store.unexpected(tx, camera.id, camera.agency_id, news) if news else []
        for each in news:
            self._named.put((camera.agency_id, camera.id, each.emergency_id, each.epoch), True)
        if unknown and self._unexpected.count((camera.agency_id, camera.id), len(unknown), now):
            emergency_id, epoch = unknown[0]
            self._tell_unexpected(tx, camera.actor, camera.agency_id, camera.id, len(unknown), emergency_id, epoch=str(epoch))

    async def tell_unexpected(self) -> None:
        """Record how many more orders that nobody gave cameras named in minutes that are over."""
        over = self._unexpected.take(self._clock.now())
        if not over:
            return
        async with self._database.transaction() as tx:
            for name, orders in over:
                self._tell_unexpected(tx, _SYSTEM, *(name or (_SYSTEM.agency_id, "of many")), orders)

    def _tell_unexpected(
        self, tx: Transaction, actor: Actor, agency_id: str, camera_id: str, orders: int, emergency_id: str = "", **details: str
    ) -> None:
        telemetry.log().error("a camera acted on orders that nobody gave", camera=camera_id, orders=orders, first=emergency_id)
        details["orders"] = str(orders)
        self._audit.record(tx, Entry("activation.unexpected", actor, f"cameras/{camera_id}", agency_id, emergency_id, details))

    async def _note_faults(self, camera: Machine, faults: Mapping[str, str], now: datetime) -> None:
        """Values that could not be right: each is kept, recorded and shown once."""
        new = {f: value for f, value in faults.items() if (camera.agency_id, camera.id, f, value) not in self._faults}
        if not new:
            return
        async with self._database.transaction() as tx:
            for name in await self._store.add_faults(tx, camera.id, camera.agency_id, new, now):
                target, details = f"cameras/{camera.id}", {"field": name, "value": new[name]}
                self._audit.record(tx, Entry("camera.fault", camera.actor, target, camera.agency_id, details=details))
        for name, value in new.items():
            self._faults.put((camera.agency_id, camera.id, name, value), True)

    async def sweep_links(self) -> None:
        """Find out which of this replica's links have new orders or have been superseded elsewhere: what changed lately."""
        links = dict(self._links)  # a link that opens while we look is not in what we see
        async with self._database.statements() as db:
            changed = await self._store.changed(db, _LATELY)
        for row in changed:
            if link := links.get((row["agency_id"], row["camera_id"])):
                self._look_at(link, row["orders_version"] if row["link_id"] == link.link_id else None)

    async def say_alive(self) -> None:
        """Our links count as long as we say so."""
        async with self._database.statements() as db:
            await self._store.alive(db, self._replica)

    async def sweep_all_links(self) -> None:
        """The same for all links, once in a while: a change may have taken long to commit, an end may never have been written."""
        links = list(self._links.values())
        ids = [link.link_id for link in links]
        async with self._database.statements() as db:
            await self._store.unlink_lost(db, self._replica, ids)
            there = await self._store.links(db, ids, self._replica) if ids else {}
        for link in links:
            self._look_at(link, there.get(link.link_id))

    def _look_at(self, link: LocalLink, version: int | None) -> None:
        """Compare a link with its camera's row; None: the camera has another link now."""
        if version is None or version > link.sent_version:
            link.superseded = link.superseded or version is None
            link.wake.set()

    async def sweep_overdue(self) -> None:
        """Give an outcome to every activation that has gone without a word for too long."""
        now = self._clock.now()
        async with self._database.statements() as db:
            if not await self._store.any_overdue(db, now - UNREACHABLE_AFTER):
                return
        async with self._database.transaction() as tx:
            found = await self._store.overdue(tx, now - UNREACHABLE_AFTER)
            await self._save(tx, [a for a, _ in found], [a.overdue(linked=linked, now=now) for a, linked in found])

    def _is_ours(self, decision: Decision) -> bool:
        return self._holds_a_link(decision.agency_id, decision.camera_ids)

    def _holds_a_link(self, agency_id: str, camera_ids: Sequence[str]) -> bool:
        return any((agency_id, camera_id) in self._links for camera_id in camera_ids)

    def wake(self, agency_id: str, camera_ids: Sequence[str]) -> None:
        """The orders of these cameras have changed: those with a link here get them."""
        for camera_id in camera_ids:
            if link := self._links.get((agency_id, camera_id)):
                link.wake.set()

    # --- answers -------------------------------------------------------------------------------------------------

    async def get_activation(self, caller: Caller, emergency_id: str) -> tuple[Row, list[Activation]]:
        """The decision of the newest epoch, and what it came to; NotFound also for another agency's."""
        async with self._database.statements() as db:
            decision = await self._store.accepted(db, emergency_id)
            if decision is None or not caller.may_see(decision["agency_id"]):
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no decision for such an emergency")
            return decision, await self._store.of_emergency(db, emergency_id, epoch=decision["epoch"])

    async def list_cameras(self, agency_id: str, after: str, limit: int) -> list[CameraView]:
        """A page of an agency's cameras."""
        async with self._database.statements() as db:
            return await self._store.cameras(db, agency_id, after, limit)

    async def _save(self, tx: Transaction, old: Sequence[Activation], new: Sequence[Activation], actor: Actor = _SYSTEM) -> None:
        """Write, announce and audit what has changed."""
        changed = [after for before, after in zip(old, new, strict=True) if after is not before]
        await self._store.save(tx, changed)
        for activation in changed:
            self._announcer.announce(tx, activation)
            details = {"state": activation.state.value, "refusal": activation.refusal_reason, "epoch": str(activation.epoch)}
            target = f"cameras/{activation.camera_id}"
            self._audit.record(tx, Entry("activation.outcome", actor, target, activation.agency_id, activation.emergency_id, details))

    def _note(
        self, tx: Transaction, action: str, decision: Decision, details: dict[str, str],
        outcome: AuditOutcome.ValueType = AuditOutcome.AUDIT_OUTCOME_DONE,
    ) -> None:  # fmt: skip
        target, facts = f"emergencies/{decision.emergency_id}", details | {"epoch": str(decision.epoch)}
        self._audit.record(tx, Entry(action, _SYSTEM, target, decision.agency_id, decision.emergency_id, facts, outcome))
