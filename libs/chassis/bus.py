"""Kafka: topics, records, and a publisher whose answer means durable. Reading is in `reader`.

Records follow the CloudEvents binary binding: `ce_*` headers, the value is the bare protobuf message.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Literal, NamedTuple, TypeVar

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]
from google.protobuf.message import Message as Protobuf
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from uuid_utils import uuid7

from chassis import telemetry
from chassis.errors import Misconfigured, PoisonError, Unavailable
from chassis.settings import KafkaSettings

M = TypeVar("M", bound=Protobuf)
# Failures of our surroundings: the record is good and waits until they pass.
TRANSIENT = (KafkaException, Unavailable, TimeoutError, OSError)
DLQ_RETENTION = timedelta(days=30)
_DELIVERY_S, METADATA_MS = 10.0, 30_000
# A dead letter is larger than what it keeps, which may have come compressed.
MAX_PUBLISHED, MAX_KEPT = 2 * 1024 * 1024, 1024 * 1024


@dataclass(frozen=True)
class Topic:
    """One topic of the contract; `contracts.topics` holds the table."""

    name: str
    message: type[Protobuf]
    key: str
    owner: str
    readers: tuple[str, ...]
    partitions: int
    retention: timedelta
    cleanup: Literal["delete", "compact"] = "delete"
    max_bytes: int = 256 * 1024

    def config(self) -> dict[str, str]:
        """The broker's settings of this topic."""
        return {
            "cleanup.policy": self.cleanup,
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": str(int(self.retention.total_seconds() * 1000)),
            "max.message.bytes": str(self.max_bytes),
            "unclean.leader.election.enable": "false",
        }

    def dlq(self) -> "Topic":
        """Where this topic's poison goes; any bytes."""
        place = "reader/topic/partition/offset"
        return Topic(f"{self.name}.dlq", Protobuf, place, "its readers", (), 1, DLQ_RETENTION, max_bytes=MAX_PUBLISHED)


@dataclass(frozen=True)
class Record:
    """A record to be published."""

    topic: str
    key: bytes
    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, topic: Topic, key: bytes, message: Protobuf, *, source: str, subject: str) -> "Record":
        """Wrap a message as a CloudEvent; it carries the current trace."""
        if not isinstance(message, topic.message):
            raise TypeError(f"{topic.name} carries {topic.message.__name__}, not {type(message).__name__}")
        headers = {
            "ce_specversion": "1.0",
            "ce_id": str(uuid7()),
            "ce_source": f"/sightline/{source}",
            "ce_type": message.DESCRIPTOR.full_name,
            "ce_time": datetime.now(UTC).isoformat(),
            "ce_subject": subject,
            "content-type": "application/protobuf",
        }
        if parent := telemetry.traceparent():
            headers[telemetry.TRACEPARENT] = parent
        return cls(topic.name, key, message.SerializeToString(deterministic=True), headers)


class _Headers(Mapping[str, bytes]):
    """A record's headers, taken apart only if somebody looks: most readers of very many records never do."""

    __slots__ = ("_found", "_message")

    def __init__(self, message: Message) -> None:
        self._message = message
        self._found: dict[str, bytes] | None = None

    def _all(self) -> dict[str, bytes]:
        if self._found is None:
            headers: Any = self._message.headers() or []
            self._found = {name: _as_bytes(value) for name, value in headers}
        return self._found

    def __getitem__(self, name: str) -> bytes:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


class Received(NamedTuple):
    """A record as read."""

    topic: str
    partition: int
    offset: int
    time: datetime
    key: bytes
    value: bytes
    headers: Mapping[str, bytes]

    @classmethod
    def of(cls, message: Message) -> "Received":
        """Copy what we use out of librdkafka's message."""
        _, milliseconds = message.timestamp()
        return cls(
            message.topic() or "",
            message.partition() or 0,
            message.offset() or 0,
            datetime.fromtimestamp(max(milliseconds, 0) / 1000, UTC),
            _as_bytes(message.key()),
            _as_bytes(message.value()),
            _Headers(message),
        )

    @property
    def traceparent(self) -> str | None:
        """The publisher's trace context."""
        return self.headers.get(telemetry.TRACEPARENT, b"").decode("ascii", "replace") or None


