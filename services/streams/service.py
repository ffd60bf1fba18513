"""The streams service's use cases: decisions become orders, reports become outcomes."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from chassis import telemetry
from chassis.audit import Audit, Entry
from chassis.clock import Clock
from chassis.db import Database, Row, Transaction
from chassis.errors import Changed, NotFound
from chassis.identity import Caller, Machine
from sightline.audit.v1.record_pb2 import AuditOutcome
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from services.streams.model import (
    UNREACHABLE_AFTER,
    Activation,
    CameraView,
    Decision,
    Handled,
    KnownEmergency,
    Orders,
    Report,
    activations,
    refusal_of_decision,
)  # fmt: skip

_SYSTEM = Actor(kind=ActorKind.ACTOR_KIND_SERVICE, id="service/streams", agency_id="platform")


class Streams(Protocol):
    """What the use cases need of the store; `store.Store` describes each."""

    async def keep_emergency(self, tx: Transaction, known: KnownEmergency) -> bool: ...
    async def emergency(self, tx: Transaction, emergency_id: str) -> KnownEmergency | None: ...
    async def accept(self, tx: Transaction, decision: Decision, now: datetime) -> bool: ...
    async def accepted(self, tx: Transaction, emergency_id: str, epoch: int | None = None) -> Row | None: ...
    async def reject(self, tx: Transaction, decision: Decision, why: str, now: datetime) -> bool: ...
    async def add(self, tx: Transaction, new: Sequence[Activation]) -> None: ...
    async def save(self, tx: Transaction, changed: Sequence[Activation]) -> None: ...
    async def of_emergency(
        self, tx: Transaction, emergency_id: str, *, epoch: int | None = None, lock: bool = False
    ) -> list[Activation]: ...
    async def overdue(self, tx: Transaction, requested_before: datetime) -> list[tuple[Activation, bool]]: ...
    async def handled(
        self, tx: Transaction, camera_id: str, agency_id: str, names: Sequence[Handled]
    ) -> list[tuple[Handled, Activation]]: ...
    async def unexpected(self, tx: Transaction, camera_id: str, agency_id: str, names: Sequence[Handled]) -> list[tuple[str, int]]: ...
    async def raise_orders(self, tx: Transaction, camera_ids: Sequence[str], agency_id: str) -> None: ...
    async def take_orders(self, tx: Transaction, camera_id: str, agency_id: str, now: datetime) -> Orders: ...
    async def link(self, tx: Transaction, camera_id: str, agency_id: str, link_id: str, replica_id: str, now: datetime) -> None: ...
    async def unlink(self, tx: Transaction, camera_id: str, agency_id: str, link_id: str) -> None: ...
    async def unlink_lost(self, tx: Transaction, replica_id: str, here: Sequence[str]) -> None: ...
    async def links(self, tx: Transaction, link_ids: Sequence[str], replica_id: str) -> dict[str, int]: ...
    async def alive(self, tx: Transaction, replica_id: str) -> None: ...
    async def keep_report(self, tx: Transaction, camera_id: str, agency_id: str, report: Report, now: datetime) -> None: ...
    async def cameras(self, tx: Transaction, agency_id: str, after: str, limit: int) -> list[CameraView]: ...


class EmergencyPeer(Protocol):
    """What we ask the emergency service."""

    async def emergency(self, emergency_id: str) -> KnownEmergency | None:
        """An emergency as its owner knows it; None if there is none; Unavailable without an answer."""
        ...


class Announcer(Protocol):
    """Tells the world about activations."""

    def announce(self, tx: Transaction, activation: Activation) -> None:
        """Publish the snapshot with the transaction."""
        ...


@dataclass(eq=False)
class LocalLink:
    """A camera's link on this replica. `wake` is set when its orders may have changed."""

    camera: Machine
    link_id: str
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    sent_version: int = 0
    superseded: bool = False


