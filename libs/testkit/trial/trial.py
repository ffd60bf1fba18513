"""One trial: officers on shift, presses at a rate, faults one after the other, records delivered again, and then the check."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chassis.bus import client_config
from chassis.settings import KafkaSettings
from confluent_kafka import Consumer, Producer
from contracts.topics import ACTIVATION_DECISION, ACTIVATION_RESULT, EMERGENCY_EVENT, REGISTRY_DUTY

from testkit.trial.checker import Violation, check
from testkit.trial.driver import Driver
from testkit.trial.evidence import Evidence, collect, deadlocks, unfinished, waiting
from testkit.trial.faults import Fault
from testkit.trial.journal import OK, Journal
from testkit.trial.rig import Rig
from tools.roster import Member, check_out, member
from tools.world import World, until

_AGAIN = b"delivered-again"
_FIRST_UNIT = 20_000


@dataclass
class Report:
    """What a trial rests on, and what it found."""

    seed: int
    folder: Path
    presses: int = 0
    accepted: int = 0
    emergencies: int = 0
    starts: int = 0
    unanswered: int = 0
    faults: list[str] = field(default_factory=list)
    deaths: dict[str, int] = field(default_factory=dict)
    delivered: int = 0
    delivered_again: int = 0
    rejected: int = 0
    dead_letters: int = 0
    by_reconcile: int = 0
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        share = 100 * self.delivered_again / max(1, self.delivered)
        return [
            f"seed {self.seed}: {self.presses} presses, {self.accepted} accepted, {self.unanswered} without an answer,"
            f" in {self.seconds:.0f} s",
            f"{self.emergencies} emergencies, {self.starts} times a camera acted",
            f"{len(self.faults)} faults, {sum(self.deaths.values())} processes died;"
            f" {self.delivered_again} of {self.delivered} records delivered again ({share:.1f} %)",
            f"{self.by_reconcile} decisions by reconcile, {self.rejected} decisions not executed, {self.dead_letters} dead letters",
            *(f"VIOLATION {v.invariant}: {v.text}" for v in self.violations[:20]),
            f"{len(self.violations)} violations; journals in {self.folder}",
        ]


class Redelivery(threading.Thread):
    """Delivers a share of all records a second time, late, so that readers meet them twice and out of order."""

    def __init__(self, kafka: str, share: float, seed: int) -> None:
        super().__init__(name="redelivery", daemon=True)
        self._settings = KafkaSettings(bootstrap=kafka, security="PLAINTEXT")
        self._share, self._dice = share, random.Random(seed)  # noqa: S311 (a trial must be repeatable)
        self._ending = threading.Event()
        self.seen = self.again = 0

    def run(self) -> None:
        """Read, wait a little, write again."""
        config = client_config(self._settings)
        consumer = Consumer(config | {"group.id": f"redelivery-{self._dice.random()}", "auto.offset.reset": "latest"})
        producer = Producer(config | {"partitioner": "murmur2_random", "linger.ms": 0})
        consumer.subscribe([topic.name for topic in (EMERGENCY_EVENT, REGISTRY_DUTY, ACTIVATION_DECISION, ACTIVATION_RESULT)])
        late: list[tuple[float, str, Any, Any, Any]] = []
        while not self._ending.is_set():
            for message in consumer.consume(500, 0.1):
                headers: Any = message.headers() or []
                if message.error() is not None or any(name == _AGAIN.decode() for name, _ in headers):
                    continue
                self.seen += 1
                if self._dice.random() < self._share:
                    due = time.monotonic() + self._dice.choice([0, 0.05, 1, 5])
                    late.append((due, message.topic() or "", message.key(), message.value(), [*headers, (_AGAIN.decode(), b"1")]))
            for each in [each for each in late if each[0] <= time.monotonic()]:
                late.remove(each)
                _, topic, key, value, headers = each
                with contextlib.suppress(BufferError):
                    producer.produce(topic, value, key, headers=headers)
                    self.again += 1
            producer.poll(0)
        consumer.close()
        producer.flush(5)

    def stop(self) -> None:
        """End, and wait for it."""
        self._ending.set()
        self.join(20)


async def trial(
    rig: Rig,
    folder: Path,
    *,
    seed: int,
    presses: int,
    rate: float,
    officers: int = 60,
    faults: Sequence[Fault] = (),
    pause_s: float = 1.0,
    redelivered: float = 0.1,
    patience_s: float = 60.0,
    settled_within_s: float = 180.0,  # ten times, and more, what draining takes
    prepare: Callable[[World], None] = lambda world: None,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Run one. The faults come in the order given, one at a time, with a pause between; presses go on until the last is over."""
    report, began = Report(seed, folder), time.monotonic()
    agency = f"trial-{seed}-{int(time.time())}"
    timeline = Journal(folder / "faults.jsonl")
    timeline.note("trial", seed=seed, presses=presses, rate=rate, faults=[fault.name for fault in faults])
    members, spares = _people(seed, officers)
    locked = await asyncio.to_thread(deadlocks, rig.stack.database)
    async with World(rig.stack, agency) as world:
        progress("begin of shift")
        async with _at_work(world, members, spares, folder, seed, patience_s) as driver:
            prepare(world)
            again = Redelivery(rig.stack.kafka, redelivered, seed)
            again.start()
            dice = random.Random(seed)  # noqa: S311 (a trial must be repeatable)
            over = asyncio.Event()
            driving = asyncio.create_task(driver.run(presses, rate, over))
            try:
                await _break(rig, faults, dice, pause_s, report, timeline, progress)
                over.set()
                progress("waiting for the last presses")
                await driving
            finally:
                driving.cancel()
                await asyncio.to_thread(again.stop)
            progress("waiting until all is settled")
            await _settled(rig, agency, settled_within_s)
    timeline.close()
    progress("checking")
    report.delivered, report.delivered_again, report.deaths = again.seen, again.again, dict(rig.deaths)
    sum_up(report, await collect(rig.stack.kafka, rig.stack.database, agency, folder))
    # A server that was killed counts anew.
    if (more := await asyncio.to_thread(deadlocks, rig.stack.database) - locked) > 0:
        report.violations.append(Violation("I9", f"{more} deadlocks in the database"))
    report.seconds = time.monotonic() - began
    (folder / "report.txt").write_text("\n".join(report.lines()))
    return report