def _as_bytes(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""


def parse(kind: type[M], value: bytes) -> M:
    """Parse a record's value; PoisonError if it is not such a message."""
    try:
        return kind.FromString(value)
    except Exception as error:
        raise PoisonError(f"not a {kind.DESCRIPTOR.full_name}: {error}") from error


def _settle(delivered: "asyncio.Future[None]", error: Exception | None) -> None:
    if delivered.done():
        return
    if error is None:
        delivered.set_result(None)
    else:
        delivered.set_exception(error)


def client_config(settings: KafkaSettings) -> dict[str, Any]:
    """What every librdkafka client here has in common; short reconnects, because somebody waits."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap,
        "security.protocol": settings.security,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 500,
        "socket.keepalive.enable": True,
        "socket.nagle.disable": True,
        # New partitions are noticed within this time, by groups and by producers; `reader.tail` looks by itself.
        "topic.metadata.refresh.interval.ms": METADATA_MS,
        "log_level": 2,  # what matters comes through error_cb
        "error_cb": lambda error: telemetry.log().warning("kafka client", error=str(error)),
    }
    if settings.ca_file:
        config["ssl.ca.location"] = str(settings.ca_file)
    if settings.username and settings.password_file:
        config |= {
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": settings.username,
            "sasl.password": settings.password_file.read_text().strip(),
        }
    return config


class Publisher:
    """A producer for few, precious records: every one is acknowledged by all in-sync replicas, none waits for company."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._config = client_config(settings) | {
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 0,
            "delivery.timeout.ms": 5000,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 100_000,
            "message.max.bytes": MAX_PUBLISHED,
        }
        self._producer = Producer(self._config)
        self._waiting: set[asyncio.Future[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="kafka-publisher", daemon=True)
        self._thread.start()

    async def publish(self, record: Record) -> None:
        """Return once the record is durable; KafkaException or Unavailable otherwise, after a bounded time."""
        loop = self._loop = asyncio.get_running_loop()
        delivered: asyncio.Future[None] = loop.create_future()

        def on_delivery(error: KafkaError | None, _: Message) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone at shutdown
                loop.call_soon_threadsafe(_settle, delivered, KafkaException(error) if error else None)

        headers: list[tuple[str, str | bytes | None]] = list(record.headers.items())
        producer = self._producer
        try:
            producer.produce(record.topic, record.value, record.key, headers=headers, on_delivery=on_delivery)
        except BufferError as error:
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "the publishing queue is full") from error
        except KafkaException as error:
            self._renew_if_fatal(producer, error)
            raise
        self._waiting.add(delivered)
        try:
            await asyncio.wait_for(delivered, _DELIVERY_S)
        except KafkaException as error:
            self._renew_if_fatal(producer, error)
            raise
        finally:
            self._waiting.discard(delivered)

    def _renew_if_fatal(self, producer: Producer, error: KafkaException) -> None:
        """An idempotent producer does not recover from a fatal error by itself: what waits on it fails, a new one begins."""
        if producer is not self._producer or not error.args[0].fatal():
            return
        telemetry.log().error("the producer failed for good and is replaced", error=str(error))
        self._producer = Producer(self._config)
        for delivered in list(self._waiting):
            _settle(delivered, Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "the producer was replaced"))

    def _poll(self) -> None:
        while not self._stopping.is_set():
            producer = self._producer
            try:
                producer.poll(0.1)
            except KafkaException as error:
                if self._loop is not None:
                    with contextlib.suppress(RuntimeError):
                        self._loop.call_soon_threadsafe(self._renew_if_fatal, producer, error)
                self._stopping.wait(0.1)

    async def close(self) -> None:
        """Give what is under way a last chance; what fails stays in the outbox."""
        await asyncio.to_thread(self._producer.flush, 2.0)
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, 2.0)
        del self._producer  # it would go on looking for its brokers


class _Delivery:
    """How much of a batch the brokers have not answered for; told by the polling thread."""

    def __init__(self, records: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = records
        self._error: KafkaError | None = None
        self.done: asyncio.Future[None] = self._loop.create_future()

    def __call__(self, error: KafkaError | None, _: Message) -> None:
        """Called once for each record."""
        self._left -= 1
        self._error = self._error or error
        if not self._left:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_settle, self.done, KafkaException(self._error) if self._error else None)


