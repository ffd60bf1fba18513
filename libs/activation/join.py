"""Which cameras a press starts. Pure: no clock, no I/O; the same event and record always give the same decision."""

from datetime import UTC, datetime

from sightline.activation.v1.activation_pb2 import ActivationDecision, NoCameraReason
from sightline.emergency.v1.emergency_pb2 import EMERGENCY_STATE_CLEARED, Emergency, SubjectState
from sightline.registry.v1.duty_pb2 import DutyInterval, DutyRecord

# Raise with every change of the rules below, so that an old decision can be explained later.
RULE_VERSION = 1


def join(emergency: Emergency, duty: DutyRecord | None, *, duty_is_fresh: bool = False) -> ActivationDecision | None:
    """Decide for the emergency's present epoch: all cameras, or the named reason why none.

    `duty` is the newest known record of the emergency's radio. None means "not yet": the record is missing or older
    than the pin, and neither is ever an answer. A press that the registry did not pin is decided only with
    `duty_is_fresh`, the caller's word that it would have heard of a change. Cleared emergencies have no decision.
    """
    subject = emergency.subject
    if emergency.state == EMERGENCY_STATE_CLEARED:
        return None
    if emergency.stale_on_arrival and subject.state != SubjectState.SUBJECT_STATE_BOUND:
        return _none(emergency, NoCameraReason.NO_CAMERA_REASON_STALE_ON_ARRIVAL)
    if subject.state == SubjectState.SUBJECT_STATE_BOUND:
        return _cameras(emergency, subject.officer_id, list(subject.camera_ids), 0)
    if subject.state == SubjectState.SUBJECT_STATE_RADIO_UNKNOWN and duty is None:
        return _none(emergency, NoCameraReason.NO_CAMERA_REASON_RADIO_UNKNOWN)
    if subject.home_agency_id not in ("", emergency.agency_id):
        return _none(emergency, NoCameraReason.NO_CAMERA_REASON_OTHER_AGENCY)
    if duty is None or duty.version < subject.duty_version:
        return None
    return _by_record(emergency, duty, duty_is_fresh)


def _by_record(emergency: Emergency, duty: DutyRecord, duty_is_fresh: bool) -> ActivationDecision | None:
    """Compare the record with the pin; a difference is for a person to settle."""
    subject = emergency.subject
    held = _at(duty, emergency.epoch_started_at.ToDatetime(UTC))
    holder = held.officer_id if held else ""
    if subject.state in (SubjectState.SUBJECT_STATE_UNPINNED, SubjectState.SUBJECT_STATE_UNSPECIFIED):
        if not duty_is_fresh:
            return None
    elif holder != subject.officer_id:
        return _none(emergency, NoCameraReason.NO_CAMERA_REASON_HOLDER_DISPUTED, duty.version)
    if duty.agency_id != emergency.agency_id:
        return _none(emergency, NoCameraReason.NO_CAMERA_REASON_OTHER_AGENCY, duty.version)
    if held is None:
        return _none(emergency, NoCameraReason.NO_CAMERA_REASON_NOBODY_HELD_RADIO, duty.version)
    return _cameras(emergency, held.officer_id, list(held.camera_ids), duty.version)


def _at(duty: DutyRecord, instant: datetime) -> DutyInterval | None:
    """The interval [from, to) that holds the instant."""
    for interval in duty.intervals:
        starts = getattr(interval, "from").ToDatetime(UTC)
        if starts <= instant and (not interval.HasField("to") or instant < interval.to.ToDatetime(UTC)):
            return interval
    return None


def _cameras(emergency: Emergency, officer_id: str, camera_ids: list[str], duty_version: int) -> ActivationDecision:
    if not camera_ids:
        return _none(emergency, NoCameraReason.NO_CAMERA_REASON_NO_CAMERA_ASSIGNED, duty_version, officer_id)
    decision = _decision(emergency, duty_version, officer_id)
    decision.camera_ids.extend(camera_ids)
    return decision


def _none(emergency: Emergency, reason: NoCameraReason.ValueType, duty_version: int = 0, officer_id: str = "") -> ActivationDecision:
    decision = _decision(emergency, duty_version, officer_id)
    decision.no_camera_reason = reason
    return decision


def _decision(emergency: Emergency, duty_version: int, officer_id: str) -> ActivationDecision:
    return ActivationDecision(
        emergency_id=emergency.emergency_id,
        epoch=emergency.epoch,
        agency_id=emergency.agency_id,
        radio=emergency.radio,
        officer_id=officer_id,
        expires_at=emergency.activation_expires_at,
        duty_version=duty_version,
        rule_version=RULE_VERSION,
    )
