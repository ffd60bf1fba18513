"""Kafka: `tail` without a group, `consume` with one, dead letters for poison."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from chassis import telemetry
from chassis.bus import MAX_KEPT, TRANSIENT, Publisher, Received, Record, Topic, client_config
from chassis.errors import PoisonError
from chassis.settings import KafkaSettings

T = TypeVar("T")
Handler = Callable[[Received], Awaitable[None]]
FeedHandler = Callable[[Sequence[Message]], Awaitable[None]]
BatchHandler = Callable[[Sequence[Received]], Awaitable[None]]
NEW_PARTITIONS_S, _ASK_S = 10.0, 5.0
_ATTEMPTS, _BACKOFF_S, _BACKOFF_MAX_S, _BATCH = 3, 0.05, 2.0, 500


class Reader:
    """Reads records one after the other into a handler that may be slow, may fail and may find poison."""

    _linger_s, _at_most = 0.0, _BATCH

    def __init__(self, name: str, topics: tuple[Topic, ...], handle: Handler, settings: KafkaSettings, publisher: Publisher) -> None:
        self.name, self._topics, self._handle, self._publisher = name, topics, handle, publisher
        self._config = client_config(settings) | {
            "group.id": name,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "fetch.error.backoff.ms": 100,
            # Whoever died in a group is missed for so long; brokers allow no less.
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 2000,
        }
        self._thread = ThreadPoolExecutor(1, f"kafka-{name}")  # librdkafka's calls block: they get a thread of their own
        self.caught_up = asyncio.Event()

    async def tail(self, since: timedelta | None) -> None:
        """Read all partitions without a group, from `since` ago (None: from now on) for ever."""
        consumer = Consumer(self._config)
        try:
            positions = await self._find_start(consumer, since)
            await self._off_loop(consumer.assign, positions)
            self._check_caught_up({(p.topic, p.partition): p.offset for p in positions})
            looked_at = time.monotonic()
            while True:
                await self._read(consumer, commit=False)
                if time.monotonic() - looked_at > NEW_PARTITIONS_S:
                    looked_at = time.monotonic()
                    await self._off_loop(self._take_new_partitions, consumer)
        finally:
            await self._close(consumer)

    async def consume(self) -> None:
        """Read as a member of the group named after this reader; the offset is committed last."""
        consumer = Consumer(self._config)
        try:
            await self._off_loop(consumer.subscribe, [topic.name for topic in self._topics])
            self.caught_up.set()
            while True:
                await self._read(consumer, commit=True)
        finally:
            await self._close(consumer)

    def _take_new_partitions(self, consumer: Consumer) -> None:
        """Somebody may have added partitions: what is in them was written since, and is read from its beginning."""
        try:
            there = {(t.name, n) for t in self._topics for n in consumer.list_topics(t.name, timeout=2).topics[t.name].partitions}
        except KafkaException as error:
            telemetry.log().warning("cannot look for new partitions", reader=self.name, error=str(error))
            return
        new = there - {(p.topic, p.partition) for p in consumer.assignment()}
        if new:
            telemetry.log().warning("reads new partitions", reader=self.name, partitions=sorted(new))
            consumer.incremental_assign([TopicPartition(topic, number, OFFSET_BEGINNING) for topic, number in sorted(new)])

    async def _close(self, consumer: Consumer) -> None:
        await asyncio.shield(self._off_loop(consumer.close))
        self._thread.shutdown(wait=False)

    async def _off_loop(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _find_start(self, consumer: Consumer, since: timedelta | None) -> list[TopicPartition]:
        """Ask the brokers until they answer; they may be away when we start."""
        while True:
            try:
                positions, self._targets = await self._off_loop(self._seek, consumer, since)
                return positions
            except KafkaException as error:
                telemetry.log().warning("waiting", for_="Kafka", reader=self.name, because=str(error))
            await asyncio.sleep(0.3)

    def _seek(self, consumer: Consumer, since: timedelta | None) -> tuple[list[TopicPartition], dict[tuple[str, int], int]]:
        """Where to start, and the end offsets of this moment; blocks until the brokers tell."""
        start: list[TopicPartition] = []
        ends: dict[tuple[str, int], int] = {}
        for topic in self._topics:
            partitions = consumer.list_topics(topic.name, timeout=10).topics[topic.name].partitions
            if not partitions:
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
            for number in partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(topic.name, number), timeout=10)
                ends[topic.name, number] = high if high > low else low
                start.append(TopicPartition(topic.name, number, high))
        if since is not None:
            wanted = max(int((datetime.now(UTC) - since).timestamp() * 1000), 0)
            found = consumer.offsets_for_times([TopicPartition(p.topic, p.partition, wanted) for p in start], timeout=10)
            start = [p if p.offset != OFFSET_END else TopicPartition(p.topic, p.partition, ends[p.topic, p.partition]) for p in found]
        return start, ends

    def _poll(self, consumer: Consumer) -> list[Message]:
        """Wait for one message, then take what lies ready behind it."""
        first = consumer.poll(0.5)
        return [first, *consumer.consume(self._at_most, self._linger_s)] if first is not None else []

    async def _read(self, consumer: Consumer, *, commit: bool) -> None:
        batch: list[Received] = []
        for message in await self._off_loop(self._poll, consumer):
            if (error := message.error()) is not None:
                telemetry.log().warning("kafka read", reader=self.name, error=str(error))
            else:
                batch.append(Received.of(message))
        if not batch:
            return
        await self._handle_all(batch)
        positions = {(received.topic, received.partition): received.offset + 1 for received in batch}
        if commit:
            done = [TopicPartition(topic, partition, offset) for (topic, partition), offset in positions.items()]
            try:
                await self._off_loop(lambda: consumer.commit(offsets=done, asynchronous=False))
            except KafkaException as error:  # a broker or the group has changed: they come again, to whoever has the partition now
                telemetry.log().warning("positions not kept", reader=self.name, error=str(error))
        else:
            self._check_caught_up(positions)

    def _check_caught_up(self, positions: Mapping[tuple[str, int], int]) -> None:
        if self.caught_up.is_set():
            return
        self._targets = {p: end for p, end in self._targets.items() if positions.get(p, 0) < end}
        if not self._targets:
            self.caught_up.set()

    async def _handle_all(self, batch: Sequence[Received]) -> None:
        for received in batch:
            await self._handle_surely(received)

    async def _handle_surely(self, received: Received) -> None:
        """Handle a record; wait while our surroundings are down; dead-letter it if it cannot be handled."""
        attempt, pause = 0, _BACKOFF_S
        while True:
            try:
                with telemetry.span(f"{self.name} read", parent=received.traceparent):
                    await self._handle(received)
                return
            except TRANSIENT as error:
                telemetry.log().warning("waiting to handle a record", reader=self.name, topic=received.topic, error=str(error))
            except PoisonError as error:
                return await self._dead_letter(received, error)
            except Exception as error:
                attempt += 1
                telemetry.log().exception("handler failed", reader=self.name, topic=received.topic, attempt=attempt)
                if attempt == _ATTEMPTS:
                    return await self._dead_letter(received, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _BACKOFF_MAX_S)

    async def _dead_letter(self, received: Received, error: Exception) -> None:
        """Keep the bytes, the error and the place. The key makes a second reading of the same poison the same entry."""
        telemetry.log().error("dead letter", reader=self.name, topic=received.topic, offset=received.offset, error=str(error))
        record = dead_letter(self.name, received, error)
        while True:
            try:
                return await self._publisher.publish(record)
            except TRANSIENT:
                await asyncio.sleep(_BACKOFF_MAX_S)


class FeedReader(Reader):
    """Hands on very many records as they come, unwrapped, to a handler that takes them together and passes over what it cannot read.

    For `tail` only: another reader, of a group, sees the same records and sets poison aside.
    """

    _at_most = 2000

    def __init__(self, name: str, topics: tuple[Topic, ...], take: FeedHandler, settings: KafkaSettings, publisher: Publisher) -> None:
        super().__init__(name, topics, _nothing, settings, publisher)
        self._take = take

    async def _read(self, consumer: Consumer, *, commit: bool) -> None:
        batch = [message for message in await self._off_loop(self._poll, consumer) if message.error() is None]
        if batch:
            await self._take(batch)
        if batch and not self.caught_up.is_set():
            self._check_caught_up({(str(m.topic()), m.partition() or 0): (m.offset() or 0) + 1 for m in batch})


async def _nothing(_: Received) -> None:
    return None


class BatchReader(Reader):
    """Reads what arrives within a short time, so many records at the most, into a handler that takes them together.

    If it cannot, it gets them in halves, and those in halves: the good ones are kept, poison is set aside.
    """

    def __init__(
        self, name: str, topics: tuple[Topic, ...], handle: BatchHandler, settings: KafkaSettings, publisher: Publisher, linger_s: float,
        at_most: int = _BATCH,
    ) -> None:  # fmt: skip
        super().__init__(name, topics, lambda received: handle([received]), settings, publisher)
        self._handle_batch, self._linger_s, self._at_most = handle, linger_s, at_most

    async def _handle_all(self, batch: Sequence[Received]) -> None:
        if len(batch) == 1:
            return await super()._handle_all(batch)
        pause = _BACKOFF_S
        while True:
            try:
                return await self._handle_batch(batch)
            except TRANSIENT as error:
                telemetry.log().warning("waiting to handle a batch", reader=self.name, records=len(batch), error=str(error))
            except Exception as error:
                telemetry.log().warning("a batch is handled in halves", reader=self.name, records=len(batch), error=repr(error))
                middle = len(batch) // 2
                await self._handle_all(batch[:middle])
                return await self._handle_all(batch[middle:])
            await asyncio.sleep(pause)
            pause = min(pause * 2, _BACKOFF_MAX_S)


class Lag(NamedTuple):
    """How many records of a partition a group has before it, and the place that it has come to."""

    behind: int
    committed: int


class Distance:
    """How far a group of readers is from its topics' end, seen from outside: a reader that hangs cannot tell.

    By a consumer that never joins: librdkafka's admin client dies of a segmentation fault now and then in `list_offsets`.
    """

    def __init__(self, settings: KafkaSettings, group: str, topics: Sequence[Topic]) -> None:
        self._consumer = Consumer(client_config(settings) | {"group.id": group, "enable.auto.commit": False})
        self._topics = topics

    async def measure(self) -> dict[tuple[str, int], Lag]:
        """By topic and partition; KafkaException without an answer."""
        return await asyncio.to_thread(self._measure)

    async def close(self) -> None:
        """Let go of the brokers."""
        await asyncio.to_thread(self._consumer.close)

    def _measure(self) -> dict[tuple[str, int], Lag]:
        there = self._consumer.list_topics(timeout=_ASK_S).topics
        places = [TopicPartition(t.name, n) for t in self._topics if t.name in there for n in there[t.name].partitions]
        return {(p.topic, p.partition): self._lag(p) for p in self._consumer.committed(places, timeout=_ASK_S)} if places else {}

    def _lag(self, committed: TopicPartition) -> Lag:
        first, end = self._consumer.get_watermark_offsets(committed, timeout=_ASK_S)
        at = max(committed.offset, first)
        return Lag(max(0, end - at), at)


def dead_letter(reader: str, received: Received, error: Exception) -> Record:
    """The record that goes to `<topic>.dlq`."""
    headers = {name: value.decode("utf-8", "replace") for name, value in received.headers.items() if len(name) + len(value) <= 1024}
    headers = dict(list(headers.items())[:50])
    place = f"{reader}/{received.topic}/{received.partition}/{received.offset}"
    headers |= {
        "dlq_reader": reader,
        "dlq_error": f"{type(error).__name__}: {error}"[:1000],
        "dlq_topic": received.topic,
        "dlq_partition": str(received.partition),
        "dlq_offset": str(received.offset),
    }
    if len(received.value) > MAX_KEPT:
        headers["dlq_truncated_from"] = str(len(received.value))
    return Record(f"{received.topic}.dlq", place.encode(), received.value[:MAX_KEPT], headers)
