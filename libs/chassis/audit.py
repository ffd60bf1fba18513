"""Audit records: stored in the transaction of what they tell of, numbered without gaps after the commit, then published."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import LiteralString

from sightline.audit.v1.record_pb2 import AuditOutcome, AuditRecord
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from uuid_utils import uuid7

from chassis import telemetry
from chassis.bus import TRANSIENT, Publisher, Record, Topic
from chassis.clock import Clock
from chassis.db import NOT_DURABLE, Database, Transaction
from chassis.names import PLATFORM

_BATCH, _REST_S = 500, 0.5
# A producer that has nothing to tell says so, that its silence can mean something; and how often it looks whether it has.
_ALIVE_S, _LOOK_S = 300, 20.0


@dataclass(frozen=True)
class Entry:
    """What is to be recorded."""

    action: str
    actor: Actor
    target: str
    agency_id: str
    emergency_id: str = ""
    details: Mapping[str, str] | None = None
    outcome: AuditOutcome.ValueType = AuditOutcome.AUDIT_OUTCOME_DONE


class Audit:
    """The audit trail of one producer."""

    def __init__(self, producer: str, topic: Topic, database: Database, publisher: Publisher, clock: Clock) -> None:
        self._producer, self._topic, self._database = producer, topic, database
        self._publisher, self._clock = publisher, clock
        self._refused: asyncio.Queue[Entry] = asyncio.Queue(maxsize=1000)
        self._suppressed = 0

    def record(self, tx: Transaction, entry: Entry) -> str:
        """Store a record with the transaction; returns its id."""
        message = self._message(entry)
        tx.audit(message.SerializeToString(deterministic=True))
        return message.record_id

    def refused(self, entry: Entry) -> None:
        """Note a refused call. Never blocks; a flood is counted instead of queued without end."""
        try:
            self._refused.put_nowait(entry)
        except asyncio.QueueFull:
            self._suppressed += 1

    def _message(self, entry: Entry) -> AuditRecord:
        message = AuditRecord(
            record_id=str(uuid7()), producer=self._producer, action=entry.action, outcome=entry.outcome, actor=entry.actor,
            target=entry.target, agency_id=entry.agency_id, emergency_id=entry.emergency_id, trace_id=telemetry.trace_id(),
            details=entry.details or {},
        )  # fmt: skip
        message.at.FromDatetime(self._clock.now())
        return message

    async def write_refusals(self) -> None:
        """For ever: store the noted refusals, in batches."""
        while True:
            entries = [await self._refused.get()]
            while not self._refused.empty() and len(entries) < _BATCH:
                entries.append(self._refused.get_nowait())
            suppressed, self._suppressed = self._suppressed, 0
            if suppressed:
                telemetry.log().error("refusals not recorded one by one", count=suppressed)
            records = [self._message(entry).SerializeToString(deterministic=True) for entry in entries]
            while True:
                try:
                    async with self._database.transaction() as tx:
                        for record in records:
                            tx.audit(record)
                    break
                except TRANSIENT:
                    await asyncio.sleep(0.5)

    async def say_alive(self) -> None:
        """For ever: record that we are there, when no replica has recorded anything for five minutes."""
        me = Actor(kind=ActorKind.ACTOR_KIND_SERVICE, id=f"service/{self._producer}", agency_id=PLATFORM)
        while True:
            with suppress(*TRANSIENT):
                async with self._database.transaction() as tx:
                    await tx.execute("SELECT pg_advisory_xact_lock(hashtext(current_schema() || '/alive'))")
                    fresh = await tx.one(
                        "SELECT FROM (SELECT created_at FROM audit_record ORDER BY id DESC LIMIT 1) AS newest"
                        " WHERE created_at > now() - make_interval(secs => %s)",
                        [_ALIVE_S],
                    )
                    if fresh is None:
                        self.record(tx, Entry("producer.alive", me, f"producers/{self._producer}", PLATFORM))
            await asyncio.sleep(_LOOK_S)

    async def ship(self) -> None:
        """For ever: number and publish what has been committed."""
        while True:
            try:
                busy = await self._ship_once()
            except TRANSIENT as error:
                busy = False
                telemetry.log().warning("audit records wait", error=str(error))
            if not busy:
                await asyncio.sleep(_REST_S)

    async def _ship_once(self) -> bool:
        """Publish what has a number, and number the rest; True if there is more to do."""
        async with self._database.statements() as db:
            waiting = await db.all(
                "SELECT id, record, seq FROM audit_record WHERE published_at IS NULL ORDER BY seq NULLS LAST, id LIMIT %s", [_BATCH]
            )
        numbered = [row for row in waiting if row["seq"] is not None]
        if len(numbered) < len(waiting):
            await self._number()
        if numbered:
            await asyncio.gather(*(self._publisher.publish(self._record(bytes(row["record"]), row["seq"])) for row in numbered))
            async with self._database.statements() as db:  # a mark that is lost means a record twice
                query: LiteralString = f"UPDATE audit_record SET published_at = now() FROM {NOT_DURABLE} WHERE id = ANY(%s)"
                await db.execute(query, [[row["id"] for row in numbered]])
        return len(numbered) < len(waiting) or len(waiting) == _BATCH

    async def _number(self) -> None:
        """One numberer at a time among all replicas; rows that commit later get later numbers."""
        async with self._database.transaction() as tx:
            await tx.execute("SELECT pg_advisory_xact_lock(hashtext(current_schema() || '/audit'))")
            await tx.execute(
                "WITH waiting AS (SELECT id, row_number() OVER (ORDER BY id) AS n FROM audit_record WHERE seq IS NULL"
                " ORDER BY id LIMIT %s) UPDATE audit_record a SET seq = n + (SELECT coalesce(max(seq), 0) FROM audit_record)"
                " FROM waiting WHERE a.id = waiting.id",
                [_BATCH],
            )

    def _record(self, stored: bytes, seq: int) -> Record:
        message = AuditRecord.FromString(stored)
        message.producer_seq = seq
        return Record.of(self._topic, self._producer.encode(), message, source=self._producer, subject=message.target)
