"""Positions inside one process: a backlog in Kafka is taken by a bare loop, by the map with watchers, and by the writer of tracks."""

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from chassis.audit import Audit
from chassis.bus import Publisher, Received, client_config
from chassis.clock import SystemClock
from chassis.db import Database
from chassis.identity import Caller, Machine, Person
from chassis.reader import FeedReader
from chassis.settings import DatabaseSettings, KafkaSettings
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition
from contracts.topics import AUDIT_RECORD, LOCATION_POSITION
from sightline.location.v1.position_pb2 import Position, Source

from bench.measure import seconds_used
from services.location.events import PositionPublisher, device_key, from_position, to_position
from services.location.model import Directory, Fix, Holder, Interval, Privacy, Taken
from services.location.picture.events import PositionReader
from services.location.picture.model import Picture
from services.location.picture.service import PictureService
from services.location.service import LocationService
from services.location.store import Store
from tools.local.stack import Stack
from tools.roster import AGENCY
from tools.simulator.city import Walker, ravensford, walkers

_TURN_S, _BATCH, _HISTORY_BATCH = 0.25, 1000, 5000
_WALKS_MPS = 1.5


@dataclass(frozen=True)
class Rate:
    """One way to take a backlog. `microseconds` of processor time for each position, in this process and in PostgreSQL."""

    name: str
    units: int
    positions: int
    per_second: float
    microseconds: float
    database_microseconds: float = 0.0

    @property
    def per_core_second(self) -> float:
        """Positions for each second of one core, PostgreSQL's included."""
        return 1e6 / (self.microseconds + self.database_microseconds)


def officer(number: int) -> str:
    """Name of an officer of the bench."""
    return f"bench-{number:06d}"


def walking(units: int) -> list[Walker]:
    """So many who walk through the city, always the same."""
    return list(walkers(ravensford(), units, _WALKS_MPS, random.Random(units)))  # noqa: S311


def moves(units: int, count: int, began: float) -> Iterator[Taken]:
    """So many positions: all units after each other, again and again, each time a second later and some steps on."""
    going = walking(units)
    for number in range(count):
        which, at = number % units, began + number // units
        latitude, longitude = going[which].go(1.0)
        fix = Fix(latitude, longitude, 8.0, _WALKS_MPS, going[which].course_deg, at)
        holder = Holder((officer(which),), f"unit-{which // 2}", "", "")
        yield Taken(AGENCY, Source.SOURCE_RADIO, f"radio-{which:06d}", holder, fix, at, at, False)


def directory_of(units: int) -> Directory:
    """All of them on duty, each with a radio and a camera."""
    directory = Directory(7200)
    for n in range(units):
        interval = Interval(0.0, float("inf"), officer(n), f"unit-{n // 2}", (f"cam-{n:06d}",), "")
        directory.learn_duty(f"radio-{n:06d}", AGENCY, 1, [interval], 0.0)
    return directory


