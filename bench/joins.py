"""How many joins a second one lane makes of a backlog, and per second of processor time."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from chassis.bus import client_config
from chassis.settings import KafkaSettings
from confluent_kafka import Consumer, Producer, TopicPartition
from contracts.topics import ACTIVATION_DECISION, EMERGENCY_EVENT, REGISTRY_DUTY, radio_key
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.emergency.v1.emergency_pb2 import EMERGENCY_STATE_OPEN, SUBJECT_STATE_HELD, Emergency, EmergencyEvent, Subject
from sightline.registry.v1.duty_pb2 import DutyInterval, DutyRecord

from bench.measure import seconds_used
from tools.local.stack import Stack, process_named

_WITHIN_S = 300.0
_RADIOS = 500


@dataclass(frozen=True)
class Rate:
    """Joins of a lane."""

    joins: int
    per_second: float
    per_core_second: float


def _producer(kafka: KafkaSettings) -> Producer:
    return Producer(client_config(kafka) | {"partitioner": "murmur2_random", "linger.ms": 20, "queue.buffering.max.messages": 1_000_000})


def _hand_out(producer: Producer, radios: Sequence[RadioIdentity]) -> None:
    """A duty record for each radio."""
    for radio in radios:
        interval = DutyInterval(officer_id=f"officer-{radio.unit_id}", camera_ids=[f"cam-{radio.unit_id}"])
        getattr(interval, "from").FromDatetime(datetime.now(UTC) - timedelta(hours=1))
        duty = DutyRecord(radio=radio, agency_id="join-pd", version=1, intervals=[interval])
        producer.produce(REGISTRY_DUTY.name, duty.SerializeToString(), radio_key(radio))
    producer.flush(30)


def _press(producer: Producer, radios: Sequence[RadioIdentity], count: int) -> None:
    """Events of emergencies that only the lane will hear of."""
    now = datetime.now(UTC)
    for n in range(count):
        radio = radios[n % len(radios)]
        subject = Subject(state=SUBJECT_STATE_HELD, officer_id=f"officer-{radio.unit_id}", duty_version=1, home_agency_id="join-pd")
        emergency = Emergency(
            emergency_id=str(uuid4()), version=1, epoch=1, agency_id="join-pd", radio=radio, state=EMERGENCY_STATE_OPEN, subject=subject,
        )  # fmt: skip
        emergency.epoch_started_at.FromDatetime(now)
        emergency.activation_expires_at.FromDatetime(now + timedelta(minutes=2))
        producer.produce(EMERGENCY_EVENT.name, EmergencyEvent(emergency=emergency).SerializeToString(), radio_key(radio))
        producer.poll(0)
    producer.flush(60)


def _ends(consumer: Consumer) -> int:
    """Records on the decision topic."""
    number = range(ACTIVATION_DECISION.partitions)
    return sum(consumer.get_watermark_offsets(TopicPartition(ACTIVATION_DECISION.name, n), timeout=10)[1] for n in number)


async def measure(stack: Stack, lane: str, joins: int) -> Rate:
    """Give a lane that runs alone a backlog, and watch its decisions come."""
    kafka = KafkaSettings(bootstrap=stack.kafka, security="PLAINTEXT")
    consumer = Consumer(client_config(kafka) | {"group.id": "bench-joins"})
    pid = process_named(stack, lane).pid
    radios = [RadioIdentity(wacn=0xBEE00, system_id=0x1A5, unit_id=n + 1) for n in range(_RADIOS)]
    producer = _producer(kafka)

    async def decided(count: int) -> int:
        async with asyncio.timeout(_WITHIN_S):
            while (now := await asyncio.to_thread(_ends, consumer)) < count:
                await asyncio.sleep(0.05)
        return now

    try:
        before = await asyncio.to_thread(_ends, consumer)
        # The lane must know all radios before: of one that it does not know it keeps only a few events.
        await asyncio.to_thread(_hand_out, producer, radios)
        await asyncio.to_thread(_press, producer, radios, _RADIOS)
        before = await decided(before + _RADIOS)
        await asyncio.to_thread(_press, producer, radios, joins)
        used, there, begun = seconds_used(pid), await asyncio.to_thread(_ends, consumer), time.monotonic()
        made = await decided(before + joins) - there
        seconds = time.monotonic() - begun
        return Rate(joins, made / seconds, made / max(0.01, seconds_used(pid) - used))
    finally:
        consumer.close()
