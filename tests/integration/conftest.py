"""Every story takes officers with numbers of their own."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest
import pytest_asyncio
from chassis.bus import Publisher, Received, Topic
from chassis.reader import Reader
from chassis.settings import KafkaSettings
from contracts.topics import TOPICS

from tools.roster import Member, member
from tools.world import World

Read = Callable[[Topic], list[Received]]
_numbers = itertools.count(100)


@pytest.fixture
def someone() -> Callable[..., Member]:
    """Makes up an officer with a radio and cameras that no other story uses."""

    def make(cameras: int = 1) -> Member:
        return member("story", next(_numbers), cameras)

    return make


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def read(world: World, kafka: KafkaSettings, publisher: Publisher) -> AsyncIterator[Read]:
    """All records of a topic since the test session began, kept up to date in the background."""
    found: dict[str, list[Received]] = {}
    topics = [each for topic in TOPICS for each in (topic, topic.dlq())]

    def collect(topic: Topic) -> Reader:
        records = found.setdefault(topic.name, [])

        async def keep(received: Received) -> None:
            records.append(received)

        return Reader(f"test-{topic.name}", (topic,), keep, kafka, publisher)

    readers = [collect(topic) for topic in topics]
    tasks = [asyncio.create_task(reader.tail(timedelta(hours=1))) for reader in readers]
    for reader in readers:
        await reader.caught_up.wait()
    yield lambda topic: found[topic.name]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
