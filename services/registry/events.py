"""Duty records on their way out."""

from collections.abc import Sequence
from datetime import datetime

from chassis.bus import Record
from chassis.db import Transaction
from contracts.topics import REGISTRY_DUTY, radio_key
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.registry.v1 import duty_pb2

from services.registry.model import Duty, DutyInterval


def to_duty(duty: Duty, now: datetime) -> duty_pb2.DutyRecord:
    """The duty record's wire form."""
    radio = RadioIdentity(wacn=duty.radio.wacn, system_id=duty.radio.system_id, unit_id=duty.radio.unit_id)
    message = duty_pb2.DutyRecord(radio=radio, agency_id=duty.agency_id, version=duty.version)
    message.intervals.extend(map(to_interval, duty.intervals))
    message.published_at.FromDatetime(now)
    return message


def to_interval(interval: DutyInterval) -> duty_pb2.DutyInterval:
    """One interval's wire form."""
    message = duty_pb2.DutyInterval(officer_id=interval.officer_id, unit_id=interval.unit_id, camera_ids=interval.camera_ids)
    getattr(message, "from").FromDatetime(interval.span.start)
    if interval.span.end:
        message.to.FromDatetime(interval.span.end)
    return message


class DutyAnnouncer:
    """Publishes duty records with the transaction that made them."""

    def announce(self, tx: Transaction, duties: Sequence[Duty], now: datetime) -> None:
        """Publish with the transaction."""
        for duty in duties:
            message = to_duty(duty, now)
            key = radio_key(message.radio)
            tx.emit(Record.of(REGISTRY_DUTY, key, message, source="registry", subject=f"radios/{key.decode()}"))