async def _break(
    rig: Rig, faults: Sequence[Fault], dice: random.Random, pause_s: float, report: Report, timeline: Journal,
    progress: Callable[[str], None],
) -> None:  # fmt: skip
    """One fault after the other, each written down before and after."""
    for fault in faults:
        await asyncio.sleep(pause_s)
        progress(f"{len(report.faults) + 1} of {len(faults)}: {fault.number} {fault.name}")
        timeline.note("begin", fault=fault.name)
        done = await fault.act(rig, dice)
        timeline.note("end", fault=fault.name, done=done)
        report.faults.append(f"{fault.number} {fault.name}: {done}")


def sum_up(report: Report, evidence: Evidence) -> None:
    """Check the evidence, and count what the verdict rests on."""
    report.violations = check(evidence)
    report.presses = sum(line["what"] == "intended" for line in evidence.presses)
    report.accepted = len({line["n"] for line in evidence.presses if line["what"] == "answered" and line["answer"] == OK})
    report.unanswered = report.presses - report.accepted
    report.emergencies, report.starts = len(evidence.rows["emergency"]), len(evidence.cameras)
    report.by_reconcile = sum(d["decided_by"] == "reconcile" for d in evidence.rows["decision"])
    report.rejected = len(evidence.rows["rejected"])
    report.dead_letters = len(evidence.dead_letters)


def _people(seed: int, officers: int) -> tuple[list[Member], dict[str, str]]:
    """Officers with numbers that no other trial on the same stack uses, and a second camera for each."""
    first = _FIRST_UNIT + seed % 1000 * 1000
    members = [member(f"t{seed}", first + n) for n in range(officers)]
    return members, {each.officer_id: f"{each.camera_ids[0]}-spare" for each in members}


@asynccontextmanager
async def _at_work(
    world: World, members: list[Member], spares: dict[str, str], folder: Path, seed: int, patience_s: float
) -> AsyncIterator[Driver]:
    """Everybody on shift with linked cameras, spare ones too, and the journals open."""
    presses, cameras = Journal(folder / "presses.jsonl"), Journal(folder / "cameras.jsonl")
    driver = Driver(world, members, spares, presses, cameras, seed, patience_s)
    await world.enrol([Member(m.officer_id, m.radio, (*m.camera_ids, spares[m.officer_id]), m.unit_id) for m in members])
    gate, dice = asyncio.Semaphore(8), random.Random(seed)  # noqa: S311 (a trial must be repeatable)

    async def begin(each: Member) -> None:
        async with gate:
            await check_out(world.admin, each)
            for camera_id in (*each.camera_ids, spares[each.officer_id]):
                camera = world.cameras[camera_id]
                camera.on_act = driver.acted
                # F38: some report twice, some take their time.
                camera.faults.duplicate_reports, camera.faults.slow_s = dice.random() < 0.2, dice.choice([0, 0, 0, 0.3])
                await world.power_on(camera)

    await asyncio.gather(*map(begin, members))
    try:
        yield driver
    finally:
        presses.close()
        cameras.close()


async def _settled(rig: Rig, agency: str, within_s: float) -> None:
    """Wait until nothing is on its way any more."""
    for name in rig.services:
        if not rig.holds_down(name):
            await rig.serves(name)

    async def quiet() -> bool:
        left = await asyncio.to_thread(waiting, rig.stack.database)
        return not any(left.values()) and not await asyncio.to_thread(unfinished, rig.stack.database, agency)

    with contextlib.suppress(TimeoutError):  # the checker says what is missing
        await until(quiet, "an empty outbox", within_s)
