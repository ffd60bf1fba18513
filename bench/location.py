"""`python -m bench.location`: what positions cost, how old they are at a watcher, and what the emergency path feels of them."""

import asyncio
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from chassis.bus import client_config
from chassis.clock import seconds_of, set_seconds
from chassis.db import migrate
from chassis.run import tune_garbage_collector
from chassis.settings import KafkaSettings
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table
from sightline.location.v1 import map_service_pb2 as map_pb
from testkit.backing import make_database

from bench.load import put_on_duty, reports
from bench.measure import COMMANDED, Line, line, seconds_used
from bench.path import Path as PressPath
from bench.path import Pressed
from bench.positions import Positions, Rate, walking
from tools.desk import Desk
from tools.local import stack as local
from tools.local.stack import ROOT, Stack, process_named
from tools.roster import AGENCY
from tools.simulator.mover import Reporter
from tools.world import until

RESULTS = Path(__file__).parent / "results"
_BATCH, _DOORS, _WARM_S, _EACH_AT_LEAST = 250, 4, 4.0, 10
_KNOWN_S = 300.0
_PRESS_RATE, _USUAL_MS, _SHIFT_TURNS, _PRESS_TURNS = 5.0, 200.0, 15, 3
_PRESS_SERVICES = ("registry", "emergency", "joiner", "streams")
out, err = Console(width=130), Console(stderr=True)


@dataclass(frozen=True)
class Live:
    """A running service with one watcher: ages at the watcher, and processor time of the service for each unit and second."""

    units: int
    every_s: float
    per_second: float
    age: Line
    cores: float
    microseconds_per_position: float


@dataclass(frozen=True)
class Presses:
    """Presses with and without positions beside them; processor milliseconds are of the services that a press goes through.

    `cores`: what each part of the stack used of the processors.
    """

    name: str
    commanded: Line
    milliseconds_per_press: float
    kept_per_second: float
    cores: dict[str, float]


@dataclass
class Result:
    """One run."""

    at: str
    machine: str
    backlog: list[Rate] = field(default_factory=list)
    live: list[Live] = field(default_factory=list)
    presses: list[Presses] = field(default_factory=list)


