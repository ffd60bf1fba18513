"""`sightline drill`: one alarm marked as an exercise, and the time of each hop, read from its trace."""

import asyncio
import json
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

import grpc
from chassis import telemetry
from sightline.activation.v1.activation_pb2 import ActivationState
from sightline.emergency.v1 import emergency_pb2
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.streams.v1 import stream_service_pb2 as streams_pb

from tools.desk import Desk
from tools.local.stack import Stack
from tools.roster import AGENCY, check_in, check_out, member, register
from tools.simulator.camera import Camera
from tools.simulator.footage import Footage
from tools.simulator.gateway import Gateway
from tools.simulator.viewer import Viewer
from tools.world import grant_to_watch

_WITHIN_S = 15.0
# Hop → (service, part of the span's name, which end of the span counts). Hops of Kafka are missing where `reconcile` decided.
_HOPS = (
    ("gateway sends the press", "gateway", "gateway press", "start"),
    ("emergency receives it", "emergency", "EmergencyService/RaiseAlarm", "start"),
    ("registry names the holder", "registry", "RegistryService/ResolveRadio", "end"),
    ("accepted: committed and answered", "emergency", "EmergencyService/RaiseAlarm", "end"),
    ("lane reads the event", "joiner", "joiner join", "start"),
    ("lane has decided", "joiner", "joiner join", "end"),
    ("streams reads the decision", "streams", "streams-decisions read", "start"),
    ("orders leave for the camera", "streams", "streams order", "start"),
    ("camera has its orders", "gateway", "camera record", "start"),
    ("camera records", "gateway", "camera record", "end"),
    ("recording confirmed", "streams", "camera answered", "end"),
    ("relay has kept the first piece", "relay", "relay first piece", "end"),
    ("a viewer has the first picture", "gateway", "viewer first picture", "end"),
)
_BY_LANE = ("lane reads the event", "lane has decided", "streams reads the decision")


@dataclass(frozen=True)
class Hop:
    """One step of the drill; milliseconds since the press and since the step before."""

    name: str
    since_press_ms: float
    since_last_ms: float


@dataclass(frozen=True)
class Drill:
    """What a drill came to."""

    emergency_id: str
    trace_id: str
    outcome: str
    hops: tuple[Hop, ...]


async def drill(stack: Stack, number: int = 9000) -> Drill:
    """Register and check out the drill's officer, press, watch, wait for the recording, clear, check in, read the trace."""
    actor = member("drill", number)
    camera_id = actor.camera_ids[0]
    gateway = Gateway("drill", stack.ca.rpc(AGENCY, "gateway", "drill"), stack.targets["emergency"])
    async with Desk(stack, "platform-admin") as admin, Desk(stack, "supervisor") as supervisor, Footage() as footage:
        camera = Camera(camera_id, stack.ca.rpc(AGENCY, "camera", camera_id), stack.targets["streams"], footage=footage)
        await register(admin, AGENCY, [actor])
        try:
            await check_out(admin, actor)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                raise  # else: an earlier drill was cut short, and its shift goes on
        camera.power_on()
        try:
            await _until(lambda: camera.orders is not None, "the camera's link")
            with telemetry.span("drill"):
                trace_id = telemetry.trace_id()
                pressed = await gateway.send(gateway.press(actor.radio, status=emergency_pb2.ALARM_STATUS_EXERCISE))
                await _see(supervisor, pressed.emergency_id, camera_id)
            outcome = await _outcome(supervisor, pressed.emergency_id)
            ask = streams_pb.GetActivationRequest(emergency_id=pressed.emergency_id)
            by_lane = (await supervisor.call(supervisor.streams.GetActivation, ask)).decided_by.startswith("joiner")
            await supervisor.call(
                supervisor.emergency.Clear,
                pb.ClearRequest(emergency_id=pressed.emergency_id, disposition=emergency_pb2.DISPOSITION_EXERCISE),
            )
        finally:
            await camera.finish()
            await camera.power_off()
            await gateway.close()
            await check_in(admin, actor)
    return Drill(pressed.emergency_id, trace_id, outcome, await _hops(stack, trace_id, by_lane=by_lane))


async def _see(desk: Desk, emergency_id: str, camera_id: str) -> None:
    """Watch until the first picture has come."""
    with telemetry.span("viewer first picture"):
        given = await grant_to_watch(desk, emergency_id, camera_id)
        async with Viewer(given.view_url, given.token) as viewer:
            await _until(lambda: any(piece.kind == "key" for piece in viewer.pieces), "the first picture")


async def _outcome(desk: Desk, emergency_id: str) -> str:
    """Wait until the emergency service shows what the activation came to."""
    found: list[str] = []

    async def answered() -> bool:
        answer = await desk.call(desk.emergency.GetEmergency, pb.GetEmergencyRequest(emergency_id=emergency_id))
        states = [a.state for a in answer.activations if a.state != ActivationState.ACTIVATION_STATE_REQUESTED]
        found[:] = [ActivationState.Name(state).removeprefix("ACTIVATION_STATE_") for state in states]
        return bool(found)

    await _until(answered, "the activation's outcome")
    return ", ".join(found)


async def _hops(stack: Stack, trace_id: str, *, by_lane: bool) -> tuple[Hop, ...]:
    """The hops of a trace, once its last span has arrived."""
    spans: list[dict[str, Any]] = []
    hops = [hop for hop in _HOPS if by_lane or hop[0] not in _BY_LANE]

    def complete() -> bool:
        with urllib.request.urlopen(f"{stack.traces}/traces/{trace_id}", timeout=5) as answer:
            spans[:] = json.load(answer)
        return all(_time(spans, *where) is not None for _, *where in hops)

    await _until(lambda: asyncio.to_thread(complete), "the trace's spans")
    times = sorted((_time(spans, *where) or 0, name) for name, *where in hops)
    start = times[0][0]
    lasts = [start, *(at for at, _ in times)]
    return tuple(Hop(name, (at - start) / 1e6, (at - last) / 1e6) for (at, name), last in zip(times, lasts, strict=False))


def _time(spans: list[dict[str, Any]], service: str, name: str, end: str) -> int | None:
    """When a span started or ended, in ns; the earliest of several. The simulator plays gateway and camera."""
    service = "simulator" if service == "gateway" else service
    found = [span[f"{end}_ns"] for span in spans if name in span["name"] and span["service"].startswith(service)]
    return min(found, default=None)


async def _until(attempt: Any, what: str) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while True:
        answer = attempt()
        if await answer if asyncio.iscoroutine(answer) else answer:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {_WITHIN_S:.0f} s")
        await asyncio.sleep(0.05)