class StreamsService:
    """Decisions, orders, reports."""

    def __init__(
        self, database: Database, store: Streams, emergencies: EmergencyPeer, announcer: Announcer, audit: Audit, clock: Clock, replica: str
    ) -> None:
        self._database, self._store, self._emergencies, self._announcer = database, store, emergencies, announcer
        self._audit, self._clock, self._replica = audit, clock, replica
        self._links: dict[tuple[str, str], LocalLink] = {}

    # --- what comes from Kafka -----------------------------------------------------------------------------------

    async def take_emergency(self, known: KnownEmergency) -> None:
        """An emergency has changed: a clear or a new epoch withdraws what no camera has answered."""
        async with self._database.transaction() as tx:
            if not await self._store.keep_emergency(tx, known):
                return
            there = await self._store.of_emergency(tx, known.emergency_id, lock=True)
            gone = [a for a in there if not known.is_open or a.epoch < known.epoch]
            await self._save(tx, gone, [a.withdrawn() for a in gone])
            cameras = sorted({a.camera_id for a in gone if a.camera_id})
            await self._store.raise_orders(tx, cameras, known.agency_id)
        self._wake(known.agency_id, cameras)

    async def take_decision(self, decision: Decision) -> None:
        """The first decision of an (emergency, epoch) is executed; others are recorded."""
        await self._know(decision)
        async with self._database.transaction() as tx:
            known = await self._store.emergency(tx, decision.emergency_id)
            why = refusal_of_decision(decision, known)
            if not why and await self._store.accept(tx, decision, self._clock.now()):
                await self._execute(tx, decision, emergency_is_open=bool(known and known.is_open))
            elif why or await self._differs(tx, decision):
                await self._reject(tx, decision, why or "differs from the decision that was accepted first")
        self._wake(decision.agency_id, decision.camera_ids)

    async def _know(self, decision: Decision) -> None:
        """Make sure that we know the emergency; a decision may overtake its event, so ask the owner."""
        async with self._database.transaction() as tx:
            known = await self._store.emergency(tx, decision.emergency_id)
        if known is None or known.epoch < decision.epoch:
            found = await self._emergencies.emergency(decision.emergency_id)
            if found is not None:
                await self.take_emergency(found)

    async def _execute(self, tx: Transaction, decision: Decision, *, emergency_is_open: bool) -> None:
        now = self._clock.now()
        new = activations(decision, emergency_is_open=emergency_is_open, now=now, traceparent=telemetry.traceparent())
        await self._store.add(tx, new)
        for activation in new:
            self._announcer.announce(tx, activation)
        await self._store.raise_orders(tx, decision.camera_ids, decision.agency_id)
        details = {"cameras": ",".join(decision.camera_ids), "reason": decision.no_camera_reason, "by": decision.decided_by}
        await self._note(tx, "activation.decided", decision, details)

    async def _differs(self, tx: Transaction, decision: Decision) -> bool:
        accepted = await self._store.accepted(tx, decision.emergency_id, decision.epoch)
        return accepted is not None and bytes(accepted["content"]) != decision.content

    async def _reject(self, tx: Transaction, decision: Decision, why: str) -> None:
        if await self._store.reject(tx, decision, why, self._clock.now()):
            telemetry.log().error("decision not executed", emergency=decision.emergency_id, by=decision.decided_by, why=why)
            details = {"cameras": ",".join(decision.camera_ids), "by": decision.decided_by, "why": why}
            await self._note(tx, "activation.decision_rejected", decision, details, AuditOutcome.AUDIT_OUTCOME_REFUSED)

    # --- camera links --------------------------------------------------------------------------------------------

    async def open_link(self, camera: Machine, link_id: str) -> LocalLink:
        """A camera has connected: the newest link wins, here at once, on other replicas within their sweep."""
        async with self._database.transaction() as tx:
            await self._store.link(tx, camera.id, camera.agency_id, link_id, self._replica, self._clock.now())
        name = (camera.agency_id, camera.id)
        if older := self._links.get(name):
            older.superseded = True
            older.wake.set()
        link = self._links[name] = LocalLink(camera, link_id)
        return link

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
            if link.superseded:
                raise Changed(Reason.ERROR_REASON_LINK_SUPERSEDED, "a newer link of this camera has taken over")
            link.wake.clear()
            async with self._database.transaction() as tx:
                orders = await self._store.take_orders(tx, link.camera.id, link.camera.agency_id, self._clock.now())
            if orders.version > link.sent_version:
                link.sent_version = orders.version
                return orders
            await link.wake.wait()

    async def take_report(self, camera: Machine, report: Report) -> None:
        """A camera tells its state and what it did; its word is accepted at any time."""
        now = self._clock.now()
        async with self._database.transaction() as tx:
            await self._store.keep_report(tx, camera.id, camera.agency_id, report, now)
            if not report.handled:
                return
            found = await self._store.handled(tx, camera.id, camera.agency_id, report.handled)
            for handled, activation in found:
                with telemetry.span("camera answered", parent=activation.traceparent or None):
                    answered = activation.answered(handled.state, handled.refusal_reason, handled.device_time, now)
                    await self._save(tx, [activation], [answered], camera.actor)
            for emergency_id, epoch in await self._store.unexpected(tx, camera.id, camera.agency_id, report.handled):
                telemetry.log().error("a camera acted on an order that nobody gave", camera=camera.id, emergency=emergency_id)
                target, details = f"cameras/{camera.id}", {"epoch": str(epoch)}
                await self._audit.record(tx, Entry("activation.unexpected", camera.actor, target, camera.agency_id, emergency_id, details))

    async def sweep_links(self) -> None:
        """Find out which of this replica's links have new orders or have been superseded elsewhere."""
        links = list(self._links.values())
        ids = [link.link_id for link in links]
        async with self._database.transaction() as tx:
            await self._store.alive(tx, self._replica)
            await self._store.unlink_lost(tx, self._replica, ids)
            there = await self._store.links(tx, ids, self._replica) if ids else {}
        for link in links:
            version = there.get(link.link_id)
            if version is None or version > link.sent_version:
                link.superseded = link.superseded or version is None
                link.wake.set()

    async def sweep_overdue(self) -> None:
        """Give an outcome to every activation that has gone without a word for too long."""
        now = self._clock.now()
        async with self._database.transaction() as tx:
            found = await self._store.overdue(tx, now - UNREACHABLE_AFTER)
            await self._save(tx, [a for a, _ in found], [a.overdue(linked=linked, now=now) for a, linked in found])

    def _wake(self, agency_id: str, camera_ids: Sequence[str]) -> None:
        for camera_id in camera_ids:
            if link := self._links.get((agency_id, camera_id)):
                link.wake.set()

    # --- answers -------------------------------------------------------------------------------------------------

    async def get_activation(self, caller: Caller, emergency_id: str) -> tuple[Row, list[Activation]]:
        """The decision of the newest epoch, and what it came to; NotFound also for another agency's."""
        async with self._database.transaction() as tx:
            decision = await self._store.accepted(tx, emergency_id)
            if decision is None or not caller.may_see(decision["agency_id"]):
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no decision for such an emergency")
            return decision, await self._store.of_emergency(tx, emergency_id, epoch=decision["epoch"])

    async def list_cameras(self, agency_id: str, after: str, limit: int) -> list[CameraView]:
        """A page of an agency's cameras."""
        async with self._database.transaction() as tx:
            return await self._store.cameras(tx, agency_id, after, limit)

    async def _save(self, tx: Transaction, old: Sequence[Activation], new: Sequence[Activation], actor: Actor = _SYSTEM) -> None:
        """Write, announce and audit what has changed."""
        changed = [after for before, after in zip(old, new, strict=True) if after is not before]
        await self._store.save(tx, changed)
        for activation in changed:
            self._announcer.announce(tx, activation)
            details = {"state": activation.state.value, "refusal": activation.refusal_reason, "epoch": str(activation.epoch)}
            target = f"cameras/{activation.camera_id}"
            await self._audit.record(tx, Entry("activation.outcome", actor, target, activation.agency_id, activation.emergency_id, details))

    async def _note(
        self, tx: Transaction, action: str, decision: Decision, details: dict[str, str],
        outcome: AuditOutcome.ValueType = AuditOutcome.AUDIT_OUTCOME_DONE,
    ) -> None:  # fmt: skip
        target, facts = f"emergencies/{decision.emergency_id}", details | {"epoch": str(decision.epoch)}
        await self._audit.record(tx, Entry(action, _SYSTEM, target, decision.agency_id, decision.emergency_id, facts, outcome))
