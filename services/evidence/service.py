"""Use cases of retention: what was recorded is kept for its time, longer if somebody holds it, then deleted by who has it."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from chassis import telemetry
from chassis.audit import Audit, Entry
from chassis.clock import Clock
from chassis.db import Database, Statements, Transaction
from chassis.errors import AlreadyExists, Forbidden, NotFound, WrongState
from chassis.identity import Caller
from sightline.audit.v1.record_pb2 import AuditOutcome
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from uuid_utils import uuid7

from services.evidence.model import (
    Activated,
    Deleted,
    DeletionResult,
    Hold,
    HoldReason,
    KnownEmergency,
    Recording,
    RecordingState,
    Segment,
    Streamed,
    in_order,
)

_SYSTEM = Actor(kind=ActorKind.ACTOR_KIND_SERVICE, id="service/evidence", agency_id="platform")
# A relay's recording that nobody told us of within this time is one that the database has lost.
_UNKNOWN_AFTER = timedelta(hours=1)
# A relay that does not confirm for so long has to be looked after.
_STUCK_AFTER = timedelta(days=1)


class Store(Protocol):
    """What the use cases need of the store; `store.Store` describes each."""

    async def recording(self, tx: Transaction, recording_id: str) -> Recording | None: ...
    async def add(self, tx: Transaction, recording: Recording) -> bool: ...
    async def save(self, tx: Transaction, changed: Sequence[Recording]) -> None: ...
    async def due(self, tx: Transaction, now: datetime, limit: int) -> list[Recording]: ...
    async def find(self, db: Statements, recording_id: str) -> Recording | None: ...
    async def page(
        self, db: Statements, agency_id: str, before: str, limit: int, emergency_id: str, state: RecordingState | None
    ) -> list[Recording]: ...
    async def keep_heads(self, tx: Transaction, heads: Sequence[Segment], default_days: int) -> None: ...
    async def segments(self, db: Statements, recording_id: str) -> list[Segment]: ...
    async def gone(self, tx: Transaction, recording_id: str, relay_id: str, deleted: Sequence[Deleted], now: datetime) -> None: ...
    async def deletions(self, db: Statements, relay_id: str, ids: Sequence[str]) -> dict[str, list[Segment]]: ...
    async def unknown(self, db: Statements, ids: Sequence[str], before: datetime) -> list[str]: ...
    async def stuck(self, db: Statements, before: datetime) -> int: ...
    async def of_emergency(self, db: Statements, emergency_id: str) -> list[str]: ...
    async def holds(self, db: Statements, recording_id: str) -> list[Hold]: ...
    async def hold(self, db: Statements, hold_id: str) -> Hold | None: ...
    async def add_hold(self, tx: Transaction, hold: Hold) -> bool: ...
    async def save_hold(self, tx: Transaction, hold: Hold) -> None: ...
    async def held_for(self, db: Statements, emergency_id: str) -> list[Hold]: ...
    async def reasons(self, db: Statements, recording: Recording) -> list[str]: ...
    async def keep_emergency(self, db: Statements, known: KnownEmergency) -> None: ...
    async def emergency(self, db: Statements, emergency_id: str) -> KnownEmergency | None: ...
    async def keep_activated(self, db: Statements, activated: Activated) -> bool: ...
    async def overlapping(self, db: Statements, activated: Activated) -> list[str]: ...
    async def days(self, db: Statements, agency_id: str) -> int | None: ...
    async def set_days(self, tx: Transaction, agency_id: str, days: int) -> int: ...


class Announcer(Protocol):
    """Tells the world of recordings."""

    def announce(self, tx: Transaction, recording: Recording, holds: Sequence[Hold], segments: Sequence[Segment]) -> None:
        """Publish the snapshot with the transaction."""
        ...


class EvidenceService:
    """Recordings, holds, deletions."""

    def __init__(
        self, database: Database, store: Store, announcer: Announcer, audit: Audit, clock: Clock, retention_days: int, grace: timedelta
    ) -> None:
        """`retention_days` is for agencies that have not said; `grace` lies between the mark and the deletion."""
        self._database, self._store, self._announcer = database, store, announcer
        self._audit, self._clock = audit, clock
        self._retention_days, self._grace = retention_days, grace

    # --- what comes from Kafka -----------------------------------------------------------------------------------

    async def take_session(self, streamed: Streamed, *, is_first: bool) -> None:
        """A session tells of its recording; an unknown one begins, and is held at once for its emergency."""
        async with self._database.transaction() as tx:
            last = [at for at in (streamed.began_at, streamed.ended_at, streamed.last_media_at) if at is not None]
            last += [segment.received_at for segment in await self._store.segments(tx, streamed.recording_id)]
            days = await self._store.days(tx, streamed.agency_id) or self._retention_days
            until = max(last) + timedelta(days=days)
            new = Recording.begin(streamed, until)
            known = None if await self._store.add(tx, new) else await self._store.recording(tx, streamed.recording_id)
            if known is None:
                await self._tell(tx, new)
            else:
                await self._save(tx, known, known.streamed(streamed.ended_at, until))
        # Committed before we look, as emergencies and activations are: whoever comes second sees the other.
        if known is None or is_first or not known.held:
            await self._hold_for_emergencies(streamed.recording_id)

    async def take_heads(self, heads: Sequence[Segment]) -> None:
        """Chain values of what was kept; older ones change nothing."""
        newest: dict[tuple[str, str, str], Segment] = {}
        for head in heads:
            name = (head.recording_id, head.segment_id, head.relay_id)
            if name not in newest or newest[name].pieces < head.pieces:
                newest[name] = head
        async with self._database.transaction() as tx:
            await self._store.keep_heads(tx, [newest[name] for name in sorted(newest)], self._retention_days)

    async def take_activated(self, activated: Activated, *, is_first: bool) -> None:
        """A camera records because of an emergency: what it records then is held, also what was begun for another."""
        async with self._database.statements() as db:
            is_new = await self._store.keep_activated(db, activated)
            found = await self._store.overlapping(db, activated) if is_new or is_first else []
        for recording_id in found:
            await self._hold_for_emergencies(recording_id)

    async def take_emergency(self, known: KnownEmergency) -> None:
        """An emergency has changed; a drill, and an alarm that was none, hold nothing. What counts is the newest that is known."""
        async with self._database.statements() as db:
            await self._store.keep_emergency(db, known)
            newest = await self._store.emergency(db, known.emergency_id) or known
            lapsed = await self._store.held_for(db, known.emergency_id) if newest.spares else []
            # A drill that turned out to be real has held nothing so far.
            real = await self._store.of_emergency(db, known.emergency_id) if newest.cleared_at and not newest.spares else []
        for hold in lapsed:
            await self._release(hold, _SYSTEM, "a drill, or an alarm that was none", lapsed=True)
        for recording_id in real:
            await self._hold_for_emergencies(recording_id)

    async def _hold_for_emergencies(self, recording_id: str) -> None:
        async with self._database.transaction() as tx:
            recording = await self._store.recording(tx, recording_id)
            if recording is None or not (reasons := await self._store.reasons(tx, recording)):
                return
            if not recording.can_be_held:
                telemetry.log().error("too late to hold", recording=recording_id, state=recording.state, emergencies=reasons)
                return
            now, placed = self._clock.now(), False
            for emergency_id in reasons:
                hold = Hold(str(uuid7()), recording_id, HoldReason.EMERGENCY, emergency_id, emergency_id, _SYSTEM.SerializeToString(), now)
                if await self._store.add_hold(tx, hold):
                    placed = True
                    self._note(tx, recording, "hold.placed", _SYSTEM, {"hold": hold.hold_id, "reason": hold.reason}, emergency_id)
            if placed:
                await self._save(tx, recording, recording.with_hold(held=True))

    # --- what time makes due -------------------------------------------------------------------------------------

    async def sweep(self, limit: int = 200) -> None:
        """Mark what is old, unmark what is wanted after all, and order what was marked long enough to be deleted; any replica may."""
        more = True
        while more:
            now = self._clock.now()
            async with self._database.transaction() as tx:
                found = await self._store.due(tx, now, limit)
                for recording in found:
                    await self._advance(tx, recording, recording.due(now, self._grace), now)
            more = len(found) == limit
        async with self._database.statements() as db:
            if stuck := await self._store.stuck(db, self._clock.now() - _STUCK_AFTER):
                telemetry.log().error("relays have not confirmed deletions for more than a day", recordings=stuck)

    async def _advance(self, tx: Transaction, before: Recording, after: Recording, now: datetime) -> None:
        if after.state == before.state:
            return
        action = {
            RecordingState.MARKED: "recording.marked", RecordingState.KEPT: "recording.unmarked",
            RecordingState.DELETING: "recording.deletion_ordered",
        }[after.state]  # fmt: skip
        details = {"retain_until": after.retain_until.isoformat(), "began_at": after.began_at.isoformat(), "officer": after.officer_id}
        self._note(tx, after, action, _SYSTEM, details)
        segments = await self._store.segments(tx, after.recording_id)
        await self._save(tx, before, after.confirmed(segments, now), segments)

    # --- what relays ask and tell --------------------------------------------------------------------------------

    async def deletions(self, relay_id: str, ids: Sequence[str]) -> dict[str, list[Segment]]:
        """What a relay shall delete of what it has, and of what it should have, with the published heads."""
        async with self._database.statements() as db:
            if lost := await self._store.unknown(db, ids, self._clock.now() - _UNKNOWN_AFTER):
                telemetry.log().error(
                    "a relay keeps recordings that are not in the database", relay=relay_id, count=len(lost), first=lost[0]
                )
            return await self._store.deletions(db, relay_id, ids)

    async def confirm(self, relay_id: str, recording_id: str, deleted: Sequence[Deleted]) -> None:
        """A relay has deleted, or has not: each segment becomes an audit record with its chain. Told again it changes nothing more.

        WrongState if nobody ordered it, unless it has been done: that is noted all the same.
        """
        now = self._clock.now()
        async with self._database.transaction() as tx:
            recording = await self._store.recording(tx, recording_id)
            if recording is None:
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such recording")
            if recording.can_be_held:
                # Another relay has something else than was published, and this one had its order before that was known.
                deleted = [d for d in deleted if d.result == DeletionResult.DELETED]
                if not deleted:
                    raise WrongState(Reason.ERROR_REASON_NOT_FOUND, "nobody ordered this recording to be deleted")
                telemetry.log().error("deleted while it was kept", recording=recording_id, relay=relay_id)
            before = {s.segment_id: s for s in await self._store.segments(tx, recording_id) if s.relay_id == relay_id}
            gone = [d for d in deleted if d.result != DeletionResult.DIFFERS]
            await self._store.gone(tx, recording_id, relay_id, gone, now)
            for each in deleted:
                known = before.get(each.segment_id)
                if known is None or known.deleted_at is None or (known.missing and each.result == DeletionResult.DELETED):
                    self._note_deletion(tx, recording, relay_id, each, known)
            if len(gone) < len(deleted):
                return await self._dispute(tx, recording, [d.segment_id for d in deleted if d.result == DeletionResult.DIFFERS])
            segments = await self._store.segments(tx, recording_id)
            await self._save(tx, recording, recording.confirmed(segments, now), segments)

    def _note_deletion(self, tx: Transaction, recording: Recording, relay_id: str, deleted: Deleted, known: Segment | None) -> None:
        is_gone = deleted.result != DeletionResult.DIFFERS
        details = {
            "relay": relay_id, "result": deleted.result, "pieces": str(deleted.pieces), "bytes": str(deleted.size),
            "chain": deleted.chain.hex(),
            **({"published_pieces": str(known.pieces), "published_chain": known.chain.hex()} if known else {}),
        }  # fmt: skip
        target = f"recordings/{recording.recording_id}/{deleted.segment_id}"
        action = "recording.deleted" if is_gone else "recording.deletion_refused"
        outcome = AuditOutcome.AUDIT_OUTCOME_DONE if is_gone else AuditOutcome.AUDIT_OUTCOME_REFUSED
        entry = Entry(action, _SYSTEM, target, recording.agency_id, recording.emergency_id, details, outcome)
        self._audit.record(tx, entry)

    async def _dispute(self, tx: Transaction, recording: Recording, segments: Sequence[str]) -> None:
        """Something else lies there than was published: nothing more is deleted until a person has looked."""
        note = f"not what was published at the time: {', '.join(segments)}"
        telemetry.log().error("a recording is not what was published", recording=recording.recording_id, segments=segments)
        hold = Hold(str(uuid7()), recording.recording_id, HoldReason.INTEGRITY, note, None, _SYSTEM.SerializeToString(), self._clock.now())
        if not any(h.reason == HoldReason.INTEGRITY and h.released_at is None for h in await self._store.holds(tx, recording.recording_id)):
            await self._store.add_hold(tx, hold)
            self._note(tx, recording, "hold.placed", _SYSTEM, {"hold": hold.hold_id, "reason": hold.reason, "note": note})
        await self._save(tx, recording, recording.disputed())

    # --- what people ask -----------------------------------------------------------------------------------------

    async def list_recordings(
        self, agency_id: str, before: str, limit: int, emergency_id: str, state: RecordingState | None
    ) -> list[Recording]:
        """A page of an agency's recordings, the newest first."""
        async with self._database.statements() as db:
            return await self._store.page(db, agency_id, before, limit, emergency_id, state)

    async def get_recording(self, caller: Caller, recording_id: str) -> tuple[Recording, list[Segment], list[Hold]]:
        """A recording, its segments in order of their pictures, and its holds; NotFound also for another agency's."""
        async with self._database.statements() as db:
            recording = _seen(caller, await self._store.find(db, recording_id))
            return recording, in_order(await self._store.segments(db, recording_id)), await self._store.holds(db, recording_id)

    async def place_hold(self, caller: Caller, hold_id: str, recording_id: str, note: str) -> tuple[Recording, Hold]:
        """Keep a recording until the hold is released; WrongState if its deletion has begun."""
        async with self._database.transaction() as tx:
            recording = _seen(caller, await self._store.recording(tx, recording_id))
            there = await self._store.hold(tx, hold_id)
            if there is not None:
                if (there.recording_id, there.note, there.placed_by) != (recording_id, note, caller.actor.SerializeToString()):
                    raise AlreadyExists(Reason.ERROR_REASON_ALREADY_EXISTS, "there is another hold of that id")
                return recording, there
            if not recording.can_be_held:
                raise WrongState(Reason.ERROR_REASON_RECORDING_DELETED, f"it is too late: the recording is {recording.state.lower()}")
            now = self._clock.now()
            hold = Hold(hold_id, recording_id, HoldReason.PERSON, note, None, caller.actor.SerializeToString(), now)
            if not await self._store.add_hold(tx, hold):  # placed for another recording in this moment
                raise AlreadyExists(Reason.ERROR_REASON_ALREADY_EXISTS, "there is another hold of that id")
            self._note(tx, recording, "hold.placed", caller.actor, {"hold": hold_id, "reason": hold.reason, "note": note})
            return await self._save(tx, recording, recording.with_hold(held=True)), hold

    async def release_hold(self, caller: Caller, hold_id: str, note: str, *, although_open: bool) -> tuple[Recording, Hold]:
        """A hold is not needed any more; WrongState while its emergency is open, as far as we know.

        `although_open` is for admins: the word that it was cleared may have been lost.
        """
        async with self._database.statements() as db:
            hold = await self._store.hold(db, hold_id)
            if hold is None:
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such hold")
            _seen(caller, await self._store.find(db, hold.recording_id), "hold")
            known = await self._store.emergency(db, hold.emergency_id) if hold.emergency_id else None
        if although_open and not (caller.person and "admin" in caller.person.roles):
            raise Forbidden(Reason.ERROR_REASON_CALLER_NOT_ALLOWED, "only an admin releases a hold whose emergency is not known to be over")
        if hold.emergency_id and not although_open and (known is None or known.cleared_at is None):
            raise WrongState(Reason.ERROR_REASON_EMERGENCY_OPEN, "the hold is of an emergency that is open: clear it first")
        return await self._release(hold, caller.actor, note)

    async def _release(self, hold: Hold, actor: Actor, note: str, *, lapsed: bool = False) -> tuple[Recording, Hold]:
        async with self._database.transaction() as tx:
            recording = await self._store.recording(tx, hold.recording_id)
            holds = await self._store.holds(tx, hold.recording_id)  # as they are now that the recording is locked
            if recording is None:
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such recording")
            there = next(each for each in holds if each.hold_id == hold.hold_id)
            released = there.released(actor.SerializeToString(), self._clock.now(), note, lapsed=lapsed)
            if released is there:
                return recording, there
            await self._store.save_hold(tx, released)
            details = {"hold": hold.hold_id, "reason": hold.reason, "note": note}
            self._note(tx, recording, "hold.released", actor, details, hold.emergency_id or "")
            held = any(each.released_at is None and each.hold_id != hold.hold_id for each in holds)
            return await self._save(tx, recording, recording.with_hold(held=held)), released

    async def set_retention(self, caller: Caller, days: int) -> int:
        """How long the recordings of the caller's agency are kept; returns how many are kept longer now."""
        async with self._database.transaction() as tx:
            before = await self._store.days(tx, caller.agency_id) or self._retention_days
            prolonged = await self._store.set_days(tx, caller.agency_id, days)
            details = {"days": str(days), "before": str(before), "prolonged": str(prolonged)}
            self._audit.record(tx, Entry("retention.set", caller.actor, f"agencies/{caller.agency_id}", caller.agency_id, details=details))
        return prolonged

    async def get_retention(self, agency_id: str) -> int:
        """Days that recordings of an agency are kept."""
        async with self._database.statements() as db:
            return await self._store.days(db, agency_id) or self._retention_days

    # --- what they have in common --------------------------------------------------------------------------------

    async def _save(self, tx: Transaction, before: Recording, after: Recording, segments: Sequence[Segment] = ()) -> Recording:
        """Write what is different, tell what has a new version."""
        if after is not before:
            await self._store.save(tx, [after])
        if after.version != before.version:
            await self._tell(tx, after, segments)
        return after

    async def _tell(self, tx: Transaction, recording: Recording, segments: Sequence[Segment] = ()) -> None:
        is_deleted = recording.state == RecordingState.DELETED
        self._announcer.announce(tx, recording, await self._store.holds(tx, recording.recording_id), segments if is_deleted else ())

    def _note(
        self, tx: Transaction, recording: Recording, action: str, actor: Actor, details: dict[str, str], emergency_id: str = ""
    ) -> None:
        target = f"recordings/{recording.recording_id}"
        self._audit.record(tx, Entry(action, actor, target, recording.agency_id, emergency_id or recording.emergency_id, details))


def _seen(caller: Caller, recording: Recording | None, what: str = "recording") -> Recording:
    if recording is None or not caller.may_see(recording.agency_id):
        raise NotFound(Reason.ERROR_REASON_NOT_FOUND, f"no such {what}")
    return recording
