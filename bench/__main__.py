"""`make bench`: everything in one run, printed side by side, and kept as JSON and as a chart in bench/results/."""

import asyncio
import json
import os
import platform
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pygal
import typer
from rich.console import Console
from rich.table import Table
from testkit.trial.rig import KAFKA, POSTGRES, Rig

from bench import floor
from bench import idle as quiet
from bench import joins as joining
from bench.measure import COMMANDED, Line, line
from bench.path import Path as PressPath
from bench.path import Pressed
from tools.local import stack as local

# A process that starts takes a core for some seconds: the kills are watched at a rate that leaves it one.
KILL_RATE = 5.0
RESULTS = Path(__file__).parent / "results"
out = Console(width=130)
err = Console(stderr=True)


@dataclass
class Result:
    """One run."""

    at: str
    machine: str
    rate: float
    slow_rate: float
    floor: list[Line] = field(default_factory=list)
    path: list[Line] = field(default_factory=list)
    floor_slow: list[Line] = field(default_factory=list)
    path_slow: list[Line] = field(default_factory=list)
    undisturbed: list[Line] = field(default_factory=list)
    lanes_killed: list[Line] = field(default_factory=list)
    gaps: list[tuple[str, float]] = field(default_factory=list)
    without_kafka: list[Line] = field(default_factory=list)
    without_lanes: list[Line] = field(default_factory=list)
    idle_officers: int = 0
    idle: list[quiet.Use] = field(default_factory=list)
    joins: joining.Rate | None = None
    joins_batched: joining.Rate | None = None


async def run(result: Result, data: Path, seconds: float, officers: int, gap_seconds: float, join_count: int, say: Any) -> None:
    """All measurements, one after the other, on a stack of its own."""
    say("starting Kafka and PostgreSQL")
    stack = await asyncio.to_thread(local.up, data, say, services=False, proxied=True, traced=False)
    say("the floor")
    result.floor_slow = await floor.measure(stack, int(seconds * result.slow_rate), result.slow_rate)
    result.floor = await floor.measure(stack, int(seconds * result.rate), result.rate)
    say("starting the services")
    await asyncio.to_thread(local.start_services, stack, say)
    async with Rig(stack) as rig:
        async with PressPath(stack, min(150, int(result.rate * 4)), say) as path:
            await path.press(3, result.slow_rate)  # connections are made, caches are warm
            say(f"the real path, {result.slow_rate:g} presses a second")
            result.path_slow = path.lines(await path.press(seconds, result.slow_rate))
            say(f"undisturbed, {KILL_RATE:g} presses a second")
            result.undisturbed = path.lines(await path.press(2 * gap_seconds, KILL_RATE))
            say("the same while lanes are killed in turn")
            result.lanes_killed = path.lines(await path.press(2 * gap_seconds, KILL_RATE, _kill_lanes(rig, gap_seconds)))
            await _gaps(result, rig, path, say)
            say("without lanes")
            async with rig.down("joiner-a", "joiner-b"):
                result.without_lanes = path.lines(await path.press(6, KILL_RATE))
            say("without Kafka")
            async with rig.frozen(KAFKA):
                result.without_kafka = path.lines(await path.press(6, KILL_RATE))
        if officers:
            async with PressPath(stack, officers, say):
                say(f"idle, {officers} officers")
                result.idle, result.idle_officers = await quiet.measure(stack, 20), officers
        # What leaves a backlog behind comes last.
        async with PressPath(stack, min(150, int(result.rate * 4)), say) as path:
            say(f"the real path, {result.rate:g} presses a second")
            result.path = path.lines(await path.press(seconds, result.rate))
        say("the rate of joins")
        async with rig.down("joiner-b", *(name for name in rig.services if name.startswith(("streams", "emergency", "registry")))):
            result.joins = await joining.measure(stack, "joiner-a", join_count)
            async with rig.otherwise("joiner-a", through="bench.batched"):
                result.joins_batched = await joining.measure(stack, "joiner-a", join_count)


async def _kill_lanes(rig: Rig, every_s: float) -> None:
    for lane in ("joiner-a", "joiner-b"):
        await asyncio.sleep(every_s / 2)
        await rig.kill(lane)
        await asyncio.sleep(every_s / 2)


async def _gaps(result: Result, rig: Rig, path: PressPath, say: Any) -> None:
    """The longest that a press waits for its command when one process is killed."""
    for name in (*rig.services, POSTGRES, KAFKA):

        async def kill(name: str = name) -> None:
            await asyncio.sleep(1)
            await rig.kill(name)

        say(f"{name} is killed")
        made: list[Pressed] = await path.press(5, KILL_RATE, kill())
        result.gaps.append((name, line(COMMANDED, [p.milliseconds() for p in made]).max))


def _table(title: str, floor_lines: list[Line], path_lines: list[Line]) -> Table:
    heads = ("milliseconds", "floor p50", "p99", "max", "Sightline p50", "p99", "max", "ratio p50", "p99")
    table = Table(*heads, title=title, title_justify="left")
    for least, real in zip(floor_lines, path_lines, strict=True):
        cells = [f"{value:.1f}" for one in (least, real) for value in (one.p50, one.p99, one.max)]
        table.add_row(real.name, *cells, f"{real.p50 / least.p50:.1f}", f"{real.p99 / least.p99:.1f}")
    return table


