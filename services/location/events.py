"""Reports, positions, and who has what: protobuf <-> model; in from Kafka, and out."""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from chassis.bus import BulkPublisher, Received, parse
from chassis.clock import seconds_of, set_seconds
from chassis.errors import PoisonError
from chassis.names import are_names, is_uuid
from contracts.topics import EMERGENCY_EVENT, LOCATION_POSITION, LOCATION_REPORT, REGISTRY_DEVICE, REGISTRY_DUTY, radio_key
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.emergency.v1.emergency_pb2 import EMERGENCY_STATE_CLEARED, EmergencyEvent
from sightline.location.v1.position_pb2 import Position, PositionReport, Source
from sightline.registry.v1.device_pb2 import DeviceRecord, FixedCamera
from sightline.registry.v1.duty_pb2 import DutyInterval, DutyRecord

from services.location.model import (
    GOOD,
    Directory,
    Fix,
    Holder,
    Interval,
    KnownEmergency,
    Name,
    Taken,
    Vehicle,
    flaw,
    from_fix,
    set_fix,
    usable,
)
from services.location.service import LocationService, Report

# What is tailed from when: every radio is told of again within ten minutes; open emergencies are state; devices are compacted.
DUTY_SINCE, EMERGENCIES_SINCE, DEVICES_SINCE = timedelta(hours=2), EMERGENCY_EVENT.retention, timedelta(days=36_500)
_LATEST_S = 2**36  # in the year 4147
Changed = Callable[[Iterable[Name]], None]
_SOURCES = {"radio": Source.SOURCE_RADIO, "camera_id": Source.SOURCE_CAMERA, "vehicle_id": Source.SOURCE_VEHICLE}


def is_time(stamp: Timestamp) -> bool:
    """Whether a time from outside can be one: set, and not thousands of years away."""
    return 0 < stamp.seconds < _LATEST_S and 0 <= stamp.nanos < 1_000_000_000


def from_report(message: PositionReport) -> Report | None:
    """A report's model form; None if nobody can tell whose it is. A fix without a time that can be one has none (0)."""
    kind = message.device.WhichOneof("device")
    if kind is None:
        return None
    device, agency_id = radio_key(message.device.radio).decode() if kind == "radio" else getattr(message.device, kind), message.agency_id
    if not are_names(agency_id, device):
        return None
    reported_at = seconds_of(message.reported_at) if is_time(message.reported_at) else 0.0
    fix, ignored = usable(from_fix(message.fix))
    if not is_time(message.fix.fixed_at):
        fix, ignored = fix._replace(fixed_at=0.0), (*ignored, "fixed_at")
    return Report(agency_id, _SOURCES[kind], device, fix, reported_at, ignored)


def from_position(message: Position) -> Taken:
    """A position's model form."""
    holder = Holder(tuple(message.officer_ids), message.unit_id, message.visible_to, message.emergency_id)
    return Taken(
        message.agency_id, message.source, message.device_id, holder, from_fix(message.fix), seconds_of(message.reported_at),
        seconds_of(message.taken_at), message.clock_suspect,
    )  # fmt: skip


def is_sound(taken: Taken) -> bool:
    """Whether a position from its topic is one that we may have put there: whatever else is there must not stop us."""
    times = all(0 <= at < _LATEST_S for at in (taken.fix.fixed_at, taken.reported_at, taken.taken_at))
    names = are_names(taken.agency_id, taken.device_id, *taken.holder.officer_ids)
    return times and names and taken.source in _SOURCES.values() and flaw(taken.fix) == GOOD


def to_position(taken: Taken) -> Position:
    """A position's wire form."""
    holder = taken.holder
    message = Position(
        agency_id=taken.agency_id, source=taken.source, device_id=taken.device_id, officer_ids=holder.officer_ids, unit_id=holder.unit_id,
        visible_to=holder.visible_to, emergency_id=holder.emergency_id, clock_suspect=taken.clock_suspect,
    )  # fmt: skip
    set_fix(message.fix, taken.fix)
    set_seconds(message.reported_at, taken.reported_at)
    set_seconds(message.taken_at, taken.taken_at)
    return message


