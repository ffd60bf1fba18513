"""The lane's memory: the newest duty record of every radio, and the presses that wait for one."""

from collections import OrderedDict
from datetime import datetime, timedelta

import faust
from chassis import telemetry
from contracts.topics import RADIO_PARTITIONS
from faust.types import TableT
from sightline.emergency.v1.emergency_pb2 import SUBJECT_STATE_UNPINNED, Emergency
from sightline.registry.v1.duty_pb2 import DutyRecord

TABLE = "duty"
# Parked presses at the most, of all radios and of one; the oldest gives way, and `reconcile` in `streams` does not depend on us.
_PARKED_AT_MOST, _PARKED_OF_RADIO = 10_000, 8


def duty_table(app: faust.App) -> TableT[bytes, bytes]:
    """Radio key → DutyRecord bytes. Plain bytes types: a table with a raw `schema` recovers nothing (Faust 0.15)."""
    table: TableT[bytes, bytes] = app.Table(TABLE, key_type=bytes, value_type=bytes, partitions=RADIO_PARTITIONS)
    return table


class Parked:
    """The newest event of each emergency that cannot be decided yet."""

    def __init__(self) -> None:
        self._events: OrderedDict[bytes, OrderedDict[str, tuple[Emergency, str | None]]] = OrderedDict()
        self._since: dict[tuple[bytes, str], datetime] = {}  # when the event of an emergency's present epoch came
        self._partitions: dict[bytes, int] = {}
        self._count = 0

    def put(self, radio: bytes, partition: int, emergency: Emergency, traceparent: str | None, now: datetime) -> None:
        """Keep an event with its trace, unless a newer one of the same emergency is kept."""
        self._partitions[radio] = partition
        of_radio = self._events.setdefault(radio, OrderedDict())
        kept = of_radio.get(emergency.emergency_id)
        if kept is None or kept[0].version < emergency.version:
            of_radio[emergency.emergency_id] = (emergency, traceparent)
            self._count += kept is None
            if kept is None or kept[0].epoch < emergency.epoch:
                self._since[radio, emergency.emergency_id] = now
        if len(of_radio) > _PARKED_OF_RADIO:
            self._give_up(radio)
        elif self._count > _PARKED_AT_MOST:
            self._give_up(next(iter(self._events)))

    def _give_up(self, radio: bytes) -> None:
        oldest, _ = next(iter(self._events[radio].values()))
        telemetry.log().error("too many parked; the oldest is given up", emergency=oldest.emergency_id)
        self.remove(radio, oldest)

    def of(self, radio: bytes) -> list[tuple[Emergency, str | None]]:
        """The events that wait for this radio's record."""
        return list(self._events.get(radio, {}).values())

    def remove(self, radio: bytes, emergency: Emergency) -> None:
        """The emergency has been decided or cleared."""
        of_radio = self._events.get(radio, OrderedDict())
        if of_radio.pop(emergency.emergency_id, None):
            self._since.pop((radio, emergency.emergency_id), None)
            self._count -= 1
        if not of_radio:
            self._events.pop(radio, None)
            self._partitions.pop(radio, None)

    def unpinned(self, came_before: datetime) -> list[tuple[bytes, int, Emergency, str | None]]:
        """Events of presses that the registry did not pin, with radio and partition: they wait until we know all there is."""
        return [
            (radio, self._partitions[radio], emergency, traceparent)
            for radio, events in self._events.items()
            for emergency, traceparent in events.values()
            if emergency.subject.state == SUBJECT_STATE_UNPINNED and self._since[radio, emergency.emergency_id] < came_before
        ]


class Freshness:
    """When each duty partition was last heard of; the registry's trickle keeps all of them moving."""

    def __init__(self, trickle: timedelta) -> None:
        self._within = 2 * trickle
        self._heard: dict[int, datetime] = {}

    def heard(self, partition: int, at: datetime) -> None:
        """A record of this partition was read; `at` is the broker's time of it."""
        self._heard[partition] = max(at, self._heard.get(partition, at))

    def is_fresh(self, partition: int, now: datetime) -> bool:
        """Whether a change in this partition would have been heard of by now."""
        return partition in self._heard and now - self._heard[partition] < self._within


def newer(record: DutyRecord, known: bytes | None) -> bool:
    """Whether a record replaces the known one."""
    return known is None or record.version > DutyRecord.FromString(known).version
