"""Decisions and emergencies in, activation results out; protobuf <-> model."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Protocol

from chassis import telemetry
from chassis.bus import Publisher, Received, Record, parse
from chassis.clock import Clock, stamp
from chassis.db import Database, Statements, Transaction
from chassis.errors import PoisonError
from chassis.names import are_names, is_uuid, on_wire
from contracts.topics import ACTIVATION_DECISION, ACTIVATION_REJECTION, ACTIVATION_RESULT, EMERGENCY_EVENT, STREAM_CAMERA
from sightline.activation.v1.activation_pb2 import (
    ActivationDecision,
    ActivationResult,
    ActivationState,
    DecisionRejection,
    NoCameraReason,
    RefusalReason,
)
from sightline.emergency.v1.emergency_pb2 import ALARM_STATUS_EXERCISE, EMERGENCY_STATE_CLEARED, Emergency, EmergencyEvent, SubjectState
from sightline.streams.v1.stream_service_pb2 import CameraFault, CameraStatus

from services.streams.model import Activation, CameraView, Decision, KnownEmergency
from services.streams.service import StreamsService

_NO_CAMERA = "NO_CAMERA_REASON_"
# Decisions are of use within the longest age gate, and a margin; emergencies are state.
DECISIONS_SINCE, EMERGENCIES_SINCE = timedelta(minutes=35), timedelta(hours=24)
_UNSETTLED = (SubjectState.SUBJECT_STATE_UNPINNED, SubjectState.SUBJECT_STATE_UNSPECIFIED)
# A camera is told of again after this time; how many at once.
CAMERAS_AGAIN, _CAMERAS_AT_ONCE = timedelta(minutes=10), 500
_SOURCE, _CAMERAS, _EARLIER = 100, 16, 20  # characters, cameras of one officer, earlier officers, at the most


class Cameras(Protocol):
    """What is told of cameras."""

    async def untold(self, db: Statements, before: datetime, limit: int) -> list[tuple[CameraView, int]]:
        """Cameras whose link or report the world does not know, or was last told of before a time, each with a version for it."""
        ...


def to_result(a: Activation) -> ActivationResult:
    """The activation's wire form."""
    return ActivationResult(
        emergency_id=a.emergency_id,
        epoch=a.epoch,
        camera_id=a.camera_id,
        version=a.version,
        agency_id=a.agency_id,
        officer_id=a.officer_id,
        state=on_wire(ActivationState, "ACTIVATION_STATE", a.state),
        refusal_reason=on_wire(RefusalReason, "REFUSAL_REASON", a.refusal_reason),
        no_camera_reason=on_wire(NoCameraReason, "NO_CAMERA_REASON", a.no_camera_reason),
        requested_at=stamp(a.requested_at),
        ordered_at=stamp(a.ordered_at),
        answered_at=stamp(a.answered_at),
        device_time=stamp(a.device_time),
    )


def to_known(emergency: Emergency) -> KnownEmergency:
    """What we keep of an emergency."""
    return KnownEmergency(
        emergency.emergency_id,
        emergency.version,
        emergency.epoch,
        emergency.agency_id,
        emergency.state != EMERGENCY_STATE_CLEARED,
        emergency.status == ALARM_STATUS_EXERCISE,
        None if emergency.subject.state in _UNSETTLED else emergency.subject.officer_id,
        tuple(each.officer_id for each in emergency.earlier if not each.HasField("not_involved"))[-_EARLIER:],
    )


def to_decision(message: ActivationDecision, decided_by: str, traceparent: str = "") -> Decision:
    """A decision's model form. Which versions of the record and of the rules it rests on is no part of its answer."""
    answer = ActivationDecision()
    answer.CopyFrom(message)
    answer.ClearField("duty_version")
    answer.ClearField("rule_version")
    answer.DiscardUnknownFields()  # a newer release's fields are no difference
    return Decision(
        emergency_id=message.emergency_id,
        epoch=message.epoch,
        agency_id=message.agency_id,
        officer_id=message.officer_id,
        camera_ids=tuple(dict.fromkeys(message.camera_ids)),
        no_camera_reason=_name(NoCameraReason, message.no_camera_reason, _NO_CAMERA) if not message.camera_ids else "",
        expires_at=message.expires_at.ToDatetime(UTC),
        decided_by=decided_by,
        content=message.SerializeToString(deterministic=True),
        answer=answer.SerializeToString(deterministic=True),
        traceparent=traceparent,
    )


