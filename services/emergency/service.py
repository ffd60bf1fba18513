"""The emergency service's use cases."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from chassis.audit import Audit, Entry
from chassis.clock import Clock
from chassis.db import Database, Statements, Transaction
from chassis.errors import Forbidden, NotFound, SightlineError, Unavailable
from chassis.identity import Caller
from chassis.recent import Recent
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from uuid_utils import uuid7

from services.emergency.model import (
    KEY_LIFE,
    NO_WORD,
    Disposition,
    Emergency,
    Fact,
    Holder,
    Names,
    Outcome,
    Press,
    RadioId,
    Status,
    Subject,
    SubjectState,
    Who,
    open_emergency,
)  # fmt: skip

# The gateway gets an answer within a second, whatever hangs; the database is never told to hurry (a cancelled wait
# for a standby at the commit would look like a success).
ANSWER_WITHIN_S = 0.9
_FILL_BATCH, _UNANSWERED_AT_MOST, _WARM = 50, 5, 20_000
_SYSTEM = Who(ActorKind.ACTOR_KIND_SERVICE, "service/emergency", "platform")


@dataclass(frozen=True)
class KnownPress:
    """What a press was answered."""

    emergency_id: str
    version: int
    outcome: str


@dataclass(frozen=True)
class Seen:
    """How far an emergency has been shown."""

    emergency_id: str
    agency_id: str
    shown: int


@dataclass(frozen=True)
class Result:
    """What an activation came to; `content` is the record as it was published."""

    emergency_id: str
    epoch: int
    camera_id: str
    version: int
    content: bytes

    @property
    def name(self) -> tuple[str, int, str]:
        """Which activation."""
        return self.emergency_id, self.epoch, self.camera_id


@dataclass(frozen=True)
class OpenEmergency:
    """An open emergency in short."""

    emergency_id: str
    version: int
    epoch: int
    epoch_started_at: datetime


def _question(emergency: Emergency) -> tuple[object, ...]:
    """What an answer of the registry depends on: whose the epoch is, and which presses are asked about."""
    return emergency.subject, emergency.epoch, emergency.epoch_started_at, emergency.unsettled_press_at


class Emergencies(Protocol):
    """What the use cases need of the store; `store.Store` describes each."""

    async def lock_radio(self, tx: Transaction, radio: RadioId) -> None: ...
    async def known_press(self, tx: Transaction, press: Press) -> KnownPress | None: ...
    async def emergency_of_press(self, tx: Transaction, key: str, since: datetime) -> tuple[Emergency, str] | None: ...
    async def came(self, tx: Transaction, emergency: Emergency) -> tuple[Sequence[str], Outcome]: ...
    async def press_of_other_radio(self, tx: Transaction, radio: RadioId, agency_id: str, request_id: str) -> bool: ...
    async def newest_of_radio(self, tx: Transaction, radio: RadioId, agency_id: str) -> Emergency | None: ...
    async def get(self, db: Statements, emergency_id: str, *, lock: bool = False) -> Emergency | None: ...
    async def insert(self, tx: Transaction, emergency: Emergency) -> None: ...
    async def update(self, tx: Transaction, emergency: Emergency) -> None: ...
    async def add_press(self, tx: Transaction, press: Press, answer: KnownPress) -> None: ...
    async def keep_cancel(self, tx: Transaction, key: str, fact: Fact) -> None: ...
    async def take_cancel(self, tx: Transaction, press: Press) -> Fact | None: ...
    async def page(self, db: Statements, agency_id: str | None, is_open: bool | None, before: str, limit: int) -> list[Emergency]: ...
    async def scan_open(self, db: Statements, after: str, limit: int) -> list[OpenEmergency]: ...
    async def unpinned(self, db: Statements, limit: int) -> list[Emergency]: ...
    async def seen(self, db: Statements, lately: timedelta, *, and_open: bool, also: Sequence[str] = ()) -> list[Seen]: ...
    async def several(self, db: Statements, ids: Sequence[str]) -> list[Emergency]: ...
    async def results(self, db: Statements, ids: Sequence[str]) -> Mapping[str, list[bytes]]: ...
    async def keep_results(self, db: Statements, results: Sequence[Result]) -> None: ...
    async def newest_results(self, db: Statements, limit: int) -> list[tuple[tuple[str, int, str], int]]: ...


class Registry(Protocol):
    """What we ask the registry."""

    async def holder(self, radio: RadioId, at: datetime, agency_id: str) -> Holder | None:
        """Who held the radio; None if there is no answer within the budget."""
        ...

    async def officer(self, officer_id: str, at: datetime) -> tuple[str, Subject]:
        """An officer's agency, and the officer as a bound subject; NotFound, or Unavailable."""
        ...


