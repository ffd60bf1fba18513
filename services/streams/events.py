"""Decisions and emergencies in, activation results out; protobuf <-> model."""

from datetime import UTC, datetime, timedelta

from chassis import telemetry
from chassis.bus import Received, Record, parse
from chassis.clock import stamp
from chassis.db import Transaction
from chassis.errors import PoisonError
from chassis.names import are_names, is_uuid
from contracts.topics import ACTIVATION_DECISION, ACTIVATION_REJECTION, ACTIVATION_RESULT, EMERGENCY_EVENT
from sightline.activation.v1.activation_pb2 import (
    ActivationDecision,
    ActivationResult,
    ActivationState,
    DecisionRejection,
    NoCameraReason,
    RefusalReason,
)
from sightline.emergency.v1.emergency_pb2 import ALARM_STATUS_EXERCISE, EMERGENCY_STATE_CLEARED, Emergency, EmergencyEvent, SubjectState

from services.streams.model import Activation, Decision, KnownEmergency
from services.streams.service import StreamsService

_STATE, _REFUSAL, _NO_CAMERA = "ACTIVATION_STATE_", "REFUSAL_REASON_", "NO_CAMERA_REASON_"
# Decisions are of use within the longest age gate, and a margin; emergencies are state.
DECISIONS_SINCE, EMERGENCIES_SINCE = timedelta(minutes=35), timedelta(hours=24)
_UNSETTLED = (SubjectState.SUBJECT_STATE_UNPINNED, SubjectState.SUBJECT_STATE_UNSPECIFIED)
_SOURCE, _CAMERAS = 100, 16  # characters, and cameras of one officer, at the most


def to_result(a: Activation) -> ActivationResult:
    """The activation's wire form."""
    return ActivationResult(
        emergency_id=a.emergency_id,
        epoch=a.epoch,
        camera_id=a.camera_id,
        version=a.version,
        agency_id=a.agency_id,
        officer_id=a.officer_id,
        state=ActivationState.Value(_STATE + a.state),
        refusal_reason=RefusalReason.Value(_REFUSAL + (a.refusal_reason or "UNSPECIFIED")),
        no_camera_reason=NoCameraReason.Value(_NO_CAMERA + (a.no_camera_reason or "UNSPECIFIED")),
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
        if not are_names(emergency.agency_id, emergency.subject.officer_id or "-"):
            raise PoisonError("an event with impossible names")
        await self._service.take_emergency(to_known(emergency))
