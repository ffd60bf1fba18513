"""`python -m bench.media`: what live video takes, and how late it is; printed, and kept in bench/results/media.json."""

import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import psutil
import typer
from media.chain import Name
from media.files import FileShelf
from media.fmp4 import Fragment
from playwright.async_api import Page, async_playwright
from rich.console import Console
from rich.table import Table
from sightline.streams.v1 import session_service_pb2 as pb
from testkit.proxy import Proxy
from testkit.trial.rig import Rig

from bench.measure import Line, line, seconds_used
from tools.desk import fetch_token
from tools.local import stack as local
from tools.local.browser import chromium
from tools.local.process import free_ports
from tools.local.stack import Stack
from tools.roster import Member, member
from tools.simulator.footage import FRAMES_PER_S, READ_CLOCK, Footage
from tools.simulator.viewer import Viewer
from tools.world import World, until

RESULTS = Path(__file__).parent / "results"
KBIT_S, SLOW_KBIT_S = 2000, 1200
# Spells of a slow link, how long it is well after each, and from what age on a picture is late.
_SPELLS, _WELL_S, _LATE_MS = 6, 2.0, 250
out, err = Console(width=130), Console(stderr=True)
# At every picture; ages in ms, without those that cannot be read.
_WATCH_CLOCK = f"""() => {{ const read = {READ_CLOCK}; window.ages = [];
    document.getElementById("picture").addEventListener("painted", () => {{
      const age = read(); if (age !== null) window.ages.push(age); }}); }}"""


@dataclass
class Result:
    """One run."""

    at: str
    machine: str
    first_picture: Line | None = None
    revoked: Line | None = None
    after_revocation: int = 0
    cameras: int = 0
    viewers: int = 0
    relays_idle_percent: float = 0.0
    relays_streaming_percent: float = 0.0
    relays_serving_percent: float = 0.0
    tls_streaming_percent: float = 0.0
    tls_serving_percent: float = 0.0
    stuck_viewers: int = 0
    stuck_mib: float = 0.0
    glass: list[Line] = field(default_factory=list)
    slow_link: Line | None = None
    recovered: Line | None = None
    synced: Line | None = None

    @property
    def viewers_per_core(self) -> float:
        """At 2 Mbit/s, by what viewers add to what cameras take."""
        return 100 * self.viewers / max(0.1, self.relays_serving_percent - self.relays_streaming_percent)

    @property
    def tls_viewers_per_core(self) -> float:
        """The same with TLS to viewers."""
        return 100 * self.viewers / max(0.1, self.tls_serving_percent - self.tls_streaming_percent)


