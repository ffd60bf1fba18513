"""Publishing and reading on a real broker."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from chassis.bus import Publisher, Received, Record, Topic, check_topics, client_config, parse
from chassis.errors import Misconfigured, PoisonError, Unavailable
from chassis.reader import BatchReader, Reader
from chassis.settings import KafkaSettings
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic
from sightline.common.v1.error_reason_pb2 import ErrorReason
from sightline.common.v1.radio_pb2 import Position, RadioIdentity

from tools.world import until

Handle = Callable[[Received], Awaitable[None]]


@pytest.fixture
def topic(kafka: KafkaSettings) -> Topic:
    """A topic of its own, with its dead-letter topic."""
    topic = Topic(f"test.{uuid.uuid4().hex}", RadioIdentity, "any", "test", (), 3, timedelta(hours=1))
    admin = AdminClient(client_config(kafka))
    new = [NewTopic(t.name, t.partitions, 1, config=t.config()) for t in (topic, topic.dlq())]
    for answer in admin.create_topics(new, operation_timeout=20).values():
        answer.result(timeout=30)
    return topic


@asynccontextmanager
async def reading(reader: Reader, since: timedelta | None = None, *, group: bool = False) -> AsyncIterator[None]:
    """Run a reader for the body."""
    task = asyncio.create_task(reader.consume() if group else reader.tail(since))
    waiting = asyncio.create_task(reader.caught_up.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def keep(into: list[bytes]) -> Handle:
    """A handler that keeps the values."""

    async def handle(received: Received) -> None:
        into.append(received.value)

    return handle


async def arrived(values: Sequence[object], count: int) -> None:
    async def enough() -> bool:
        return len(values) >= count

    await until(enough, f"{count} records")


def record(topic: Topic, value: bytes) -> Record:
    return Record(topic.name, b"k", value)


async def test_a_record_carries_the_cloud_event_headers(kafka: KafkaSettings, publisher: Publisher, topic: Topic) -> None:
    found: list[Received] = []

    async def handle(received: Received) -> None:
        found.append(received)

    async with reading(Reader("t", (topic,), handle, kafka, publisher)):
        await publisher.publish(Record.of(topic, b"k", RadioIdentity(unit_id=5), source="test", subject="radios/5"))

        async def there() -> bool:
            return bool(found)

        await until(there, "the record")
    assert parse(RadioIdentity, found[0].value).unit_id == 5
    assert found[0].headers["ce_type"] == b"sightline.common.v1.RadioIdentity"
    assert {"ce_id", "ce_source", "ce_time", "ce_specversion", "content-type"} <= set(found[0].headers)


async def test_a_message_of_the_wrong_kind_is_a_mistake_of_ours(topic: Topic) -> None:
    with pytest.raises(TypeError):
        Record.of(topic, b"k", Position(), source="t", subject="s")


async def test_publishing_to_a_topic_that_is_not_there_fails_loudly(publisher: Publisher) -> None:
    with pytest.raises(KafkaException):
        await publisher.publish(Record("no.such.topic", b"k", b"v"))


async def test_a_producer_that_failed_for_good_is_replaced(kafka: KafkaSettings, topic: Topic) -> None:
    publisher = Publisher(kafka)
    await publisher.publish(record(topic, b"before"))
    failed, waiting = publisher._producer, asyncio.get_running_loop().create_future()
    publisher._waiting.add(waiting)
    publisher._renew_if_fatal(failed, KafkaException(KafkaError(KafkaError._FATAL, "fenced", fatal=True)))
    with pytest.raises(Unavailable):
        await waiting
    assert publisher._producer is not failed
    await publisher.publish(record(topic, b"after"))
    await publisher.close()


async def test_a_tail_from_now_skips_what_was_and_a_tail_from_then_does_not(
    kafka: KafkaSettings, publisher: Publisher, topic: Topic
) -> None:
    for n in range(5):
        await publisher.publish(record(topic, b"old %d" % n))
    late: list[bytes] = []
    early: list[bytes] = []
    async with (
        reading(Reader("late", (topic,), keep(late), kafka, publisher)),
        reading(Reader("early", (topic,), keep(early), kafka, publisher), timedelta(minutes=5)),
    ):
        assert len(early) == 5  # ready means caught up
        await publisher.publish(record(topic, b"new"))
        await arrived(late, 1)
        await arrived(early, 6)
    assert late == [b"new"]


async def test_a_group_goes_on_behind_what_it_has_committed(kafka: KafkaSettings, publisher: Publisher, topic: Topic) -> None:
    name, first, second = f"g-{uuid.uuid4().hex}", list[bytes](), list[bytes]()
    await publisher.publish(record(topic, b"one"))
    async with reading(Reader(name, (topic,), keep(first), kafka, publisher), group=True):
        await arrived(first, 1)
    await publisher.publish(record(topic, b"two"))
    async with reading(Reader(name, (topic,), keep(second), kafka, publisher), group=True):
        await arrived(second, 1)
    assert (first, second[-1]) == ([b"one"], b"two")


async def test_poison_and_a_handler_that_always_fails_go_to_the_dlq_and_the_next_is_handled(
    kafka: KafkaSettings, publisher: Publisher, topic: Topic
) -> None:
    good: list[bytes] = []
    letters: list[Received] = []
    tries = 0

    async def handle(received: Received) -> None:
        nonlocal tries
        if received.value == b"poison":
            raise PoisonError("bad bytes")
        if received.value == b"bug":
            tries += 1
            raise ValueError("a bug of ours")
        good.append(received.value)

    async def letter(received: Received) -> None:
        letters.append(received)

    async with reading(Reader("dlq", (topic.dlq(),), letter, kafka, publisher)), reading(Reader("r", (topic,), handle, kafka, publisher)):
        for value in (b"poison", b"bug", b"good"):
            await publisher.publish(record(topic, value))
        await arrived(good, 1)

        async def both() -> bool:
            return len(letters) == 2

        await until(both, "two dead letters")
    assert tries == 3
    assert [letter.value for letter in letters] == [b"poison", b"bug"]
    assert [letter.headers["dlq_error"] for letter in letters] == [b"PoisonError: bad bytes", b"ValueError: a bug of ours"]
    assert letters[0].key.decode().startswith(f"r/{topic.name}/")


async def test_one_bad_record_of_a_batch_costs_the_others_little(kafka: KafkaSettings, publisher: Publisher, topic: Topic) -> None:
    good: list[bytes] = []
    letters: list[Received] = []
    batches: list[int] = []

    async def handle(batch: Sequence[Received]) -> None:
        batches.append(len(batch))
        if any(received.value == b"poison" for received in batch):
            raise PoisonError("bad bytes")
        good.extend(received.value for received in batch)

    async def letter(received: Received) -> None:
        letters.append(received)

    values = [b"%d" % number for number in range(256)]
    values[100] = b"poison"
    await asyncio.gather(*(publisher.publish(record(topic, value)) for value in values))
    reader = BatchReader("halves", (topic,), handle, kafka, publisher, linger_s=1.0)
    async with reading(Reader("dlq", (topic.dlq(),), letter, kafka, publisher)), reading(reader, timedelta(minutes=5)):
        await arrived(good, 255)
        await arrived(letters, 1)
    assert sorted(good) == sorted(value for value in values if value != b"poison")
    assert [letter.value for letter in letters] == [b"poison"]
    assert len(batches) <= 2 * 8 * 2


async def test_a_record_waits_while_our_surroundings_are_down(kafka: KafkaSettings, publisher: Publisher, topic: Topic) -> None:
    handled: list[bytes] = []
    failures = 6  # more than a bug would be given

    async def handle(received: Received) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise Unavailable(ErrorReason.ERROR_REASON_TRY_AGAIN, "down")
        handled.append(received.value)

    async with reading(Reader("r", (topic,), handle, kafka, publisher)):
        await publisher.publish(record(topic, b"patient"))
        await arrived(handled, 1)
    assert handled == [b"patient"]


@pytest.mark.parametrize("group", [False, True])
async def test_new_partitions_are_noticed(
    kafka: KafkaSettings, publisher: Publisher, topic: Topic, monkeypatch: pytest.MonkeyPatch, group: bool
) -> None:
    """P4: somebody adds partitions while all runs; what is written there is read, from its first record on."""
    monkeypatch.setattr("chassis.reader.NEW_PARTITIONS_S", 0.2)
    monkeypatch.setattr("chassis.bus.METADATA_MS", 500)
    got: list[bytes] = []
    async with reading(Reader(f"new-{topic.name}", (topic,), keep(got), kafka, publisher), group=group):
        await publisher.publish(Record(topic.name, b"k", b"before"))
        admin = AdminClient(client_config(kafka))
        admin.create_partitions([NewPartitions(topic.name, 6)])[topic.name].result(30)
        producer = Producer(client_config(kafka))
        sent = [f"in {number}".encode() for number in range(3, 6)]

        def there() -> bool:
            return len(admin.list_topics(topic.name, timeout=10).topics[topic.name].partitions) == 6

        await until(lambda: asyncio.to_thread(there), "the partitions")
        for number, value in enumerate(sent, 3):
            producer.produce(topic.name, value, partition=number)
        assert producer.flush(30) == 0

        async def all_of_them() -> bool:
            return {b"before", *sent} <= set(got)

        await until(all_of_them, "what is in the new partitions")


async def test_other_numbers_of_partitions_keep_away_only_who_joins(kafka: KafkaSettings, topic: Topic) -> None:
    narrower = replace(topic, partitions=2)
    with pytest.raises(Misconfigured, match="3 partitions instead of 2"):
        await check_topics(kafka, [narrower])
    await check_topics(kafka, [narrower], any_partitions=True)
    with pytest.raises(Misconfigured, match="is missing"):
        await check_topics(kafka, [replace(topic, name="test.nowhere")], any_partitions=True)
