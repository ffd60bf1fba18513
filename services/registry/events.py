"""Duty records on their way out."""

from collections.abc import Sequence
from datetime import datetime

from chassis.bus import Record
from chassis.db import Transaction
from contracts.topics import REGISTRY_DEVICE, REGISTRY_DUTY, radio_key
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.registry.v1 import device_pb2, duty_pb2

from services.registry.model import Duty, DutyInterval, FixedCamera, Vehicle


def to_duty(duty: Duty, now: datetime) -> duty_pb2.DutyRecord:
    """The duty record's wire form."""
    radio = RadioIdentity(wacn=duty.radio.wacn, system_id=duty.radio.system_id, unit_id=duty.radio.unit_id)
    message = duty_pb2.DutyRecord(radio=radio, agency_id=duty.agency_id, version=duty.version)
    message.intervals.extend(map(to_interval, duty.intervals))
    message.published_at.FromDatetime(now)
    return message


def to_interval(interval: DutyInterval) -> duty_pb2.DutyInterval:
    """One interval's wire form."""
    message = duty_pb2.DutyInterval(
        officer_id=interval.officer_id, unit_id=interval.unit_id, camera_ids=interval.camera_ids, visible_to=interval.visible_to
    )
    getattr(message, "from").FromDatetime(interval.span.start)
    if interval.span.end:
        message.to.FromDatetime(interval.span.end)
    return message


def to_vehicle(v: Vehicle) -> device_pb2.Vehicle:
    """The vehicle's wire form."""
    return device_pb2.Vehicle(vehicle_id=v.vehicle_id, agency_id=v.agency_id, display_name=v.display_name, unit_id=v.unit_id)


def to_fixed_camera(c: FixedCamera) -> device_pb2.FixedCamera:
    """The fixed camera's wire form."""
    return device_pb2.FixedCamera(
        camera_id=c.camera_id, agency_id=c.agency_id, display_name=c.display_name, latitude=c.latitude, longitude=c.longitude
    )


class RegistryAnnouncer:
    """Publishes duty and device records with the transaction that made them."""

    def announce(self, tx: Transaction, duties: Sequence[Duty], now: datetime) -> None:
        """Publish with the transaction."""
        for duty in duties:
            message = to_duty(duty, now)
            key = radio_key(message.radio)
            tx.emit(Record.of(REGISTRY_DUTY, key, message, source="registry", subject=f"radios/{key.decode()}"))

    def announce_device(self, tx: Transaction, device: Vehicle | FixedCamera, version: int) -> None:
        """Publish with the transaction."""
        if isinstance(device, Vehicle):
            message, subject = device_pb2.DeviceRecord(version=version, vehicle=to_vehicle(device)), f"vehicles/{device.vehicle_id}"
        else:
            message = device_pb2.DeviceRecord(version=version, fixed_camera=to_fixed_camera(device))
            subject = f"fixed-cameras/{device.camera_id}"
        tx.emit(Record.of(REGISTRY_DEVICE, f"{device.agency_id}/{subject}".encode(), message, source="registry", subject=subject))