class BulkPublisher:
    """A producer for very many records, which wait for company; a batch's answer means that all of it is durable."""

    def __init__(self, settings: KafkaSettings, topic: Topic, source: str) -> None:
        config = client_config(settings) | {
            "acks": "all",
            "linger.ms": 5,
            "compression.type": "lz4",
            "delivery.timeout.ms": 5000,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 200_000,
        }
        self._producer, self._topic = Producer(config), topic
        self._headers = [
            ("ce_specversion", "1.0"), ("ce_source", f"/sightline/{source}"), ("ce_type", topic.message.DESCRIPTOR.full_name),
            ("content-type", "application/protobuf"),
        ]  # fmt: skip
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="kafka-bulk-publisher", daemon=True)
        self._thread.start()

    async def publish(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Return once all of these (key, value) are durable; Unavailable otherwise, after a bounded time: some may be."""
        if not records:
            return
        batch, delivery = str(uuid7()), _Delivery(len(records))
        try:
            for number, (key, value) in enumerate(records):
                headers: Any = [*self._headers, ("ce_id", f"{batch}/{number}")]
                self._producer.produce(self._topic.name, value, key, headers=headers, on_delivery=delivery)
            await asyncio.wait_for(delivery.done, _DELIVERY_S)
        except (BufferError, KafkaException, TimeoutError) as error:
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, f"the batch is not durable: {error}") from error

    def _poll(self) -> None:
        while not self._stopping.is_set():
            self._producer.poll(0.1)

    async def close(self) -> None:
        """Give what is under way a last chance."""
        await asyncio.to_thread(self._producer.flush, 2.0)
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, 2.0)
        del self._producer


# Wrong here, and records are lost or mis-joined; any other difference is only worth a warning.
_VITAL = ("cleanup.policy", "message.timestamp.type")


class Severity(Enum):
    """How bad it is that a topic differs from the table."""

    BLOCKS = "nobody can read it, or what is read would be wrong"
    KEYS_MOVE = "records of one key are in two partitions: a join of two topics goes wrong, whatever reads one by one goes on"
    MINOR = "worth a look"


async def check_topics(settings: KafkaSettings, topics: Sequence[Topic], *, any_partitions: bool = False) -> None:
    """Compare the broker's topics, dead-letter topics included, with the table; Misconfigured tells the fix.

    With `any_partitions` a wrong number of them is only told: who reads records one by one can go on, who joins topics cannot.
    """
    wanted = [t for topic in topics for t in (topic, topic.dlq())]
    problems = await asyncio.to_thread(lambda: list(topic_differences(AdminClient(client_config(settings)), wanted)))
    fatal = {Severity.BLOCKS} if any_partitions else {Severity.BLOCKS, Severity.KEYS_MOVE}
    for severity, text in problems:
        if severity not in fatal:
            (telemetry.log().warning if severity == Severity.MINOR else telemetry.log().error)("topic differs", difference=text)
    if fatal_ones := [text for severity, text in problems if severity in fatal]:
        raise Misconfigured("topics are not as the table in contracts/topics.py says:\n  " + "\n  ".join(fatal_ones))


def topic_differences(admin: AdminClient, wanted: Sequence[Topic]) -> Iterator[tuple[Severity, str]]:
    """Every difference between the brokers' topics and the table; blocks."""
    there = admin.list_topics(timeout=5).topics
    present = []
    for topic in wanted:
        if topic.name not in there:
            text = f"{topic.name} is missing: create it with {topic.partitions} partitions, or run `sightline topics create`"
            yield Severity.BLOCKS, text
            continue
        if (count := len(there[topic.name].partitions)) != topic.partitions:
            yield Severity.KEYS_MOVE, f"{topic.name} has {count} partitions instead of {topic.partitions}: recreate it; keys would move"
        present.append(topic)
    asked = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic.name) for topic in present]) if present else {}
    for resource, answer in asked.items():
        found = answer.result(timeout=5)
        topic = next(t for t in present if t.name == resource.name)
        for name, value in topic.config().items():
            if (is_value := found[name].value) != value:
                text = f"{topic.name}: {name} is {is_value} instead of {value}: alter the topic's config"
                yield Severity.BLOCKS if name in _VITAL else Severity.MINOR, text
