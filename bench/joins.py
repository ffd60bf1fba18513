"""How many joins a second one lane makes of a backlog, and per second of processor time."""

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psutil
from chassis.bus import client_config
from chassis.settings import KafkaSettings
from confluent_kafka import Consumer, Producer, TopicPartition
from contracts.topics import ACTIVATION_DECISION, EMERGENCY_EVENT, REGISTRY_DUTY, radio_key
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.emergency.v1.emergency_pb2 import EMERGENCY_STATE_OPEN, SUBJECT_STATE_HELD, Emergency, EmergencyEvent, Subject
from sightline.registry.v1.duty_pb2 import DutyInterval, DutyRecord

from tools.local.stack import Stack, process_named

_WITHIN_S = 300.0
_RADIOS = 500


@dataclass(frozen=True)
class Rate:
    """Joins of a lane."""

    joins: int
    per_second: float
    per_core_second: float


def _fill(kafka: KafkaSettings, joins: int) -> None:
    """Duty records, and then events of emergencies that only the lane will hear of."""
    producer = Producer(
        client_config(kafka) | {"partitioner": "murmur2_random", "linger.ms": 20, "queue.buffering.max.messages": 1_000_000}
    )
    now = datetime.now(UTC)
    radios = [RadioIdentity(wacn=0xBEE00, system_id=0x1A5, unit_id=n + 1) for n in range(_RADIOS)]
    for radio in radios:
        interval = DutyInterval(officer_id=f"officer-{radio.unit_id}", camera_ids=[f"cam-{radio.unit_id}"])
        getattr(interval, "from").FromDatetime(now - timedelta(hours=1))
        duty = DutyRecord(radio=radio, agency_id="join-pd", version=1, intervals=[interval])
        producer.produce(REGISTRY_DUTY.name, duty.SerializeToString(), radio_key(radio))
    producer.flush(30)
    for n in range(joins):
        radio = radios[n % _RADIOS]
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
    process = psutil.Process(process_named(stack, lane).pid)
    try:
        before = await asyncio.to_thread(_ends, consumer)
        await asyncio.to_thread(_fill, kafka, joins)
        used, there, begun = sum(process.cpu_times()[:2]), await asyncio.to_thread(_ends, consumer), time.monotonic()
        async with asyncio.timeout(_WITHIN_S):
            while (now := await asyncio.to_thread(_ends, consumer)) < before + joins:
                await asyncio.sleep(0.05)
        seconds, made = time.monotonic() - begun, now - there
        return Rate(joins, made / seconds, made / max(0.01, sum(process.cpu_times()[:2]) - used))
    finally:
        consumer.close()