def device_key(agency_id: str, source: Source.ValueType, device_id: str) -> bytes:
    """What keeps one device's positions in order."""
    return f"{agency_id}/{source}/{device_id}".encode()


class PositionPublisher:
    """Positions on their way to Kafka."""

    def __init__(self, publisher: BulkPublisher) -> None:
        self._publisher = publisher

    async def publish(self, positions: Sequence[Taken]) -> None:
        """Return once all are durable."""
        await self._publisher.publish(
            [(device_key(each.agency_id, each.source, each.device_id), to_position(each).SerializeToString()) for each in positions]
        )


class ReportReader:
    """Takes in what AVL systems write to Kafka themselves."""

    topics = (LOCATION_REPORT,)

    def __init__(self, service: LocationService) -> None:
        self._service = service

    async def __call__(self, batch: Sequence[Received]) -> None:
        """Take reports. What is no report is poison; what is refused is counted and kept nowhere, for it may be of somebody off duty."""
        await self._service.take([from_report(parse(PositionReport, received.value)) for received in batch])


class HistoryReader:
    """Writes tracks."""

    topics = (LOCATION_POSITION,)

    def __init__(self, service: LocationService) -> None:
        self._service = service

    async def __call__(self, batch: Sequence[Received]) -> None:
        """Keep positions; offsets are committed after them."""
        taken = [from_position(parse(Position, received.value)) for received in batch]
        if not all(map(is_sound, taken)):
            raise PoisonError("a position with impossible names, times or coordinates")
        await self._service.keep(taken)


class DutyReader:
    """Learns who holds which radio, with what. `changed` gets the units for which something is different."""

    topics = (REGISTRY_DUTY,)

    def __init__(self, directory: Directory, changed: Changed) -> None:
        self._directory, self._changed = directory, changed

    async def __call__(self, received: Received) -> None:
        """Learn from one record."""
        record = parse(DutyRecord, received.value)
        told_at = seconds_of(record.published_at) or received.time.timestamp()
        intervals = list(map(_interval, record.intervals))
        radio = radio_key(record.radio).decode()
        self._changed(self._directory.learn_duty(radio, record.agency_id, record.version, intervals, told_at))


class DeviceReader:
    """Learns which unit drives which vehicle, and where cameras hang; `placed` gets the latter, with their version."""

    topics = (REGISTRY_DEVICE,)

    def __init__(self, directory: Directory, changed: Changed, placed: Callable[[int, FixedCamera], None]) -> None:
        self._directory, self._changed, self._placed = directory, changed, placed

    async def __call__(self, received: Received) -> None:
        """Learn from one record."""
        record = parse(DeviceRecord, received.value)
        if record.HasField("vehicle"):
            vehicle = record.vehicle
            known = Vehicle(vehicle.agency_id, vehicle.vehicle_id, record.version, vehicle.unit_id)
            self._changed(self._directory.learn_vehicle(known))
        elif record.HasField("fixed_camera"):
            camera = record.fixed_camera
            if flaw(Fix(camera.latitude, camera.longitude, None, None, None, 0.0)):
                raise PoisonError("a camera that hangs nowhere")
            self._placed(record.version, camera)


class EmergencyReader:
    """Learns for whom an emergency is open. `changed` gets the units for which something is different."""

    topics = (EMERGENCY_EVENT,)

    def __init__(self, directory: Directory, changed: Changed) -> None:
        self._directory, self._changed = directory, changed

    async def __call__(self, received: Received) -> None:
        """Learn from one record."""
        emergency = parse(EmergencyEvent, received.value).emergency
        if not is_uuid(emergency.emergency_id):
            raise PoisonError("an event without an emergency")
        known = KnownEmergency(
            emergency.emergency_id, emergency.version, emergency.agency_id, radio_key(emergency.radio).decode(),
            emergency.subject.officer_id, emergency.state != EMERGENCY_STATE_CLEARED, seconds_of(emergency.clocks.press_time),
        )  # fmt: skip
        self._changed(self._directory.learn_emergency(known))


def _interval(message: DutyInterval) -> Interval:
    start = seconds_of(getattr(message, "from"))
    end = seconds_of(message.to) if message.HasField("to") else float("inf")
    return Interval(start, end, message.officer_id, message.unit_id, tuple(message.camera_ids), message.visible_to)
