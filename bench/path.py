"""The real path under a steady rate that does not wait for answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self

import grpc
import psycopg
from sightline.streams.v1.camera_link_service_pb2 import HandledOrder

from bench.measure import ACCEPTED, COMMANDED, DECIDED, Line, line
from tools.local.stack import Stack
from tools.roster import Member, check_out, member
from tools.simulator.camera import Camera
from tools.world import World, surely

_FIRST_UNIT = 2000
_WITHIN_S = 60.0


@dataclass
class Pressed:
    """One press: when it was due, answered and commanded, in seconds of the wall clock."""

    due: float
    emergency_id: str = ""
    answered: float = 0.0
    commanded: float = 0.0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def milliseconds(self) -> float:
        """From due to the command; without one the time that was waited."""
        return ((self.commanded or time.time()) - self.due) * 1000


class Path:
    """Officers on shift with linked cameras, who press. Use as an async context manager."""

    def __init__(self, stack: Stack, officers: int, progress: Callable[[str], None]) -> None:
        self._stack, self._progress = stack, progress
        self._members = [member("bench", _FIRST_UNIT + n) for n in range(officers)]
        self._free: asyncio.Queue[Member] = asyncio.Queue()
        self._by_emergency: dict[str, Pressed] = {}
        self._commands: dict[str, float] = {}
        self._resources = AsyncExitStack()
        self.world = World(stack, "bench-pd")

    async def __aenter__(self) -> Self:
        await self._resources.enter_async_context(self.world)
        await self.world.enrol(self._members)
        gate, done = asyncio.Semaphore(16), 0

        async def begin(each: Member) -> None:
            nonlocal done
            async with gate:
                await self.world.end_shift(each)
                await check_out(self.world.admin, each)
                camera = self.world.cameras[each.camera_ids[0]]
                camera.on_act = self._acted
                await self.world.power_on(camera)
                self._free.put_nowait(each)
                done += 1
                self._progress(f"{done} of {len(self._members)} officers on shift")

        await asyncio.gather(*map(begin, self._members))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._resources.aclose()

    def _acted(self, _: Camera, handled: HandledOrder) -> None:
        self._commands[handled.emergency_id] = time.time()
        if pressed := self._by_emergency.get(handled.emergency_id):
            pressed.commanded = self._commands[handled.emergency_id]
            pressed.done.set()

    async def press(self, seconds: float, rate: float, meanwhile: Awaitable[object] | None = None) -> list[Pressed]:
        """Press for some seconds, and until `meanwhile` is over; then wait for the last command."""
        made: list[Pressed] = []
        side = asyncio.ensure_future(meanwhile) if meanwhile else None
        begun = time.monotonic()
        clock = time.time() - begun
        async with asyncio.TaskGroup() as running:
            while (at := begun + len(made) / rate) < begun + seconds or (side and not side.done()):
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                made.append(Pressed(clock + at))
                running.create_task(self._one(await self._free.get(), made[-1]))
        if side:
            await side
        return made

    async def _one(self, each: Member, pressed: Pressed) -> None:
        """One press, sent again at once until it is answered; then its command, and the clear."""
        self.world.cameras[each.camera_ids[0]].recording = False
        answer = await self.world.gateway.send(self.world.gateway.press(each.radio), timedelta(seconds=_WITHIN_S))
        pressed.emergency_id = answer.emergency_id
        pressed.answered = time.time()
        self._by_emergency[pressed.emergency_id] = pressed
        if pressed.emergency_id in self._commands:
            pressed.commanded = self._commands[pressed.emergency_id]
            pressed.done.set()
        async with asyncio.timeout(_WITHIN_S):
            await pressed.done.wait()
        await surely(lambda: self.world.clear(pressed.emergency_id), grpc.StatusCode.FAILED_PRECONDITION)
        self._free.put_nowait(each)

    def lines(self, made: list[Pressed]) -> list[Line]:
        """The distances of some presses; when a decision was committed is asked of the database."""
        due = {pressed.emergency_id: pressed.due for pressed in made}
        with psycopg.connect(self._stack.database) as connection:
            query = "SELECT emergency_id::text, extract(epoch FROM accepted_at)::float8 FROM streams.decision"
            decided = connection.execute(query + " WHERE emergency_id = ANY(%s::uuid[])", [list(due)]).fetchall()
        return [
            line(ACCEPTED, [(p.answered - p.due) * 1000 for p in made]),
            line(DECIDED, [(at - due[key]) * 1000 for key, at in decided]),
            line(COMMANDED, [p.milliseconds() for p in made]),
        ]
