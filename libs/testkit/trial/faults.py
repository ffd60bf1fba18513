"""What can be broken, each by its number in the fault catalogue; every one has ended, and all serve again, when it returns."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chassis.bus import Publisher, Record
from chassis.settings import KafkaSettings
from confluent_kafka import KafkaException
from contracts.topics import ACTIVATION_DECISION, ACTIVATION_RESULT, EMERGENCY_EVENT, REGISTRY_DUTY

from testkit.sabotage import DECISION_POINTS, PRESS_POINTS
from testkit.trial.checker import POISON
from testkit.trial.rig import KAFKA, POSTGRES, Rig, until

Act = Callable[[Rig, random.Random], Awaitable[str]]


@dataclass(frozen=True)
class Fault:
    """A named way to break something; `act` returns what exactly was done."""

    number: str
    name: str
    act: Act


def _one(rig: Rig, dice: random.Random, service: str) -> str:
    return dice.choice([name for name in rig.services if name.startswith(service)])


def _killing(service: str) -> Act:
    async def act(rig: Rig, dice: random.Random) -> str:
        name = _one(rig, dice, service)
        await rig.kill(name)
        return name

    return act


def _freezing(service: str, seconds: float) -> Act:
    async def act(rig: Rig, dice: random.Random) -> str:
        name = _one(rig, dice, service)
        async with rig.frozen(name):
            await asyncio.sleep(seconds)
        await rig.serves(name)
        return f"{name} for {seconds:g} s"

    return act


def _terminating(service: str) -> Act:
    async def act(rig: Rig, dice: random.Random) -> str:
        name = _one(rig, dice, service)
        await rig.terminate(name)
        return name

    return act


def _dying_at(service: str, points: dict[str, str]) -> Act:
    """SIGKILL at a point of the path, chosen by the dice."""

    async def act(rig: Rig, dice: random.Random) -> str:
        point = f"{dice.choice(sorted(points))}.{dice.choice(['before', 'after'])}"
        return await die_at(rig, _one(rig, dice, service), point, dice.randint(1, 4))

    return act


async def die_at(rig: Rig, name: str, point: str, nth: int) -> str:
    """Replace a process by one that dies at a point; presses must go on, or it never gets there."""
    async with rig.otherwise(name, f"die:{point}:{nth}") as process:
        for other in rig.services:
            if name.startswith("streams") and other.startswith("streams") and other != name:
                rig.process(other).signal(signal.SIGKILL)  # its cameras come to us, or we would have nothing to do
        await until(lambda: not process.alive(), f"death of {name} at {point}")
    return f"{name} at {point}:{nth}"


async def _unnoted(rig: Rig, dice: random.Random) -> str:
    return await die_at(rig, _one(rig, dice, "emergency"), "publish.after", 1)


def _without(prefix: str, least_s: float, most_s: float, *, frozen: bool = False) -> Act:
    """All processes of a name killed, or frozen, and not there for some time."""

    async def act(rig: Rig, dice: random.Random) -> str:
        names = [process.name for process in rig.stack.processes if process.name.startswith(prefix)]
        seconds = dice.uniform(least_s, most_s)
        async with rig.frozen(*names) if frozen else rig.down(*names):
            await asyncio.sleep(seconds)
        return f"{', '.join(names)} for {seconds:.1f} s"

    return act


def _cut_off(service: str, **weather: bool) -> Act:
    """Nothing arrives any more, and no connection ends: from one process to the broker, or back, or both."""

    async def act(rig: Rig, dice: random.Random) -> str:
        name, seconds = _one(rig, dice, service), dice.uniform(3, 8)
        async with rig.behind_proxies(name):
            for direction in weather:
                setattr(rig.kafka.weather, direction, True)
            await asyncio.sleep(seconds)
            for direction in weather:
                setattr(rig.kafka.weather, direction, False)
            rig.kafka.cut()
            await rig.serves(name)
        return f"{name} for {seconds:.1f} s"

    return act


async def _reset_in_a_message(rig: Rig, dice: random.Random) -> str:
    name = dice.choice([name for name in rig.services if name.startswith(("emergency", "streams", "joiner"))])
    async with rig.behind_proxies(name):
        for proxy in (rig.kafka, rig.postgres):
            proxy.weather.reset_after = dice.randint(2_000, 30_000)
        await asyncio.sleep(4)
        for proxy in (rig.kafka, rig.postgres):
            proxy.weather.reset_after = None
        await rig.serves(name)
    return f"{name}, {rig.kafka.resets} resets of Kafka's, {rig.postgres.resets} of PostgreSQL's so far"


async def _lose_the_answer_of_a_commit(rig: Rig, dice: random.Random) -> str:
    name, count = _one(rig, dice, dice.choice(["emergency", "streams"])), 5
    async with rig.behind_proxies(name):
        for _ in range(count):
            rig.postgres.weather.reset_behind = b"COMMIT"
            await until(lambda: rig.postgres.weather.reset_behind is None, "a commit")
        await rig.serves(name)
    return f"{name}, {count} times"


async def _slow_broker(rig: Rig, dice: random.Random) -> str:
    name = _one(rig, dice, dice.choice(["emergency", "streams", "joiner"]))
    async with rig.behind_proxies(name):
        rig.kafka.weather.delay_s = 0.3
        await asyncio.sleep(5)
        rig.kafka.weather.delay_s = 0.0
        await rig.serves(name)
    return name


async def _handler_raises(rig: Rig, dice: random.Random) -> str:
    name = _one(rig, dice, dice.choice(["emergency", "streams", "joiner"]))
    async with rig.otherwise(name, "raise:20"):
        await asyncio.sleep(5)
    return f"{name}, every 20th record for 5 s"


async def _poison(rig: Rig, dice: random.Random) -> str:
    publisher = Publisher(KafkaSettings(bootstrap=rig.stack.kafka, security="PLAINTEXT"))
    try:
        for topic in (EMERGENCY_EVENT, REGISTRY_DUTY, ACTIVATION_DECISION, ACTIVATION_RESULT):
            value = POISON + dice.randbytes(dice.choice([1, 100, 100_000]))
            await publisher.publish(Record(topic.name, dice.randbytes(8), value))
    except KafkaException as error:
        return f"not delivered: {error}"
    finally:
        await publisher.close()
    return "one record on each topic"


FAULTS = (
    Fault("F1", "emergency dies at a point of the path", _dying_at("emergency", PRESS_POINTS)),
    Fault("F3", "emergency dies between publishing and noting it", _unnoted),
    Fault("F4", "emergency frozen with what it has claimed", _freezing("emergency", 4)),
    Fault("F14", "a process cut off from the broker", _cut_off("emergency", swallow_to_server=True, swallow_to_client=True)),
    Fault("F14", "a lane cut off from the broker", _cut_off("joiner", swallow_to_server=True, swallow_to_client=True)),
    Fault("F14", "streams cut off from the broker", _cut_off("streams", swallow_to_server=True, swallow_to_client=True)),
    Fault("F15", "the broker's answers lost", _cut_off("emergency", swallow_to_client=True)),
    Fault("F15", "the broker's answers to streams lost", _cut_off("streams", swallow_to_client=True)),
    Fault("F17", "a slow way to the broker", _slow_broker),
    Fault("F18", "connections reset in a message", _reset_in_a_message),
    Fault("F19", "streams killed", _killing("streams")),
    Fault("F19", "streams dies at a point of the path", _dying_at("streams", DECISION_POINTS)),
    Fault("F19", "a lane killed", _killing("joiner")),
    Fault("F19", "emergency killed", _killing("emergency")),
    Fault("F19", "registry killed", _killing("registry")),
    Fault("F20", "a lane frozen for longer than its session", _freezing("joiner", 8)),
    Fault("F20", "streams frozen", _freezing("streams", 5)),
    Fault("F22", "a handler raises", _handler_raises),
    Fault("F23", "poison on the topics", _poison),
    Fault("F25", "PostgreSQL killed", _without(POSTGRES, 0, 2)),
    Fault("F26", "PostgreSQL frozen", _without(POSTGRES, 2, 5, frozen=True)),
    Fault("F27", "a commit's answer lost", _lose_the_answer_of_a_commit),
    Fault("F51", "emergency terminated", _terminating("emergency")),
    Fault("F51", "streams terminated", _terminating("streams")),
    Fault("F51", "a lane terminated", _terminating("joiner")),
    Fault("-", "both lanes down", _without("joiner", 2, 5)),
    Fault("-", "both registries frozen", _without("registry", 2, 4, frozen=True)),
    Fault("-", "Kafka killed", _without(KAFKA, 0, 3)),
    Fault("-", "Kafka frozen", _without(KAFKA, 2, 6, frozen=True)),
)