class Announcer(Protocol):
    """Tells the world about emergencies."""

    def announce(self, tx: Transaction, emergency: Emergency) -> None:
        """Publish the snapshot with the transaction."""
        ...


Viewed = tuple[Emergency, list[bytes]]


class EmergencyService:
    """Presses in, emergencies managed."""

    def __init__(
        self,
        database: Database,
        reading: Database,
        store: Emergencies,
        registry: Registry,
        announcer: Announcer,
        audit: Audit,
        clock: Clock,
        age_gate: timedelta,
    ) -> None:
        self._reading = reading  # a pool of its own, so that no crowd of watchers keeps a press waiting
        self._database, self._store, self._registry, self._announcer = database, store, registry, announcer
        self._audit, self._clock, self.age_gate = audit, clock, age_gate
        self.changed = asyncio.Event()
        # Results come twice and more: from two replicas, from a start that reads a day again. This spares the database.
        self._results: Recent[tuple[str, int, str], int] = Recent()
        self._under_way: dict[str, asyncio.Task[KnownPress]] = {}
        self._settling: set[asyncio.Task[None]] = set()

    async def raise_alarm(self, press: Press) -> KnownPress:
        """Take a press. Unavailable after a second at the latest; the work then still comes to its own end.

        Equal presses that arrive together, as in a retry storm, are one piece of work.
        """
        name = press.names.identity or str(uuid7())
        work = self._under_way.get(name)
        if work is None:
            work = self._under_way[name] = asyncio.create_task(self._raise_alarm(press))
            work.add_done_callback(lambda task: self._ended(name, task))
        done, _ = await asyncio.wait({work}, timeout=ANSWER_WITHIN_S)
        if not done:
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "the press could not be made durable in time; send it again")
        return work.result()

    def _ended(self, key: str, work: "asyncio.Task[KnownPress]") -> None:
        del self._under_way[key]
        if not work.cancelled():
            work.exception()  # nobody may be waiting any more

    async def _raise_alarm(self, press: Press) -> KnownPress:
        holder = await self._registry.holder(press.radio, press.clocks.press_time, press.gateway.agency_id)
        if holder and not holder.agency_known:
            raise Forbidden(Reason.ERROR_REASON_AGENCY_UNKNOWN, f"agency {press.gateway.agency_id} is not registered")
        async with self._database.transaction() as tx:
            await self._store.lock_radio(tx, press.radio)
            if known := await self._store.known_press(tx, press):
                return known
            answer, emergency = await self._take(tx, press, holder or NO_WORD)
            await self._store.add_press(tx, press, answer)
        self.changed.set()
        if holder and emergency.unsettled_press_at:
            self._settle_soon(emergency)
        return answer

    async def _take(self, tx: Transaction, press: Press, holder: Holder) -> tuple[KnownPress, Emergency]:
        """Fold the press into the radio's open emergency, or open one."""
        newest = await self._store.newest_of_radio(tx, press.radio, press.gateway.agency_id)
        cancel = await self._store.take_cancel(tx, press)
        details = {"ignored": ",".join(press.ignored)} if press.ignored else {}
        if newest and newest.is_open:
            if newest.status != Status.EXERCISE or press.status == Status.EXERCISE:
                officers, outcome = await self._store.came(tx, newest)
                folded = newest.recall(officers).fold(press, holder, self.age_gate, cancel, outcome)
                if newest.acknowledged and not folded.acknowledged:
                    details["acknowledgement"] = "fallen"
                await self._save(tx, folded, "emergency.repeated", press.gateway, details)
                return KnownPress(folded.emergency_id, folded.version, "FOLDED"), folded
            # A real alarm ends the drill of the same officer; both are kept.
            newest = newest.clear(Fact(_SYSTEM, press.clocks.platform_received_at), Disposition.SUPERSEDED_BY_ACTUAL)
            await self._save(tx, newest, "emergency.cleared", _SYSTEM)
        emergency = open_emergency(str(uuid7()), press, holder.subject, self.age_gate, newest, cancel)
        await self._store.insert(tx, emergency)
        self._announcer.announce(tx, emergency)
        details |= {
            "radio": str(press.radio),
            "subject": holder.subject.state.value,
            "officer": holder.subject.officer_id,
            "stale": str(emergency.stale_on_arrival),
        }
        self._note(tx, "emergency.raised", press.gateway, emergency, details)
        return KnownPress(emergency.emergency_id, emergency.version, "OPENED"), emergency

    async def cancel_alarm(self, gateway: Who, radio: RadioId, names: Names, request_id: str, note: str) -> str:
        """A fact on the emergency of the named press, or kept until that press comes; returns the emergency's id.

        Without a name it is the newest press of the radio's open emergency.
        """
        fact = Fact(gateway, self._clock.now(), note)
        async with self._database.transaction() as tx:
            await self._store.lock_radio(tx, radio)
            if request_id and await self._store.press_of_other_radio(tx, radio, gateway.agency_id, request_id):
                raise Forbidden(Reason.ERROR_REASON_CANCEL_FROM_OTHER_RADIO, "that press is another radio's")
            if names.key:
                found = await self._store.emergency_of_press(tx, names.key, fact.at - KEY_LIFE)
            else:
                newest = await self._store.newest_of_radio(tx, radio, gateway.agency_id)
                found = (newest, newest.last_press_key) if newest and newest.is_open else None
            if found is None:
                if names.key:
                    await self._store.keep_cancel(tx, names.key, fact)
                return ""
            emergency, pressed = found
            await self._save_if_new(tx, emergency, emergency.request_cancel(fact, pressed), "emergency.cancel_requested", gateway)
        self.changed.set()
        return emergency.emergency_id

    async def acknowledge(self, caller: Caller, emergency_id: str, note: str) -> Emergency:
        """The caller takes the emergency."""
        fact = self._fact(caller, note)
        return await self._change(caller, emergency_id, "emergency.acknowledged", lambda e, _: e.acknowledge(fact), {"note": note})

    async def clear(self, caller: Caller, emergency_id: str, disposition: Disposition, note: str, expected_version: int) -> Emergency:
        """The caller ends the emergency."""
        fact = self._fact(caller, note)
        return await self._change(
            caller, emergency_id, "emergency.cleared", lambda e, _: e.clear(fact, disposition, expected_version), {"note": note}
        )

    async def bind_subject(self, caller: Caller, emergency_id: str, officer_id: str, note: str, expected_version: int) -> Emergency:
        """The caller names the officer; his or her cameras start. Only a supervisor changes a settled subject, with a note."""
        now = self._clock.now()
        agency_id, subject = await self._registry.officer(officer_id, now)
        may_change = caller.person is not None and "supervisor" in caller.person.roles

        def bind(emergency: Emergency, outcome: Outcome) -> Emergency:
            if agency_id != emergency.agency_id:
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such officer")
            return emergency.bind(subject, now, self.age_gate, expected_version, outcome=outcome, may_change=may_change, note=note)

        details = {"officer": officer_id, "cameras": ",".join(subject.camera_ids), "note": note}
        return await self._change(caller, emergency_id, "emergency.bound", bind, details)

    async def mark_not_involved(self, caller: Caller, emergency_id: str, officer_id: str, note: str, expected_version: int) -> Emergency:
        """The caller says that an earlier officer needs no help: nobody watches him or her because of this emergency any more."""
        fact = self._fact(caller, note)
        return await self._change(
            caller, emergency_id, "emergency.not_involved", lambda e, _: e.mark_not_involved(officer_id, fact, expected_version),
            {"officer": officer_id, "note": note},
        )  # fmt: skip

    async def fill_pins(self) -> None:
        """Ask the registry again for presses that it gave no word on, and for cameras of bound officers."""
        async with self._reading.statements() as db:
            waiting = await self._store.unpinned(db, _FILL_BATCH)
        random.shuffle(waiting)  # one radio that gets no answer must not keep the others waiting
        unanswered = 0
        for each in waiting:
            if not await self._settle_late(each):
                unanswered += 1
                if unanswered == _UNANSWERED_AT_MOST:
                    return

    def _settle_soon(self, emergency: Emergency) -> None:
        """A press on a bound officer's emergency waits for his or her cameras of now; what a crash leaves behind `fill_pins` finds."""

        async def settle() -> None:
            with suppress(SightlineError):
                await self._settle_late(emergency)

        task = asyncio.create_task(settle())
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle_late(self, each: Emergency) -> bool:
        """Settle what the registry has an answer for now; False if it has none."""
        unpinned = each.subject.state == SubjectState.UNPINNED
        at = each.epoch_started_at if unpinned else each.unsettled_press_at
        holder = await self._registry.holder(each.radio, at, each.agency_id) if at else NO_WORD
        if holder is None:
            return False
        bound: Subject | None = None
        if each.subject.state == SubjectState.BOUND and at:
            try:
                _, bound = await self._registry.officer(each.subject.officer_id, at)
            except NotFound:
                bound = replace(each.subject, camera_ids=())
            except Unavailable:
                return False
        async with self._database.transaction() as tx:
            emergency = await self._store.get(tx, each.emergency_id, lock=True)
            if emergency is None or _question(emergency) != _question(each):
                return True  # the answer is to a question that is none any more; the new one has its turn
            officers, outcome = await self._store.came(tx, emergency)
            emergency = emergency.recall(officers)
            if unpinned:
                settled, action = emergency.fill(holder.subject, self._clock.now()), "emergency.pinned"
            else:
                settled, action = emergency.settle_late(holder, bound, self.age_gate, outcome), "emergency.settled"
            await self._save_if_new(tx, emergency, settled, action, _SYSTEM, {"officer": settled.subject.officer_id})
        self.changed.set()
        return True

    async def get(self, caller: Caller, emergency_id: str) -> Viewed:
        """One emergency with its activation results; NotFound also for another agency's."""
        async with self._reading.statements() as db:
            emergency = await self._store.get(db, emergency_id)
            if emergency is None or not caller.may_see(emergency.agency_id):
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such emergency")
            return emergency, (await self._store.results(db, [emergency_id])).get(emergency_id, [])

    async def page(self, agency_id: str | None, is_open: bool | None, before: str, limit: int) -> list[Emergency]:
        """A page of emergencies, newest first."""
        async with self._reading.statements() as db:
            return await self._store.page(db, agency_id, is_open, before, limit)

    async def scan_open(self, after: str, limit: int) -> list[OpenEmergency]:
        """What is open in all agencies, ordered by id, after an id."""
        async with self._reading.statements() as db:
            return await self._store.scan_open(db, after, limit)

    async def seen(self, lately: timedelta, *, and_open: bool, also: Sequence[str] = ()) -> list[Seen]:
        """What changed lately, with `and_open` what is open, and some by their ids."""
        async with self._reading.statements() as db:
            return await self._store.seen(db, lately, and_open=and_open, also=also)

    async def viewed(self, ids: Sequence[str]) -> list[Viewed]:
        """Emergencies with their results."""
        async with self._reading.statements() as db:
            results = await self._store.results(db, ids)
            return [(e, results.get(e.emergency_id, [])) for e in await self._store.several(db, ids)]

    async def keep_results(self, results: Sequence[Result]) -> None:
        """Show what activations came to."""
        newest: dict[tuple[str, int, str], Result] = {}
        for result in results:
            known = newest[result.name].version if result.name in newest else self._results.get(result.name) or 0
            if known < result.version:
                newest[result.name] = result
        if not newest:
            return
        async with self._reading.statements() as db:
            await self._store.keep_results(db, sorted(newest.values(), key=lambda result: result.name))
        for name, result in newest.items():
            self._results.put(name, result.version)
        self.changed.set()

    async def warm_up(self) -> None:
        """Remember which results the database has, before their topic is read from its past."""
        async with self._reading.statements() as db:
            self._results.warm(await self._store.newest_results(db, _WARM))

    async def _change(
        self,
        caller: Caller,
        emergency_id: str,
        action: str,
        change: Callable[[Emergency, Outcome], Emergency],
        details: dict[str, str] | None = None,
    ) -> Emergency:
        who = who_of(caller.actor)
        async with self._database.transaction() as tx:
            emergency = await self._store.get(tx, emergency_id, lock=True)
            if emergency is None or emergency.agency_id != caller.agency_id:
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such emergency")
            officers, outcome = await self._store.came(tx, emergency)
            emergency = emergency.recall(officers)
            changed = change(emergency, outcome)
            await self._save_if_new(tx, emergency, changed, action, who, details)
        self.changed.set()
        return changed

    async def _save_if_new(
        self, tx: Transaction, old: Emergency, new: Emergency, action: str, who: Who, details: dict[str, str] | None = None
    ) -> None:
        if new is not old:
            await self._save(tx, new, action, who, details)

    async def _save(self, tx: Transaction, emergency: Emergency, action: str, who: Who, details: dict[str, str] | None = None) -> None:
        await self._store.update(tx, emergency)
        self._announcer.announce(tx, emergency)
        self._note(tx, action, who, emergency, details or {})

    def _note(self, tx: Transaction, action: str, who: Who, emergency: Emergency, details: dict[str, str]) -> None:
        actor = Actor(kind=ActorKind.ValueType(who.kind), id=who.id, agency_id=who.agency_id)
        facts = {"version": str(emergency.version), "epoch": str(emergency.epoch), "status": emergency.status.value} | details
        if emergency.disposition:
            facts["disposition"] = emergency.disposition.value
        target = f"emergencies/{emergency.emergency_id}"
        self._audit.record(tx, Entry(action, actor, target, emergency.agency_id, emergency.emergency_id, facts))

    def _fact(self, caller: Caller, note: str) -> Fact:
        return Fact(who_of(caller.actor), self._clock.now(), note)


def who_of(actor: Actor) -> Who:
    """The model's form of an actor."""
    return Who(int(actor.kind), actor.id, actor.agency_id)
