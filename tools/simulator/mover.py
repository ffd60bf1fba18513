"""Devices with receivers: what they know of their place goes out in batches, late after a dead zone, and comes back as an answer."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import grpc
from chassis.clock import set_seconds
from chassis.rpc import connect
from chassis.settings import RpcSettings
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.location.v1 import location_service_pb2 as pb
from sightline.location.v1.location_service_pb2_grpc import LocationServiceStub
from sightline.location.v1.position_pb2 import Device, PositionReport

from tools.simulator.city import Walker

_BATCH, _AGAIN_S, _KEPT_AT_MOST, _ZONES_S = 400, 0.3, 2000, 40.0


def radio_device(radio: RadioIdentity) -> Device:
    """A radio's receiver."""
    return Device(radio=radio)


def report(
    agency_id: str, device: Device, latitude: float, longitude: float, at: datetime | None = None, accuracy_m: float | None = 8.0
) -> PositionReport:
    """A fix of now, or of another time."""
    now = datetime.now(UTC).timestamp()
    message = PositionReport(agency_id=agency_id, device=device)
    message.fix.latitude, message.fix.longitude = latitude, longitude
    if accuracy_m is not None:
        message.fix.accuracy_m = accuracy_m
    set_seconds(message.fix.fixed_at, at.timestamp() if at else now)
    set_seconds(message.reported_at, now)
    return message


class Reporter:
    """One stream of batches, each with its answer; what is not answered is sent again on the next stream. Use as a context manager."""

    def __init__(self, rpc: RpcSettings, target: str) -> None:
        self._channel = connect(target, rpc, spread=False)
        self._call: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._call is not None:
            self._call.cancel()
        await self._channel.close()

    async def send(self, reports: Sequence[PositionReport]) -> pb.ReportPositionsResponse:
        """One batch; AioRpcError as it comes."""
        call = self._call
        if call is None or call.done():
            call = self._call = LocationServiceStub(self._channel).ReportPositions(wait_for_ready=True)
        await call.write(pb.ReportPositionsRequest(reports=reports))
        answer = await call.read()
        if not isinstance(answer, pb.ReportPositionsResponse):
            raise ConnectionError(f"the stream has ended: {await call.details()}")
        return answer

    async def surely(self, reports: Sequence[PositionReport]) -> pb.ReportPositionsResponse:
        """One batch, sent until it is answered: the second time changes nothing."""
        while True:
            try:
                return await self.send(reports)
            except (grpc.aio.AioRpcError, ConnectionError, asyncio.InvalidStateError):
                self._call = None
            await asyncio.sleep(_AGAIN_S)


@dataclass
class Mover:
    """A device that moves; in a dead zone it keeps what it would tell."""

    agency_id: str
    device: Device
    walker: Walker
    kept: list[PositionReport] = field(default_factory=list)

    def step(self, seconds: float, dice: random.Random, *, dead_zones: bool) -> list[PositionReport]:
        """Go on, and tell: nothing in a dead zone while there are some, afterwards all of it."""
        latitude, longitude = self.walker.go(seconds)
        message = report(self.agency_id, self.device, latitude + dice.gauss(0, 3e-5), longitude + dice.gauss(0, 6e-5))
        message.fix.speed_mps, message.fix.course_deg = self.walker.speed_mps, self.walker.course_deg
        self.kept.append(message)
        if dead_zones and self.walker.city.is_dead(self.walker.at):
            del self.kept[:-_KEPT_AT_MOST]
            return []
        told, self.kept = self.kept, []
        return told


async def drive(reporter: Reporter, movers: Sequence[Mover], every_s: float) -> AsyncIterator[pb.ReportPositionsResponse]:
    """For ever: all of them go on, and what they tell is sent; the answers of a turn, taken together. Dead zones come and go."""
    dice, loop = random.Random(7), asyncio.get_running_loop()  # noqa: S311
    turn = loop.time()
    while True:
        dead = int(loop.time() / _ZONES_S) % 2 == 0
        told = [message for mover in movers for message in mover.step(every_s, dice, dead_zones=dead)]
        answer = pb.ReportPositionsResponse()
        for batch in _batches(told):
            one = await reporter.surely(batch)
            answer.taken += one.taken
            answer.refused.extend(one.refused)
        yield answer
        turn += every_s
        await asyncio.sleep(max(turn - loop.time(), 0.0))


def _batches(reports: Sequence[PositionReport]) -> Iterable[Sequence[PositionReport]]:
    return (reports[start : start + _BATCH] for start in range(0, len(reports), _BATCH))
