"""Records in, checkpoints out; protobuf <-> model."""

import hashlib
import os
import uuid
from collections.abc import Sequence
from datetime import UTC

from chassis import telemetry
from chassis.bus import TRANSIENT, Publisher, Received, Record, parse
from chassis.db import Transaction
from chassis.errors import PoisonError, Unavailable
from chassis.names import PLATFORM, are_names, is_uuid
from chassis.reader import dead_letter
from contracts.topics import AUDIT_CHECKPOINT, AUDIT_RECORD
from sightline.audit.v1.leaf_pb2 import AuditCheckpoint, AuditDetail, AuditLeaf, AuditPersonal
from sightline.audit.v1.record_pb2 import AuditOutcome, AuditRecord
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from services.audit.model import LEAF_VERSION, Arrived, Signed, facts_of, personal_hash
from services.audit.service import AuditService

_SALT, _NAME, _TEXT = 32, 200, 2000  # bytes, and characters at the most


def to_arrived(record: AuditRecord, salt: bytes) -> Arrived:
    """A record in its two parts; PoisonError if it can have no place in the log."""
    try:
        at = record.at.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise PoisonError(f"no audit record: {error}") from error
    names = (record.producer, record.action, record.agency_id, record.emergency_id, record.caused_by, record.actor.agency_id)
    if (
        not is_uuid(record.record_id)
        or not record.HasField("at")
        or not 0 < record.producer_seq < 2**63
        or not record.producer
        or not record.action
    ):
        raise PoisonError("an audit record without id, time, producer, number or action")
    if any(len(name) > _NAME or "\0" in name for name in names) or len(record.target) > _TEXT or len(record.actor.id) > _TEXT:
        raise PoisonError("an audit record with impossible names")
    details = [AuditDetail(key=key, value=record.details[key]) for key in sorted(record.details)]
    personal = AuditPersonal(salt=salt, actor=record.actor, target=record.target, details=details, trace_id=record.trace_id)
    private = personal.SerializeToString(deterministic=True)
    leaf = AuditLeaf(
        record_id=record.record_id, producer=record.producer, producer_seq=record.producer_seq, action=record.action,
        outcome=record.outcome, actor_kind=record.actor.kind, agency_id=record.agency_id, emergency_id=record.emergency_id, at=record.at,
        caused_by=record.caused_by, personal_hash=personal_hash(private),
        facts=(AuditDetail(key=key, value=value) for key, value in facts_of(record.details)),
    )  # fmt: skip
    return Arrived(
        record.record_id, record.producer, record.producer_seq, record.action, record.agency_id or PLATFORM, record.emergency_id, at,
        LEAF_VERSION + leaf.SerializeToString(deterministic=True), private, (record.actor.agency_id, record.actor.id), record.target,
    )  # fmt: skip


def to_place_holder(record: AuditRecord, content: bytes, why: PoisonError, *, own_id: bool = True) -> AuditRecord:
    """A record in the place of one that cannot be kept, so that its number is not missing for ever; `why` if it has no number either.

    Without `own_id` it does not take the record's id, which may be what cannot be kept: another record has it.
    """
    if not are_names(record.producer) or not 0 < record.producer_seq < 2**63:
        raise why
    digest = hashlib.sha256(content).hexdigest()
    # Its own id, or one that the same bytes get again.
    record_id = record.record_id if own_id and is_uuid(record.record_id) else str(uuid.uuid5(uuid.NAMESPACE_OID, digest))
    found = AuditRecord(
        record_id=record_id, producer=record.producer, producer_seq=record.producer_seq, action="record.unreadable",
        outcome=AuditOutcome.AUDIT_OUTCOME_REFUSED, target=f"records/{record_id}", agency_id=PLATFORM,
        actor=Actor(kind=ActorKind.ACTOR_KIND_SERVICE, id="service/audit", agency_id=PLATFORM),
        details={"sha256": digest, "why": why.args[0][:_NAME]},
    )  # fmt: skip
    found.at.GetCurrentTime()
    return found


class RecordReader:
    """Takes in audit records of all producers."""

    topics = (AUDIT_RECORD,)

    def __init__(self, service: AuditService, publisher: Publisher) -> None:
        self._service, self._publisher = service, publisher

    async def _arrived(self, received: Received) -> Arrived:
        record = parse(AuditRecord, received.value)
        try:
            return to_arrived(record, os.urandom(_SALT))
        except PoisonError as why:
            instead = to_arrived(to_place_holder(record, received.value, why), os.urandom(_SALT))
            telemetry.log().error(
                "a record has only a place in the log", producer=record.producer, number=record.producer_seq, why=str(why)
            )
            await self._publisher.publish(dead_letter("audit", received, why))  # what it was stays to be looked at
            return instead

    async def __call__(self, batch: Sequence[Received]) -> None:
        """Handle records of `audit.record`."""
        arrived = [await self._arrived(received) for received in batch]
        try:
            await self._service.take(arrived)
        except (PoisonError, *TRANSIENT):
            raise
        except Exception as error:
            if len(batch) > 1:
                raise  # they come again in halves, until the one that is to blame comes alone
            await self._set_aside(batch[0], error)

    async def _set_aside(self, received: Received, error: Exception) -> None:
        """One record never stops the log: it gets a leaf that says so. If that cannot be kept either, it is us, and everything waits."""
        record, why = parse(AuditRecord, received.value), PoisonError(f"cannot be kept: {error}")
        instead = to_arrived(to_place_holder(record, received.value, why, own_id=False), os.urandom(_SALT))
        try:
            await self._service.take([instead])
        except (PoisonError, *TRANSIENT):
            raise
        except Exception as other:
            telemetry.log().exception("records wait for somebody to mend this", number=record.producer_seq, producer=record.producer)
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, str(other)) from other
        telemetry.log().error("a record has only a place in the log", producer=record.producer, number=record.producer_seq, why=str(why))
        await self._publisher.publish(dead_letter("audit", received, why))


class CheckpointAnnouncer:
    """Publishes checkpoints with the transaction that signed them."""

    def announce(self, tx: Transaction, signed: Signed) -> None:
        """Publish it with the transaction."""
        record = Record.of(AUDIT_CHECKPOINT, b"log", AuditCheckpoint(note=signed.note), source="audit", subject=f"audit/{signed.size}")
        tx.emit(record)
