"""Emergencies on their way out, activation results on their way in; protobuf <-> model."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from chassis.bus import Received, Record, parse
from chassis.clock import stamp
from chassis.db import Transaction
from chassis.errors import PoisonError
from chassis.names import on_wire
from contracts.topics import ACTIVATION_RESULT, EMERGENCY_EVENT, radio_key
from sightline.activation.v1.activation_pb2 import ActivationResult, ActivationState
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from sightline.common.v1.radio_pb2 import Position, RadioIdentity
from sightline.emergency.v1 import emergency_pb2 as pb

from services.emergency.model import Clocks, EarlierOfficer, Emergency, Fact, RadioId, Subject
from services.emergency.service import EmergencyService, Result

# Results of emergencies older than this are not waited for any more.
RESULTS_SINCE = timedelta(hours=24)
_ID = 63  # characters at the most


def to_emergency(e: Emergency) -> pb.Emergency:
    """The snapshot's wire form."""
    message = pb.Emergency(
        emergency_id=e.emergency_id,
        version=e.version,
        epoch=e.epoch,
        epoch_started_at=stamp(e.epoch_started_at),
        activation_expires_at=stamp(e.activation_expires_at),
        agency_id=e.agency_id,
        radio=to_radio(e.radio),
        state=pb.EMERGENCY_STATE_OPEN if e.is_open else pb.EMERGENCY_STATE_CLEARED,
        status=on_wire(pb.AlarmStatus, "ALARM_STATUS", e.status),
        subject=_subject(e.subject),
        clocks=_clocks(e.clocks),
        stale_on_arrival=e.stale_on_arrival,
        repeat_count=e.repeat_count,
        last_press_at=stamp(e.last_press_at),
        acknowledged=_fact(e.acknowledged),
        cleared=_fact(e.cleared),
        cancel_requested=_fact(e.cancel_requested),
        related_to=e.related_to,
        gateway_id=e.gateway_id,
        radio_alias=e.radio_alias,
        talkgroup_id=e.talkgroup_id,
        traceparent=e.traceparent,
        disposition=on_wire(pb.Disposition, "DISPOSITION", e.disposition),
        earlier=map(_earlier, e.earlier),
        subject_conflict=e.subject_conflict,
        unsettled_press_at=stamp(e.unsettled_press_at),
        position_at=stamp(e.position_at),
    )
    if e.position:
        place = e.position
        message.position.CopyFrom(Position(latitude=place.latitude, longitude=place.longitude, accuracy_m=place.accuracy_m))
    return message


def to_radio(radio: RadioId) -> RadioIdentity:
    """A radio's wire form."""
    return RadioIdentity(wacn=radio.wacn, system_id=radio.system_id, unit_id=radio.unit_id)


def from_radio(radio: RadioIdentity) -> RadioId:
    """A radio's model form."""
    return RadioId(radio.wacn, radio.system_id, radio.unit_id)


def _subject(subject: Subject) -> pb.Subject:
    return pb.Subject(
        state=on_wire(pb.SubjectState, "SUBJECT_STATE", subject.state),
        officer_id=subject.officer_id,
        unit_id=subject.unit_id,
        duty_version=subject.duty_version,
        held_from=stamp(subject.held_from),
        held_to=stamp(subject.held_to),
        home_agency_id=subject.home_agency_id,
        camera_ids=subject.camera_ids,
        filled_at=stamp(subject.filled_at),
        bound_at=stamp(subject.bound_at),
    )


def _earlier(officer: EarlierOfficer) -> pb.EarlierOfficer:
    return pb.EarlierOfficer(
        officer_id=officer.officer_id,
        epoch=officer.epoch,
        superseded=on_wire(pb.Superseded, "SUPERSEDED", officer.superseded),
        not_involved=_fact(officer.not_involved),
    )


def _clocks(clocks: Clocks) -> pb.Clocks:
    message = pb.Clocks(
        source_time=stamp(clocks.source_time),
        gateway_received_at=stamp(clocks.gateway_received_at),
        gateway_sent_at=stamp(clocks.gateway_sent_at),
        platform_received_at=stamp(clocks.platform_received_at),
        press_time=stamp(clocks.press_time),
        clock_suspect=clocks.clock_suspect,
    )
    message.gateway_skew.FromTimedelta(clocks.gateway_skew)
    if clocks.may_be_older_by is not None:
        message.may_be_older_by.FromTimedelta(clocks.may_be_older_by)
    return message


def _fact(fact: Fact | None) -> pb.Fact | None:
    if fact is None:
        return None
    actor = Actor(kind=ActorKind.ValueType(fact.actor.kind), id=fact.actor.id, agency_id=fact.actor.agency_id)
    return pb.Fact(actor=actor, at=stamp(fact.at), note=fact.note)


class EmergencyAnnouncer:
    """Publishes emergencies with the transaction that changed them."""

    def announce(self, tx: Transaction, emergency: Emergency) -> None:
        """Publish the snapshot with the transaction."""
        message = pb.EmergencyEvent(emergency=to_emergency(emergency))
        subject = f"emergencies/{emergency.emergency_id}"
        tx.emit(Record.of(EMERGENCY_EVENT, radio_key(message.emergency.radio), message, source="emergency", subject=subject))


class ResultReader:
    """Takes in what activations came to."""

    topics = (ACTIVATION_RESULT,)

    def __init__(self, service: EmergencyService) -> None:
        self._service = service

    async def __call__(self, batch: Sequence[Received]) -> None:
        """Handle records of `activation.result`."""
        await self._service.keep_results([_to_result(received.value) for received in batch])


def _to_result(value: bytes) -> Result:
    message = parse(ActivationResult, value)
    try:
        UUID(message.emergency_id)
    except ValueError as error:
        raise PoisonError("a result without an emergency") from error
    if not message.version or len(message.camera_id) > _ID:
        raise PoisonError("a result without version, or with an impossible camera")
    return Result(message.emergency_id, message.epoch, message.camera_id, message.version, value)


def outcome_in(content: bytes) -> tuple[str, str]:
    """The officer and the state's name in a kept result; the state is empty if it is a newer release's, whatever that may mean."""
    message = ActivationResult.FromString(content)
    known = message.state in ActivationState.values()
    return message.officer_id, ActivationState.Name(message.state).removeprefix("ACTIVATION_STATE_") if known else ""
