"""What can be broken where there are three brokers; each fault has ended, and all brokers serve again, when it returns."""

import asyncio
import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from confluent_kafka import ElectionType, KafkaException
from confluent_kafka.admin import AdminClient

from testkit.trial.faults import FAULTS, Act, Fault
from testkit.trial.rig import READY_WITHIN_S, Rig
from tools.world import until

_BATCH_HEADER = struct.Struct(">qi")  # base offset, length of what follows
# What also belongs here of the faults of one broker: those that break only our own processes and the database.
_OURS = ("F1", "F3", "F4", "F19", "F20", "F22", "F25", "F51")


def _brokers(rig: Rig) -> list[str]:
    return [process.name for process in rig.stack.processes if process.name.startswith("kafka-")]


async def _healthy(rig: Rig) -> None:
    """Wait until every partition has all its replicas in sync."""
    admin = AdminClient({"bootstrap.servers": rig.stack.kafka, "log_level": 0})

    def in_sync() -> bool:
        try:
            for broker in rig.stack.kafka.split(","):  # what one broker believes of the others may be old
                AdminClient({"bootstrap.servers": broker, "log_level": 0}).list_topics(timeout=5)
            topics = admin.list_topics(timeout=5).topics
        except KafkaException:
            return False
        return all(len(p.isrs) == len(p.replicas) and p.leader >= 0 for t in topics.values() for p in t.partitions.values())

    await until(lambda: asyncio.to_thread(in_sync), "all replicas in sync", 3 * READY_WITHIN_S)


def _without(count: int, least_s: float, most_s: float, *, frozen: bool = False) -> Act:
    """Some brokers killed, or frozen, and not there for some time."""

    async def act(rig: Rig, dice: random.Random) -> str:
        brokers, seconds = dice.sample(_brokers(rig), count), dice.uniform(least_s, most_s)
        async with rig.frozen(*brokers) if frozen else rig.down(*brokers):
            await asyncio.sleep(seconds)
        await _healthy(rig)
        return f"{', '.join(brokers)} for {seconds:.1f} s"

    return act


async def _move_leaders(rig: Rig, dice: random.Random) -> str:
    """F9: leaders leave with a broker and are sent back, again and again."""
    admin = AdminClient({"bootstrap.servers": rig.stack.kafka, "log_level": 0})
    held = 0
    for _ in range(2):
        async with rig.down(dice.choice(_brokers(rig))):
            await asyncio.sleep(1)
        for _ in range(3):
            # Some have nothing to elect, some find the controller busy with a broker that has just come back.
            with suppress(KafkaException, TimeoutError):
                await asyncio.to_thread(lambda: admin.elect_leaders(ElectionType.PREFERRED).result(20))
                held += 1
            await asyncio.sleep(1)
    await _healthy(rig)
    return f"twice away, {held} elections"


async def _cut_between_brokers(rig: Rig, dice: random.Random) -> str:
    """F16: the others reach the first broker no more; clients do."""
    rig.kafka.weather.swallow_to_client = rig.kafka.weather.swallow_to_server = True
    await asyncio.sleep(15)
    rig.kafka.weather.swallow_to_client = rig.kafka.weather.swallow_to_server = False
    rig.kafka.cut()
    await _healthy(rig)
    return "15 s"


async def _lose_page_cache(rig: Rig, dice: random.Random) -> str:
    """F11: a power cut at one broker. What it had not flushed is gone; the others have it."""
    broker = dice.choice(_brokers(rig))
    async with rig.down(broker):
        lost = await asyncio.to_thread(_cut_to_recovery_point, rig.stack.data / "kafka" / broker.rpartition("-")[2] / "data")
    await _healthy(rig)
    return f"{broker}, {lost} bytes lost"


def _cut_to_recovery_point(data: Path) -> int:
    """Cut every log of our topics back to what was flushed; returns how many bytes went."""
    lost = 0
    points = (data / "recovery-point-offset-checkpoint").read_text().splitlines()[2:]
    flushed = {f"{topic}-{partition}": int(offset) for topic, partition, offset in (line.split() for line in points)}
    for folder in data.glob("sightline.*"):
        for log in sorted(folder.glob("*.log")):
            content = log.read_bytes()
            keep = next((at for at, base in _batches(content) if base >= flushed.get(folder.name, 0)), len(content))
            if keep < len(content):
                lost += len(content) - keep
                with log.open("r+b") as file:
                    file.truncate(keep)
    return lost


def _batches(content: bytes) -> Iterator[tuple[int, int]]:
    """Place and base offset of each record batch in a log segment."""
    at = 0
    while at + _BATCH_HEADER.size <= len(content):
        base, length = _BATCH_HEADER.unpack_from(content, at)
        if length <= 0:
            return
        yield at, base
        at += _BATCH_HEADER.size + length


CLUSTER_FAULTS = (
    Fault("F6", "a broker killed, which leads a third of all partitions", _without(1, 1, 5)),
    Fault("F7", "a broker frozen for longer than its session", _without(1, 15, 15, frozen=True)),
    Fault("F8", "two of three brokers frozen", _without(2, 12, 12, frozen=True)),
    Fault("F9", "leaders move", _move_leaders),
    Fault("F10", "two of three brokers killed, and with them the controllers' majority (F13)", _without(2, 8, 8)),
    Fault("F11", "a broker loses its page cache", _lose_page_cache),
    Fault("F16", "the first broker cut off from the others", _cut_between_brokers),
    *(fault for fault in FAULTS if fault.number in _OURS),
)