class Positions:
    """A stack's broker and database, and what is measured on them."""

    def __init__(self, stack: Stack, database_url: str) -> None:
        self._kafka = KafkaSettings(bootstrap=stack.kafka, security="PLAINTEXT")
        self._url, self._filled = database_url, datetime.now(UTC)
        self._postgres = next((each.pid for each in stack.processes if each.name == "postgres"), 0)

    def fill(self, units: int, count: int) -> None:
        """Put a backlog into the topic."""
        self._filled = datetime.now(UTC)
        producer = Producer(client_config(self._kafka) | {"linger.ms": 20, "compression.type": "lz4", "acks": "all"})
        for taken in moves(units, count, time.time()):
            key = device_key(taken.agency_id, taken.source, taken.device_id)
            while True:
                try:
                    producer.produce(LOCATION_POSITION.name, to_position(taken).SerializeToString(), key)
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.flush()

    def _since(self) -> timedelta:
        return datetime.now(UTC) - self._filled + timedelta(milliseconds=50)

    def _begin(self) -> tuple[Consumer, int]:
        """A consumer at the beginning of the backlog, and how long that is."""
        consumer = Consumer(client_config(self._kafka) | {"group.id": "bench", "enable.auto.commit": False})
        wanted = int(self._filled.timestamp() * 1000)
        asked = [TopicPartition(LOCATION_POSITION.name, p, wanted) for p in range(LOCATION_POSITION.partitions)]
        start = consumer.offsets_for_times(asked, timeout=10)
        ends = [consumer.get_watermark_offsets(p, timeout=10)[1] for p in start]
        found = [
            TopicPartition(p.topic, p.partition, end if p.offset == OFFSET_END else p.offset) for p, end in zip(start, ends, strict=True)
        ]
        consumer.assign(found)
        return consumer, sum(end - p.offset for p, end in zip(found, ends, strict=True))

    def floor(self, units: int) -> Rate:
        """A bare loop: consume, parse, keep the newest."""
        consumer, count = self._begin()
        latest: dict[bytes, Position] = {}
        seen, used, began = 0, time.process_time(), time.monotonic()
        while seen < count:
            for message in consumer.consume(_BATCH, 1.0):
                latest[message.key() or b""] = Position.FromString(message.value() or b"")
                seen += 1
        rate = self._rate("bare loop: parse, keep the newest", units, count, began, used)
        consumer.close()
        return rate

    async def map(self, units: int, count: int, watchers: int) -> Rate:
        """The map of a replica, with people who watch everything."""
        directory, clock = directory_of(units), SystemClock()
        async with self._database() as (database, publisher):
            picture = Picture(directory, lambda _: Privacy())
            audit = Audit("location", AUDIT_RECORD, database, publisher, clock)
            service = PictureService(database, Store(), picture, device_key, audit, clock)
            feed = FeedReader("bench-map", PositionReader.topics, PositionReader(service), self._kafka, publisher)
            caller = Caller(Machine("t", AGENCY, "console", "bench"), Person("eve", AGENCY, frozenset({"supervisor"})))

            async def watch() -> None:
                async for _ in service.watch(caller, None):
                    await asyncio.sleep(0)

            async def turns() -> None:
                while True:
                    await service.turn()
                    await asyncio.sleep(_TURN_S)

            gc.collect()
            gc.freeze()
            tasks = [asyncio.create_task(work) for work in (turns(), *(watch() for _ in range(watchers)))]
            await asyncio.sleep(0.1)
            used, began = time.process_time(), time.monotonic()
            reading = asyncio.create_task(feed.tail(self._since()))
            await feed.caught_up.wait()
            await service.turn()
            rate = self._rate(f"the map, {watchers} watchers", units, count, began, used)
            if len(picture.units) != units:
                raise SystemExit(f"the map has {len(picture.units)} of {units} units")
            for task in (reading, *tasks):
                task.cancel()
            await asyncio.gather(reading, *tasks, return_exceptions=True)
            gc.unfreeze()
        return rate

    async def tracks(self, units: int, count: int) -> Rate:
        """The writer of tracks, as it runs in a service of its own."""
        async with self._database() as (database, publisher):
            directory, clock = Directory(7200), SystemClock()
            audit = Audit("location", AUDIT_RECORD, database, publisher, clock)
            nowhere = PositionPublisher(publisher)  # type: ignore[arg-type]
            service = LocationService(database, Store(), directory, nowhere, audit, clock, 7200)
            consumer, length = self._begin()
            seen, used, began, before = 0, time.process_time(), time.monotonic(), self._database_seconds()
            while seen < length:
                batch = [Received.of(message) for message in consumer.consume(_HISTORY_BATCH, 1.0)]
                seen += len(batch)
                if batch:
                    await service.keep([from_position(Position.FromString(received.value)) for received in batch])
            rate = self._rate("tracks into PostgreSQL", units, count, began, used, self._database_seconds() - before)
            consumer.close()
        with psycopg.connect(self._url) as connection:
            kept = connection.execute("SELECT count(*) FROM location.position").fetchone()
            if kept is None or kept[0] != count:
                raise SystemExit(f"{kept} of {count} points are there")
            connection.execute("TRUNCATE location.position")
        return rate

    @contextlib.asynccontextmanager
    async def _database(self) -> AsyncIterator[tuple[Database, Publisher]]:
        publisher = Publisher(self._kafka)
        database = Database(DatabaseSettings(url=self._url), "location", publisher)
        await database.open()
        try:
            yield database, publisher
        finally:
            await database.close()
            await publisher.close()

    def _database_seconds(self) -> float:
        return seconds_used(self._postgres) if self._postgres else 0.0

    @staticmethod
    def _rate(name: str, units: int, count: int, began: float, used: float, database_s: float = 0.0) -> Rate:
        took, cpu = time.monotonic() - began, time.process_time() - used
        return Rate(name, units, count, count / took, 1e6 * cpu / count, 1e6 * database_s / count)
