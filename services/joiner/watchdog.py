"""Ends a lane that gets nowhere. Faust workers are known to stop reading without a word, and to hang while they recover a table."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping

from chassis import telemetry
from chassis.bus import client_config
from chassis.settings import KafkaSettings
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

_LOOK_EVERY_S = 1.0
STUCK = 70  # exit status: whoever supervises the process starts it again
Place = tuple[str, int]


class Progress:
    """How far the lane has read each partition, and since when it has not moved although there is more."""

    def __init__(self) -> None:
        self._read: dict[Place, int] = {}
        self._waiting: dict[Place, tuple[int, float]] = {}
        self._ends: Mapping[Place, int] = {}

    def passed(self, topic: str, partition: int, offset: int) -> None:
        """The record at this offset has been dealt with."""
        self._read[topic, partition] = offset + 1

    def is_current(self, topic: str, partition: int) -> bool:
        """Whether all that lay in the partition at the last look has been read; False while the brokers are away."""
        place = topic, partition
        return place in self._ends and self._read.get(place, -1) >= self._ends[place]

    def stalled_s(self, ends: Mapping[Place, int], now: float) -> float:
        """Longest time in seconds that a partition has lain still with unread records; `ends` are the log's ends."""
        self.begin(ends)
        self._waiting = {place: since for place, since in self._waiting.items() if place in ends}
        for place, end in ends.items():
            read = self._read[place]
            if read >= end:
                self._waiting.pop(place, None)
            elif place not in self._waiting or self._waiting[place][0] != read:
                self._waiting[place] = read, now
        return max((now - since for _, since in self._waiting.values()), default=0.0)

    def begin(self, ends: Mapping[Place, int]) -> None:
        """What lies before our first look is not ours to judge."""
        self._ends = ends
        for place, end in ends.items():
            self._read.setdefault(place, end)

    def forgive(self) -> None:
        """Start counting anew: the brokers were away, nobody could have read."""
        self._waiting.clear()
        self._ends = {}


class Watchdog:
    """A thread of its own, so that a blocked event loop is noticed too."""

    def __init__(
        self, kafka: KafkaSettings, topics: Mapping[str, int], stall_s: float, recovery_s: float, start_over: Callable[[], None]
    ) -> None:
        self.progress, self.recovered = Progress(), threading.Event()
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        self._asked = {TopicPartition(topic, number): latest for topic, count in topics.items() for number in range(count)}
        self._kafka, self._stall_s, self._recovery_s, self._start_over = kafka, stall_s, recovery_s, start_over

    def start(self) -> None:
        """Watch until the process ends."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        admin, recovering, looked = AdminClient(client_config(self._kafka)), 0.0, time.monotonic()
        while True:
            time.sleep(min(_LOOK_EVERY_S, self._recovery_s))
            ends = self._ends(admin)
            since, looked = time.monotonic() - looked, time.monotonic()
            if ends is None:
                self.progress.forgive()
            elif self.recovered.is_set():
                if (stalled := self.progress.stalled_s(ends, time.monotonic())) > self._stall_s:
                    self._end(f"no progress for {stalled:.0f} s although there is more to read")
            else:
                self.progress.begin(ends)
                recovering += since
                if recovering > self._recovery_s:
                    try:
                        self._start_over()
                    except OSError as error:
                        telemetry.log().error("the next process will not start over", error=str(error))
                    self._end(f"the table has not recovered in {recovering:.0f} s; the next process reads its source anew")

    def _ends(self, admin: AdminClient) -> dict[Place, int] | None:
        """End of each partition that has a leader; None if the brokers tell of none."""
        ends: dict[Place, int] = {}
        with contextlib.suppress(KafkaException):
            for place, answer in admin.list_offsets(self._asked, request_timeout=3).items():
                with contextlib.suppress(KafkaException, TimeoutError):
                    ends[place.topic, place.partition] = answer.result(5).offset
        return ends or None

    def _end(self, why: str) -> None:
        telemetry.log().error("the lane ends itself", because=why)
        os._exit(STUCK)
