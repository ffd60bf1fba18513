"""`sightline demo`: a shift of officers, one scenario after the other, and a live table of what comes of them."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from sightline.activation.v1.activation_pb2 import ActivationResult, NoCameraReason, RefusalReason
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.emergency.v1.emergency_pb2 import EMERGENCY_STATE_OPEN, AlarmStatus, SubjectState

from tools.local.stack import Stack
from tools.roster import Member, member
from tools.scenarios import SCENARIOS, Outcome, Scenario
from tools.world import World, name_of

OFFICERS = 40
_AT_ONCE = 4
_NEWEST = 14


@dataclass
class Line:
    """A scenario's line of the table."""

    scenario: Scenario
    outcome: Outcome | None = None
    error: str = ""
    running: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than expected."""
        return bool(self.error) or (self.outcome is not None and not self.outcome.ok)

    def cells(self) -> tuple[str, str, str, str]:
        """Name, expectation, outcome, time."""
        if self.error:
            shown = f"[red]failed: {self.error}[/red]"
        elif self.outcome is None:
            shown = "[yellow]running[/yellow]" if self.running else "[dim]waiting[/dim]"
        else:
            shown = "[green]as expected[/green]" if self.outcome.ok else f"[red]{self.outcome.difference()}[/red]"
        took = f"{self.outcome.command_ms:.0f} ms" if self.outcome and self.outcome.command_ms is not None else ""
        return self.scenario.name, self.scenario.expects, shown, took


class Demo:
    """One run of the demo."""

    def __init__(self, stack: Stack, console: Console, seconds: float | None, started: float) -> None:
        self._stack, self._console, self._seconds, self._started = stack, console, seconds, started
        self._lines = [Line(scenario) for scenario in SCENARIOS]
        self._emergencies: dict[str, pb.WatchEmergenciesResponse] = {}
        self._first_recording_s: float | None = None

    async def run(self) -> bool:
        """Run all scenarios, then show what happens until it is stopped; True if all ended as expected."""
        async with World(self._stack, video=True) as world:
            await world.clear_all()
            members = await self._begin_shift(world)
            watching = asyncio.create_task(self._watch(world))
            try:
                with Live(get_renderable=self._render, console=self._console, refresh_per_second=8):
                    await self._play(world, members)
                    await self._linger()
                self._console.print()
            finally:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching
            await world.clear_all()
        return not any(line.failed for line in self._lines)

    async def _begin_shift(self, world: World) -> list[Member]:
        """Register and check out everybody; scenarios take the first ones, with what they need."""
        members = [member("officer", n + 1, SCENARIOS[n].cameras if n < len(SCENARIOS) else 1) for n in range(OFFICERS)]
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"shift of {OFFICERS} officers", total=OFFICERS)
            await world.enrol(members)
            for number, each in enumerate(members):
                scenario = SCENARIOS[number] if number < len(SCENARIOS) else None
                await (world.end_shift(each) if scenario and not scenario.on_shift else world.begin_shift(each))
                if scenario is None or scenario.linked:
                    await world.link(each)
                progress.advance(task)
        return members

    async def _play(self, world: World, members: list[Member]) -> None:
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(line: Line, each: Member) -> None:
            async with gate:
                line.running = True
                try:
                    line.outcome = await line.scenario.run(world, each)
                except Exception as error:
                    line.error = f"{type(error).__name__}: {error}"[:200]

        await asyncio.gather(*(one(line, each) for line, each in zip(self._lines, members, strict=False)))

    async def _linger(self) -> None:
        """Stay until Ctrl-C, or for what is left of the given time."""
        if self._seconds is None:
            await asyncio.Event().wait()
        else:
            await asyncio.sleep(max(0.0, self._seconds - (time.time() - self._started)))

    async def _watch(self, world: World) -> None:
        """Follow all emergencies, as a supervisor's screen would."""
        desk = world.supervisor
        async for change in desk.emergency.WatchEmergencies(pb.WatchEmergenciesRequest(), metadata=desk.metadata()):
            if change.HasField("emergency"):
                self._emergencies[change.emergency.emergency_id] = change
            if self._first_recording_s is None and any(name_of(a.state) == "RECORDING" for a in change.activations):
                self._first_recording_s = time.time() - self._started

    def _render(self) -> Group:
        scenarios = Table("scenario", "expected", "outcome", "press → confirmed", title="Scenarios", title_justify="left")
        for line in self._lines:
            scenarios.add_row(*line.cells())
        emergencies = Table("emergency", "radio", "officer", "state", "presses", "cameras", title="Emergencies", title_justify="left")
        for change in [self._emergencies[key] for key in sorted(self._emergencies)[-_NEWEST:]]:
            emergencies.add_row(*_cells(change))
        return Group(scenarios, emergencies, self._footer())

    def _footer(self) -> Text:
        parts = []
        if self._first_recording_s is not None:
            parts.append(f"first camera recorded {self._first_recording_s:.0f} s after the command was typed")
        if all(line.outcome or line.error for line in self._lines):
            parts.append("try `.venv/bin/sightline drill` in another terminal; Ctrl-C ends the demo")
        footer = Text(" · ".join(parts), style="bold")
        if name := self._recording():
            url = f"http://{self._stack.console}/#emergency={name[0]}&camera={name[1]}"
            footer.append("\nwatch it, with the token that `.venv/bin/sightline token supervisor` prints:\n")
            footer.append(url, style=f"link {url}")  # a narrow terminal breaks the text, and the link still holds
        return footer

    def _recording(self) -> tuple[str, str] | None:
        """The newest open emergency with a camera that records."""
        for key in sorted(self._emergencies, reverse=True):
            change = self._emergencies[key]
            for result in change.activations:
                if change.emergency.state == EMERGENCY_STATE_OPEN and name_of(result.state) == "RECORDING":
                    return key, result.camera_id
        return None


def _cells(change: pb.WatchEmergenciesResponse) -> tuple[str, ...]:
    """One emergency's line."""
    e = change.emergency
    who = e.subject.officer_id or SubjectState.Name(e.subject.state).removeprefix("SUBJECT_STATE_").lower().replace("_", " ")
    state = "[red]open[/red]" if e.state == EMERGENCY_STATE_OPEN else "[dim]cleared[/dim]"
    marks = [mark for mark, on in (("stale", e.stale_on_arrival), ("cancel asked", e.HasField("cancel_requested"))) if on]
    if e.status == AlarmStatus.ALARM_STATUS_EXERCISE:
        marks.append("exercise")
    cameras = ", ".join(map(_camera, change.activations))
    radio = f"{e.radio.system_id:03x}-{e.radio.unit_id}"
    return e.emergency_id[-8:], radio, who, " ".join([state, *marks]), str(1 + e.repeat_count), cameras


def _camera(result: ActivationResult) -> str:
    """A camera with what it does, or why not."""
    state = name_of(result.state).lower().replace("_", " ")
    if result.no_camera_reason:
        return NoCameraReason.Name(result.no_camera_reason).removeprefix("NO_CAMERA_REASON_").lower().replace("_", " ")
    if result.refusal_reason:
        state += f": {RefusalReason.Name(result.refusal_reason).removeprefix('REFUSAL_REASON_').lower().replace('_', ' ')}"
    return f"{result.camera_id} {state}"


async def demo(stack: Stack, console: Console, seconds: float | None, started: float, on_end: Callable[[list[Line]], None]) -> bool:
    """Run the demo; `on_end` gets the scenarios' lines for the exit report, also after a Ctrl-C."""
    run = Demo(stack, console, seconds, started)
    try:
        return await run.run()
    finally:
        on_end(run._lines)
