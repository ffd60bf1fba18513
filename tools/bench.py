"""`make bench`: what a press takes on this machine, under a steady rate that does not wait for answers."""

import asyncio
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress

from tools.local.stack import Stack
from tools.roster import Member, member
from tools.world import World, until

OFFICERS = 100
_FIRST_NUMBER = 2000


@dataclass(frozen=True)
class Line:
    """One measured distance, in milliseconds."""

    name: str
    p50: float
    p95: float
    p99: float
    max: float


def _line(name: str, milliseconds: list[float]) -> Line:
    ordered = sorted(milliseconds)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    return Line(name, at(0.5), at(0.95), at(0.99), ordered[-1])


async def bench(stack: Stack, presses: int, rate: float) -> list[Line]:
    """Press `presses` times at `rate` a second; times count from when a press was due, so a stall is not hidden."""
    members = [member("bench", _FIRST_NUMBER + n) for n in range(OFFICERS)]
    answered: list[float] = []
    ordered: list[float] = []
    free: asyncio.Queue[Member] = asyncio.Queue()
    for each in members:
        free.put_nowait(each)
    async with World(stack) as world:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("officers", total=OFFICERS)
            await world.enrol(members)
            for each in members:
                await world.begin_shift(each)
                await world.link(each)
                progress.advance(task)

            async def one(each: Member, due: float) -> None:
                camera = world.cameras[each.camera_ids[0]]
                camera.recording, before = False, len(camera.starts)
                pressed = await world.press(each.radio)
                answered.append((time.monotonic() - due) * 1000)

                async def started() -> bool:
                    return len(camera.starts) > before

                await until(started, f"camera of {each.officer_id}")
                clock = time.time() - time.monotonic()
                ordered.append((camera.starts[-1][1].timestamp() - clock - due) * 1000)
                await world.states(pressed.emergency_id)
                await world.clear(pressed.emergency_id)
                free.put_nowait(each)
                progress.advance(task)

            task = progress.add_task("presses", total=presses)
            start = time.monotonic()
            async with asyncio.TaskGroup() as running:
                for n in range(presses):
                    due = start + n / rate
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    # Nobody presses twice while an emergency is open: that would fold, and measure something else.
                    running.create_task(one(await free.get(), due))
    return [_line("OK at the gateway (committed)", answered), _line("the camera records", ordered)]