def _name(enum: type[NoCameraReason], number: int, prefix: str) -> str:
    """Name of an enum value; one of a newer schema counts as unspecified."""
    known = number in enum.values()
    return enum.Name(number).removeprefix(prefix) if known else "UNSPECIFIED"  # type: ignore[arg-type]


def to_status(view: CameraView, version: int = 0) -> CameraStatus:
    """A camera's wire form."""
    status = CameraStatus(
        camera_id=view.camera_id, agency_id=view.agency_id, linked=view.linked, linked_at=stamp(view.linked_at), version=version,
        faults=[CameraFault(field=each.field, value=each.value, first_at=stamp(each.first_at)) for each in view.faults],
    )  # fmt: skip
    if view.report is not None and view.reported_at:
        status.report.ParseFromString(view.report)
        status.reported_at.FromDatetime(view.reported_at)
    return status


class CameraAnnouncer:
    """Tells the world what cameras do, soon after it changes and each camera again and again: what a crash leaves untold is told then.

    It has no part in the transactions that start cameras.
    """

    def __init__(self, database: Database, store: Cameras, publisher: Publisher, clock: Clock) -> None:
        self._database, self._store, self._publisher, self._clock = database, store, publisher, clock

    async def announce(self) -> None:
        """Publish what is due."""
        more = True
        while more:
            async with self._database.statements() as db:
                due = await self._store.untold(db, self._clock.now() - CAMERAS_AGAIN, _CAMERAS_AT_ONCE)
            await asyncio.gather(*(self._publisher.publish(self._record(view, version)) for view, version in due))
            more = len(due) == _CAMERAS_AT_ONCE

    @staticmethod
    def _record(view: CameraView, version: int) -> Record:
        key, subject = f"{view.agency_id}/{view.camera_id}".encode(), f"cameras/{view.camera_id}"
        return Record.of(STREAM_CAMERA, key, to_status(view, version), source="streams", subject=subject)


class ActivationAnnouncer:
    """Publishes what becomes of decisions with the transaction that changed it."""

    def announce(self, tx: Transaction, activation: Activation) -> None:
        """Publish the snapshot with the transaction."""
        key, subject = activation.emergency_id.encode(), f"emergencies/{activation.emergency_id}"
        tx.emit(Record.of(ACTIVATION_RESULT, key, to_result(activation), source="streams", subject=subject))

    def announce_rejection(self, tx: Transaction, decision: Decision, why: str, now: datetime) -> None:
        """Publish that a decision is not executed."""
        message = DecisionRejection(decision=ActivationDecision.FromString(decision.content), decided_by=decision.decided_by, why=why)
        message.rejected_at.FromDatetime(now)
        key, subject = decision.emergency_id.encode(), f"emergencies/{decision.emergency_id}"
        tx.emit(Record.of(ACTIVATION_REJECTION, key, message, source="streams", subject=subject))


class DecisionReader:
    """Takes in decisions of all lanes."""

    topics = (ACTIVATION_DECISION,)

    def __init__(self, service: StreamsService) -> None:
        self._service = service

    async def __call__(self, received: Received) -> None:
        """Handle one record of `activation.decision`."""
        message = parse(ActivationDecision, received.value)
        if not is_uuid(message.emergency_id) or not 0 < message.epoch < 2**31 or not message.HasField("expires_at"):
            raise PoisonError("a decision without emergency, epoch or expiry")
        names = (*message.camera_ids, message.agency_id, message.officer_id or "-")
        if len(message.camera_ids) > _CAMERAS or not are_names(*names):
            raise PoisonError("a decision with impossible names")
        decided_by = (
            received.headers.get("ce_source", b"").decode("utf-8", "replace").removeprefix("/sightline/").replace("\0", "")[:_SOURCE]
        )
        await self._service.take_decision(to_decision(message, decided_by, telemetry.traceparent()))


class EmergencyReader:
    """Takes in the state of emergencies."""

    topics = (EMERGENCY_EVENT,)

    def __init__(self, service: StreamsService) -> None:
        self._service = service

    async def __call__(self, received: Received) -> None:
        """Handle one record of `emergency.event`."""
        emergency = parse(EmergencyEvent, received.value).emergency
        if not is_uuid(emergency.emergency_id) or not 0 < emergency.version < 2**63 or not 0 < emergency.epoch < 2**31:
            raise PoisonError("an event without emergency, version or epoch")
        earlier = (each.officer_id for each in emergency.earlier)
        if not are_names(emergency.agency_id, emergency.subject.officer_id or "-", *earlier):
            raise PoisonError("an event with impossible names")
        await self._service.take_emergency(to_known(emergency))
