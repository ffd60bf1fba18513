"""Presses at a steady rate that does not wait for answers, with what real life adds: repeats, cancels, clears, changes of camera."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Awaitable

import grpc
from sightline.activation.v1.activation_pb2 import ActivationState
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.streams.v1.camera_link_service_pb2 import HandledOrder

from testkit.trial.journal import ERROR, OK, UNKNOWN, Journal
from tools.roster import Member, check_in, check_out
from tools.simulator.camera import Camera
from tools.simulator.gateway import PAUSE_S, REFUSED
from tools.world import World, surely

_ANSWER_WITHIN_S = 60.0


# How often a press is followed by something else; shares of one.
HABITS = {
    "sent_twice": 0.05,
    "pressed_again": 0.05,
    "cancelled": 0.03,
    "cleared_at_once": 0.05,
    "repaired": 0.03,
    "rebooted": 0.03,  # the camera, while its order may be on the way (F38)
}


class Driver:
    """Takes officers from a pool; each presses, is recorded, is cleared, and goes back."""

    def __init__(
        self, world: World, members: list[Member], spares: dict[str, str], journal: Journal, cameras: Journal, seed: int, patience_s: float
    ) -> None:
        # How long a camera may take to start before we go on; the checker then says what is missing.
        self._patience_s = patience_s
        self._world, self._journal, self._cameras = world, journal, cameras
        self._spares = spares  # officer → a second camera, for changes during an emergency
        self._random = random.Random(seed)  # noqa: S311 (a trial must be repeatable)
        self._free: asyncio.Queue[Member] = asyncio.Queue()
        for member in members:
            self._free.put_nowait(member)
        self._numbers = 0
        self._acted: dict[str, asyncio.Event] = {}
        self.late = 0  # presses that had to wait for a free officer

    def acted(self, camera: Camera, handled: HandledOrder) -> None:
        """What a camera wrote into its own log."""
        what = ActivationState.Name(handled.result).removeprefix("ACTIVATION_STATE_").lower()
        self._cameras.note(what, camera=camera.camera_id, emergency_id=handled.emergency_id, epoch=handled.epoch)
        self._acted.setdefault(handled.emergency_id, asyncio.Event()).set()

    async def run(self, presses: int, rate: float, over: asyncio.Event) -> None:
        """Press at `rate` a second, `presses` times and on until it is over; return when the last has come to its end."""
        start = time.monotonic()
        async with asyncio.TaskGroup() as running:
            for n in itertools.count():
                if n >= presses and over.is_set():
                    break
                await asyncio.sleep(max(0.0, start + n / rate - time.monotonic()))
                self.late += self._free.empty()
                member = await self._free.get()
                running.create_task(self._one(member))

    async def _one(self, member: Member) -> None:
        dice = {name: self._random.random() < share for name, share in HABITS.items()}
        self._world.cameras[member.camera_ids[0]].recording = False
        emergency_id = await self._press(member, twice=dice["sent_twice"], cancel=dice["cancelled"])
        if dice["rebooted"]:
            await self._world.cameras[member.camera_ids[0]].power_off()
            self._world.cameras[member.camera_ids[0]].power_on()
        if emergency_id is None:
            self._free.put_nowait(member)
            return
        if dice["repaired"]:
            member = await self._change_camera(member)
        if dice["pressed_again"]:
            await self._press(member, twice=False, cancel=False)
        if not dice["cleared_at_once"]:
            await self._wait_for_camera(emergency_id)
        await self._clear(emergency_id)
        self._free.put_nowait(member)

    async def _press(self, member: Member, *, twice: bool, cancel: bool) -> str | None:
        """One press, sent until it is answered; the emergency's id."""
        self._numbers += 1
        number, request = self._numbers, self._world.gateway.press(member.radio)
        facts = {"unit": member.radio.unit_id, "officer": member.officer_id, "cameras": member.camera_ids}
        await self._journal.write("intended", n=number, request_id=request.request_id, **facts)
        if cancel:  # it overtakes its press, or comes behind it
            await self._quietly(self._world.gateway.cancel(request))
        copies = [request, pb.RaiseAlarmRequest.FromString(request.SerializeToString())] if twice else [request]
        answers = await asyncio.gather(*(self._send(number, copy) for copy in copies))
        return next((answer for answer in answers if answer), None)

    async def _send(self, number: int, request: pb.RaiseAlarmRequest) -> str | None:
        deadline = time.monotonic() + _ANSWER_WITHIN_S
        while True:
            await self._journal.write("sent", n=number)
            began = time.monotonic()
            try:
                answer = await self._world.gateway.attempt(request)
            except grpc.aio.AioRpcError as error:
                refused = error.code() in REFUSED
                facts = {"code": error.code().name, "took_s": time.monotonic() - began}
                await self._journal.write("answered", n=number, answer=ERROR if refused else UNKNOWN, **facts)
                if refused or time.monotonic() > deadline:
                    return None
            else:
                facts = {"emergency_id": answer.emergency_id, "took_s": time.monotonic() - began}
                await self._journal.write("answered", n=number, answer=OK, **facts)
                return answer.emergency_id
            await asyncio.sleep(PAUSE_S)

    async def _change_camera(self, member: Member) -> Member:
        """The officer comes back with another camera while the emergency goes on; the next press is for that one."""
        spare = self._spares[member.officer_id]
        changed = Member(member.officer_id, member.radio, (spare,), member.unit_id)
        self._spares[member.officer_id] = member.camera_ids[0]
        await surely(lambda: check_in(self._world.admin, member), grpc.StatusCode.FAILED_PRECONDITION)
        await surely(lambda: check_out(self._world.admin, changed), grpc.StatusCode.FAILED_PRECONDITION)
        return changed

    async def _wait_for_camera(self, emergency_id: str) -> None:
        await self._journal.write("waited", emergency_id=emergency_id)
        acted = self._acted.setdefault(emergency_id, asyncio.Event())
        with contextlib.suppress(TimeoutError):  # the checker will say so
            await asyncio.wait_for(acted.wait(), self._patience_s)

    async def _clear(self, emergency_id: str) -> None:
        # An emergency that is not there has been lost: the checker will say so.
        await surely(lambda: self._world.clear(emergency_id), grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)
        await self._journal.write("cleared", emergency_id=emergency_id)

    async def _quietly(self, work: Awaitable[object]) -> None:
        try:
            await work
        except grpc.aio.AioRpcError as error:
            self._journal.note("not done", code=error.code().name)