async def _backlogs(result: Result, stack: Stack, sizes: Sequence[int], positions: int, say: Any) -> None:
    """Kafka's backlog into the newest fixes, to watchers, and into tracks."""
    url = make_database(stack.database, "sightline_bench")
    migrate(url, "location", ROOT / "services" / "location" / "migrations")
    bench = Positions(stack, url)
    for units in sizes:
        count = max(positions, _EACH_AT_LEAST * units)  # that units appear is rare; that they move is what costs
        say(f"a backlog of {count:,} positions of {units:,} units")
        await asyncio.to_thread(bench.fill, units, count)
        result.backlog.append(await asyncio.to_thread(bench.floor, units))
        for watchers in (0, 10, 100) if units == sorted(sizes)[len(sizes) // 2] else (10,):
            result.backlog.append(await bench.map(units, count, watchers))
        result.backlog.append(await bench.tracks(units, count))


class Watch:
    """Somebody who watches everything, and the ages of what comes."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.ages: list[float] = []
        self.seen: set[str] = set()

    async def run(self) -> None:
        """Watch, until cancelled."""
        call = self._desk.map.WatchArea(map_pb.WatchAreaRequest(), metadata=self._desk.metadata(), wait_for_ready=True)
        async for response in call:
            now = time.time()
            for cell in response.cells:
                for unit in cell.units:
                    self.ages.append(1000 * (now - seconds_of(unit.fix.fixed_at)))
                    self.seen.add(unit.id)


async def _live(stack: Stack, units: int, every_s: float, seconds: float) -> Live:
    """All units report every so many seconds through the service's own door; one watcher sees everything."""
    config = client_config(KafkaSettings(bootstrap=stack.kafka, security="PLAINTEXT")) | {"partitioner": "murmur2_random"}
    await asyncio.to_thread(put_on_duty, Producer(config | {"linger.ms": 20}), units)
    going, messages, taken = walking(units), reports(units), 0
    pid = process_named(stack, "location-a").pid

    async def report(door: Reporter, batch: Sequence[int]) -> int:
        for number in batch:
            fix = messages[number].fix
            fix.latitude, fix.longitude = going[number].go(every_s)
            set_seconds(fix.fixed_at, time.time())
        return (await door.surely([messages[number] for number in batch])).taken

    async def keep_reporting(door: Reporter, own: Sequence[int]) -> None:
        nonlocal taken
        batches = [own[start : start + _BATCH] for start in range(0, len(own), _BATCH)]
        began, loop = loop_time(), asyncio.get_running_loop()
        for turn in itertools.count():
            await asyncio.sleep(max(began + turn * every_s / len(batches) - loop.time(), 0.0))
            some = await report(door, batches[turn % len(batches)])
            taken += some

    async with AsyncExitStack() as resources:
        desk = await resources.enter_async_context(Desk(stack, "supervisor"))
        rpc = stack.ca.rpc(AGENCY, "avl", "bench")
        doors = [await resources.enter_async_context(Reporter(rpc, stack.targets["location"])) for _ in range(_DOORS)]

        async def known() -> bool:
            return await report(doors[0], [units - 1]) == 1

        await until(known, "the officers to be known", _KNOWN_S)
        watch = Watch(desk)
        tasks = [asyncio.create_task(watch.run())]
        tasks += [asyncio.create_task(keep_reporting(door, range(n, units, _DOORS))) for n, door in enumerate(doors)]
        await asyncio.sleep(_WARM_S)
        watch.ages.clear()
        taken, used, began = 0, seconds_used(pid), loop_time()
        await asyncio.sleep(seconds)
        took, cpu = loop_time() - began, seconds_used(pid) - used
        for task in tasks:
            task.cancel()
        for failed in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(failed, asyncio.CancelledError):
                raise SystemExit(f"the load has ended before its time: {failed!r}")
    age = line(f"{units:,} units, each every {every_s:g} s", watch.ages)
    return Live(units, every_s, taken / took, age, cpu / took, 1e6 * cpu / taken)


def loop_time() -> float:
    """Seconds of the loop's clock."""
    return asyncio.get_running_loop().time()


def _kept(stack: Stack) -> int:
    """Points of tracks that are there."""
    with psycopg.connect(stack.database) as connection:
        row = connection.execute("SELECT count(*) FROM location.position").fetchone()
    return int(row[0]) if row else 0


async def _at_rest(stack: Stack) -> None:
    """Wait until no more points come."""
    before = -1
    while (now := await asyncio.to_thread(_kept, stack)) != before:
        before = now
        await asyncio.sleep(_WARM_S)


@contextmanager
def _positions(stack: Stack, rate: float) -> Iterator[Callable[[float], None]]:
    """A process that has put its officers on duty; for so many seconds as it is told it reports at a rate, through Kafka."""
    command = [sys.executable, "-m", "bench.load", stack.kafka, "--units", str(int(rate)), "--rate", str(rate)]
    pipe = subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": "libs"}
    # In a session of its own, as it gives way to all others.
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as load:  # noqa: S603
        if load.stdout is None or load.stdin is None or load.stdout.readline() != "on duty\n":
            raise SystemExit("the load has not begun")
        try:
            yield partial(print, file=load.stdin, flush=True)
            if load.poll() is not None:
                raise SystemExit("the load has ended before its time")
        finally:
            load.kill()


@dataclass
class _Side:
    """What has been measured so far, without positions or with them; `used` in milliseconds of processor time."""

    made: list[Pressed] = field(default_factory=list)
    used: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    kept: int = 0


async def _presses(result: Result, stack: Stack, rate: float, seconds: float, say: Any) -> None:
    """Presses at a steady rate, without positions and with them, by turns: so what else the machine does meets both."""

    def used() -> Counter[str]:
        found: Counter[str] = Counter()
        for each in stack.processes:
            found[each.name.removesuffix("-a").removesuffix("-b")] += round(1000 * seconds_used(each.pid))
        return found

    async with PressPath(stack, 60, say) as path:

        async def measure(side: _Side) -> None:
            await path.press(_WARM_S, _PRESS_RATE)
            before, kept, began = used(), await asyncio.to_thread(_kept, stack), loop_time()
            side.made += await path.press(seconds, _PRESS_RATE)
            side.seconds += loop_time() - began
            side.kept += await asyncio.to_thread(_kept, stack) - kept
            side.used += used() - before

        without, beside = _Side(), _Side()
        with _positions(stack, rate) as report:
            for _ in range(_SHIFT_TURNS):  # thousands who come on duty at once keep the lanes busy; that is not what is asked here
                if _commanded(path, await path.press(_WARM_S, _PRESS_RATE)).p50 < _USUAL_MS:
                    break
            for turn in range(1, _PRESS_TURNS + 1):
                say(f"presses without positions, turn {turn} of {_PRESS_TURNS}")
                await measure(without)
                say(f"presses with positions, turn {turn} of {_PRESS_TURNS}")
                report(_WARM_S + seconds + 1)
                await measure(beside)
                say("waiting until all that was reported is kept")
                await _at_rest(stack)
        for name, side in (("without positions", without), (f"with {rate:,.0f} positions/s", beside)):
            cpu_ms = sum(side.used[service] for service in _PRESS_SERVICES) / len(side.made)
            cores = {part: spent / 1000 / side.seconds for part, spent in side.used.most_common()}
            result.presses.append(Presses(name, _commanded(path, side.made), cpu_ms, side.kept / side.seconds, cores))


def _commanded(path: PressPath, made: list[Pressed]) -> Line:
    return next(each for each in path.lines(made) if each.name == COMMANDED)


async def run(result: Result, data: Path, sizes: Sequence[int], positions: int, rate: float, seconds: float) -> None:
    """All of it, one after the other."""
    tune_garbage_collector()
    with err.status("starting") as status:
        stack = await asyncio.to_thread(local.up, data, status.update, traced=False)
        await _presses(result, stack, rate, seconds, status.update)
        for units, every_s in ((1000, 1.0), (10_000, 1.0), (100_000, 20.0)):
            status.update("waiting until all that was reported is kept")
            await _at_rest(stack)
            status.update(f"{units:,} units report every {every_s:g} s")
            result.live.append(await _live(stack, units, every_s, max(seconds, every_s)))
        await _backlogs(result, stack, sizes, positions, status.update)


def show(result: Result) -> None:
    """Print."""
    table = Table("a backlog in Kafka", "units", "positions/s", "µs each", "µs in PostgreSQL", "per core and second", title_justify="left")
    for rate in result.backlog:
        table.add_row(
            rate.name, f"{rate.units:,}", f"{rate.per_second:,.0f}", f"{rate.microseconds:.1f}", f"{rate.database_microseconds:.1f}",
            f"{rate.per_core_second:,.0f}",
        )  # fmt: skip
    out.print(table)
    table = Table("age at a watcher, ms", "positions/s", "p50", "p99", "max", "cores", "µs a position", title_justify="left")
    for live in result.live:
        age = live.age
        table.add_row(
            age.name, f"{live.per_second:,.0f}", f"{age.p50:.0f}", f"{age.p99:.0f}", f"{age.max:.0f}", f"{live.cores:.2f}",
            f"{live.microseconds_per_position:.0f}",
        )  # fmt: skip
    out.print(table)
    table = Table(
        "press → command, ms",
        "presses",
        "p50",
        "p99",
        "max",
        "CPU ms a press",
        "tracks/s",
        "p50, times",
        "CPU, times",
        title_justify="left",
    )
    for presses in result.presses:
        one, first = presses.commanded, result.presses[0]
        table.add_row(
            presses.name, str(one.count), f"{one.p50:.1f}", f"{one.p99:.1f}", f"{one.max:.1f}", f"{presses.milliseconds_per_press:.1f}",
            f"{presses.kept_per_second:,.0f}",
            f"{one.p50 / first.commanded.p50:.2f}", f"{presses.milliseconds_per_press / first.milliseconds_per_press:.2f}",
        )  # fmt: skip
    out.print(table)
    table = Table("cores used", *(presses.name for presses in result.presses), title_justify="left")
    for part in result.presses[-1].cores if result.presses else ():
        table.add_row(part, *(f"{presses.cores.get(part, 0.0):.2f}" for presses in result.presses))
    out.print(table)


def main(
    units: Annotated[list[int] | None, typer.Option(help="Sizes of the force whose backlog is taken.")] = None,
    positions: Annotated[int, typer.Option(help="Positions of each backlog.")] = 300_000,
    rate: Annotated[float, typer.Option(help="Positions a second beside the presses.")] = 20_000,
    seconds: Annotated[float, typer.Option(help="Length of each run.")] = 20,
) -> None:
    """Measure positions on this machine; takes about nine minutes."""
    now, data = datetime.now(UTC).isoformat(timespec="seconds"), Path(tempfile.mkdtemp(prefix="sightline-bench-"))
    result = Result(now, f"{os.cpu_count()} cores, {platform.machine()}")
    try:
        asyncio.run(run(result, data, units or [1000, 10_000, 100_000], positions, rate, seconds))
    finally:
        local.down(data, lambda text: None, purge=True)
    show(result)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "location.json").write_text(json.dumps(asdict(result), indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