def show(result: Result) -> None:
    """Print everything."""
    out.print(_table(f"{result.slow_rate:g} presses a second, open loop", result.floor_slow, result.path_slow))
    out.print(_table(f"{result.rate:g} presses a second, open loop", result.floor, result.path))
    table = Table("press → command, milliseconds", "presses", "p50", "p99", "max", title_justify="left")
    for title, lines in (
        (f"{KILL_RATE:g} a second, undisturbed", result.undisturbed), ("… lanes killed in turn", result.lanes_killed),
        ("both lanes down", result.without_lanes), ("Kafka frozen", result.without_kafka),
    ):  # fmt: skip
        one = lines[-1]
        table.add_row(title, str(one.count), f"{one.p50:.1f}", f"{one.p99:.1f}", f"{one.max:.1f}")
    out.print(table)
    table = Table("killed", "longest press → command, ms", title=f"undisturbed: {result.undisturbed[-1].max:.0f} ms", title_justify="left")
    for name, milliseconds in result.gaps:
        table.add_row(name, f"{milliseconds:.0f}")
    out.print(table)
    for how, rate in (("one by one", result.joins), ("a hundred at a time", result.joins_batched)):
        if rate:
            out.print(f"Faust, {how}: {rate.per_second:.0f} joins/s, {rate.per_core_second:.0f} per core and second")
    if result.idle:
        table = Table("idle", "CPU % of a core", "MiB", title=f"{result.idle_officers} officers, cameras linked", title_justify="left")
        for use in [*result.idle, quiet.Use("sum", sum(u.cpu_percent for u in result.idle), sum(u.memory_mib for u in result.idle))]:
            table.add_row(use.name, f"{use.cpu_percent:.1f}", f"{use.memory_mib:.0f}")
        out.print(table)


def keep(result: Result) -> Path:
    """Write the JSON and the chart."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    chart = pygal.HorizontalBar(
        title=f"Longest press → command when a process is killed, ms ({result.at[:10]})", show_legend=False, print_values=True,
        formatter=lambda value: f"{value:.0f}", disable_xml_declaration=True, js=[],
    )  # fmt: skip
    chart.x_labels = [name for name, _ in result.gaps][::-1]
    chart.add("ms", [round(value) for _, value in result.gaps][::-1])
    chart.render_to_file(str(RESULTS / "gaps.svg"))
    # Logarithmic: an overrun at one rate would flatten all else. From 1 ms on, or the smallest bar has no height.
    slowest = max(line.max for lines in (result.path, result.without_lanes, result.without_kafka) for line in lines)
    chart = pygal.Bar(
        title=f"Press → command, ms, logarithmic ({result.at[:10]})", logarithmic=True, print_values=True, width=1100, js=[],
        range=(1, 1.5 * slowest), zero=1, formatter=lambda value: f"{value:.0f}",
        legend_at_bottom=True, legend_at_bottom_columns=4, truncate_legend=-1,
    )  # fmt: skip
    chart.x_labels = ["p50", "p99", "max"]
    for name, lines in (
        (f"floor, {result.slow_rate:g}/s", result.floor_slow), (f"Sightline, {result.slow_rate:g}/s", result.path_slow),
        (f"floor, {result.rate:g}/s", result.floor), (f"Sightline, {result.rate:g}/s", result.path),
        (f"undisturbed, {KILL_RATE:g}/s", result.undisturbed), ("lanes killed in turn", result.lanes_killed),
        ("no lanes", result.without_lanes), ("no Kafka", result.without_kafka),
    ):  # fmt: skip
        chart.add(name, [lines[-1].p50, lines[-1].p99, lines[-1].max])
    chart.render_to_file(str(RESULTS / "latency.svg"))
    return RESULTS / "latest.json"


def main(
    rate: Annotated[float, typer.Option(help="Presses a second, open loop.", min=1)] = 50,
    slow_rate: Annotated[float, typer.Option(help="A second rate, which leaves the machine room.", min=1)] = 10,
    seconds: Annotated[float, typer.Option(help="Length of each run.", min=2)] = 20,
    every: Annotated[float, typer.Option(help="Seconds between the deaths of lanes.", min=2)] = 20,
    officers: Annotated[int, typer.Option(help="Officers of the idle stack; 0 leaves it out.", min=0)] = 1300,
    join_count: Annotated[int, typer.Option("--joins", help="Backlog of the lane.", min=100)] = 20_000,
    keep_results: Annotated[bool, typer.Option("--keep/--no-keep", help="Write bench/results/.")] = True,
) -> None:
    """Measure; takes about six minutes."""
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; load {os.getloadavg()[0]:.1f} at the start"
    )
    result = Result(datetime.now(UTC).isoformat(timespec="seconds"), machine, rate, slow_rate)
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        data = Path(folder)
        try:
            with err.status("starting") as status:
                asyncio.run(run(result, data, seconds, officers, every, join_count, status.update))
        finally:
            local.down(data, lambda text: None, purge=True)
    show(result)
    if keep_results:
        out.print(f"kept in {keep(result)}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