class Force:
    """Officers whose cameras stream at 2 Mbit/s."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._numbers = iter(range(1, 1000))

    async def officer(self) -> Member:
        """One more, on duty."""
        return await self.world.duty(member("media", next(self._numbers)))

    async def pressed(self) -> tuple[str, str]:
        """Emergency and camera of one more whose camera streams."""
        officer = await self.officer()
        return (await self.world.press(officer.radio)).emergency_id, officer.camera_ids[0]


async def _has(viewer: Viewer, pieces: int) -> None:
    async def came() -> bool:
        return len(viewer.pieces) >= pieces

    await until(came, f"{pieces} pieces")


async def _first_picture(force: Force, count: int) -> Line:
    """From the press to the first keyframe at a viewer that asks for it as soon as it knows of the press."""
    times = []
    for _ in range(count):
        officer = await force.officer()
        began = time.monotonic()
        pressed = await force.world.press(officer.radio)
        async with await force.world.watch(pressed.emergency_id, officer.camera_ids[0]) as viewer:
            await _has(viewer, 2)
            times.append(1000 * (time.monotonic() - began))
    return line("press → first picture at a viewer", times)


async def _revoke(force: Force, count: int) -> tuple[Line, int]:
    """From the call that takes a grant back to the closed socket; and pieces that came after the answer to that call."""
    world, times, late = force.world, [], 0
    emergency_id, camera_id = await force.pressed()
    for _ in range(count):
        async with await world.watch(emergency_id, camera_id) as viewer:
            await _has(viewer, 5)
            began = time.monotonic()
            await world.supervisor.call(world.supervisor.sessions.RevokeGrant, pb.RevokeGrantRequest(grant_id=viewer.grant_id))
            there = len(viewer.pieces)
            await viewer.over.wait()
            times.append(1000 * (viewer.closed_at - began))
            late += len(viewer.pieces) - there
    return line("revoke → socket closed", times), late


def _relays(stack: Stack) -> list[psutil.Process]:
    return [psutil.Process(process.pid) for process in stack.processes if process.name.startswith("relay")]


async def _percent(stack: Stack, seconds: float) -> float:
    """Processor of all relays, in percent of a core."""

    def used() -> float:
        return sum(seconds_used(relay.pid) for relay in _relays(stack))

    before = used()
    await asyncio.sleep(seconds)
    return 100 * (used() - before) / seconds


def _memory(stack: Stack) -> float:
    return sum(relay.memory_full_info().uss for relay in _relays(stack)) / 2**20


async def _uploaded(stack: Stack) -> bool:
    """Whether all seconds before presses have arrived: they come slowly, beside what is live."""
    return all('"end"' in index.read_text().splitlines()[-1] for index in stack.data.glob("relay-*/*/*-pre.jsonl"))


async def _capacity(result: Result, force: Force, stack: Stack, cameras: int, each: int, seconds: float) -> None:
    result.cameras, result.viewers = cameras, cameras * each
    result.relays_idle_percent = await _percent(stack, seconds)
    names = [await force.pressed() for _ in range(cameras)]
    result.relays_streaming_percent, result.relays_serving_percent = await _serving(force, stack, names, each, seconds)
    before = _memory(stack)
    async with AsyncExitStack() as viewers:
        result.stuck_viewers = 2 * cameras
        for name in (*names, *names):
            viewer = await force.world.watch(*name)
            viewer.reads = False
            await viewers.enter_async_context(viewer)
        await asyncio.sleep(seconds)
        result.stuck_mib = _memory(stack) - before
    async with AsyncExitStack() as relays:
        rig = await relays.enter_async_context(Rig(stack))
        certificate, key = stack.ca.issue("platform", "service", "relay")
        tls = {"SIGHTLINE_VIEW_CERT_FILE": str(certificate), "SIGHTLINE_VIEW_KEY_FILE": str(key)}
        for relay, (_, viewing) in stack.relays.items():
            url = f"wss://localhost:{viewing.rpartition(':')[2]}"
            await relays.enter_async_context(rig.otherwise(relay, SIGHTLINE_VIEW_URL=url, **tls))
        result.tls_streaming_percent, result.tls_serving_percent = await _serving(force, stack, names, each, seconds)
    for _, camera_id in names:
        await force.world.cameras[camera_id].finish()


async def _serving(force: Force, stack: Stack, names: Sequence[tuple[str, str]], each: int, seconds: float) -> tuple[float, float]:
    """Processor of all relays with cameras alone, and with so many viewers of each."""
    async with AsyncExitStack() as viewers:
        first = [await viewers.enter_async_context(await force.world.watch(*name)) for name in names]
        for viewer in first:
            await _has(viewer, 10)
        await viewers.aclose()
        await until(lambda: _uploaded(stack), "what was seen before the presses", 120)
        streaming = await _percent(stack, seconds)
        for name in names:
            for _ in range(each):
                await viewers.enter_async_context(await force.world.watch(*name))
        await asyncio.sleep(1)
        return streaming, await _percent(stack, seconds)


def _synced(folder: Path, count: int) -> Line:
    """What it takes to make a second of a camera's pieces survive a power cut, on the disk of the bench."""
    segment, times = FileShelf(folder).begin(Name("bench", "0001-live")), []
    a_second = KBIT_S * 1000 // 8
    for n in range(count):
        for part in range(FRAMES_PER_S):
            piece = Fragment(os.urandom(a_second // FRAMES_PER_S), part == 0, timedelta(seconds=n), None)
            segment.append(piece, datetime.now(UTC))
        began = time.monotonic()
        segment.sync()
        times.append(1000 * (time.monotonic() - began))
    segment.close("CAMERA_STOPPED")
    return line("fsync of a second of one camera", times)


async def _glass(force: Force, stack: Stack, seconds: float) -> list[Line]:
    """From the burnt-in clock to the painted picture in a real browser."""
    emergency_id, camera_id = await force.pressed()
    program, environment = await asyncio.to_thread(chromium)
    token = await asyncio.to_thread(fetch_token, stack, "supervisor")
    lines = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], env=environment)

        async def sit() -> Page:
            page = await browser.new_page()
            await page.goto(f"http://{stack.console}/#emergency={emergency_id}&camera={camera_id}")
            await page.evaluate(_WATCH_CLOCK)
            await page.fill("#token", token)
            await page.click("button[type=submit]")
            await page.wait_for_function("() => window.ages.length > 0")
            return page

        for name in ("first viewer", "late viewer"):
            page = await sit()
            await asyncio.sleep(seconds)
            ages = await page.evaluate("window.ages")
            lines.append(line(f"glass to glass, {name}", ages[len(ages) // 4 :]))  # without the first moments
        await browser.close()
    return lines


async def _slow_link(result: Result, force: Force, seconds: float) -> None:
    """How old pictures are on a link of 1.2 Mbit/s, and how soon they are new again when it is well."""
    emergency_id, camera_id = await force.pressed()
    viewer = await force.world.watch(emergency_id, camera_id)
    target = urlsplit(viewer.view_url)
    async with Proxy(free_ports(1)[0], target.port or 0) as proxy:
        viewer.view_url = f"ws://127.0.0.1:{proxy.port}"
        async with viewer:
            await _has(viewer, 10)
            proxy.weather.throttle = SLOW_KBIT_S * 1000 / 8
            await asyncio.sleep(seconds / 2)
            behind: list[float] = []
            recovered: list[float] = []
            for _ in range(_SPELLS):
                proxy.weather.throttle, begins = SLOW_KBIT_S * 1000 / 8, len(viewer.pieces)
                await asyncio.sleep(seconds / 2)
                behind += [p.arrived_ms - p.received_ms for p in viewer.pieces[begins:]]
                proxy.weather.throttle, began, begins = 0.0, time.time_ns() // 1_000_000, len(viewer.pieces)
                await asyncio.sleep(_WELL_S)
                # Live again is when the last late picture has come; at 1.2 of 2 Mbit/s there always is one on the way.
                recovered.append(
                    max((p.arrived_ms - began for p in viewer.pieces[begins:] if p.arrived_ms - p.received_ms >= _LATE_MS), default=0)
                )
            result.slow_link, result.recovered = (
                line("behind, on a slow link", behind),
                line("slow link well → last late picture", recovered),
            )


async def run(result: Result, data: Path, seconds: float, cameras: int, each: int) -> None:
    """All measurements, one after the other, on a stack of its own."""
    with err.status("starting") as status:
        stack = await asyncio.to_thread(lambda: local.up(data, status.update, traced=False))
        world = World(stack, video=True)
        world.footage = Footage(KBIT_S)
        async with world:
            force = Force(world)
            await force.pressed()  # connections are made
            status.update("press → first picture")
            result.first_picture = await _first_picture(force, 12)
            status.update("glass to glass")
            result.glass = await _glass(force, stack, seconds)
            status.update("revocations")
            result.revoked, result.after_revocation = await _revoke(force, 20)
            status.update("fsync")
            result.synced = await asyncio.to_thread(_synced, data / "bench", 40)
            status.update("a slow link")
            await _slow_link(result, force, seconds)
            for camera in world.cameras.values():
                await camera.finish()
            status.update("capacity")
            await _capacity(result, force, stack, cameras, each, seconds)


def show(result: Result) -> None:
    """Print everything."""
    table = Table(
        "milliseconds", "count", "p50", "p95", "p99", "max", title=f"live video at {KBIT_S / 1000:g} Mbit/s", title_justify="left"
    )
    for one in (result.first_picture, *result.glass, result.revoked, result.slow_link, result.recovered, result.synced):
        if one:
            table.add_row(one.name, str(one.count), *(f"{value:.0f}" for value in (one.p50, one.p95, one.p99, one.max)))
    out.print(table)
    out.print(f"pieces after the answer to a revocation: {result.after_revocation}")
    out.print(f"a slow link has {SLOW_KBIT_S / 1000:g} Mbit/s; late is a picture of {_LATE_MS} ms and more")
    out.print(
        f"relays: idle {result.relays_idle_percent:.1f} % of a core, {result.cameras} cameras {result.relays_streaming_percent:.1f} %,"
        f" and {result.viewers} viewers {result.relays_serving_percent:.1f} %: {result.viewers_per_core:.0f} viewers a core"
    )
    out.print(
        f"with TLS to viewers: cameras {result.tls_streaming_percent:.1f} %, and viewers {result.tls_serving_percent:.1f} %:"
        f" {result.tls_viewers_per_core:.0f} viewers a core"
    )
    out.print(f"{result.stuck_viewers} viewers that never read: {result.stuck_mib:+.1f} MiB")


def main(
    seconds: Annotated[float, typer.Option(help="Length of each measurement.")] = 8,
    cameras: Annotated[int, typer.Option(help="Cameras that stream at a time.")] = 10,
    each: Annotated[int, typer.Option(help="Viewers of each.")] = 10,
) -> None:
    """Measure live video on this machine."""
    now, data = datetime.now(UTC).isoformat(timespec="seconds"), Path(tempfile.mkdtemp(prefix="sightline-bench-"))
    result = Result(now, f"{os.cpu_count()} cores, {platform.machine()}")
    try:
        asyncio.run(run(result, data, seconds, cameras, each))
    finally:
        local.down(data, lambda text: None, purge=True)
    show(result)
    rates = {"viewers_per_core": result.viewers_per_core, "tls_viewers_per_core": result.tls_viewers_per_core}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "media.json").write_text(json.dumps(asdict(result) | rates, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
