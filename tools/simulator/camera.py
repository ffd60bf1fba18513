"""A body-worn camera: keeps its link, obeys its orders, reports what it did, remembers across reboots."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
from chassis import telemetry
from chassis.rpc import connect
from chassis.settings import RpcSettings
from sightline.activation.v1.activation_pb2 import ActivationState, RefusalReason
from sightline.streams.v1 import camera_link_service_pb2 as pb
from sightline.streams.v1.camera_link_service_pb2_grpc import CameraLinkServiceStub

_REMEMBER = timedelta(minutes=30)
_RECONNECT_S = 0.1
_boots = itertools.count(int(time.time()))
Name = tuple[str, int]


@dataclass
class Faults:
    """What is wrong with a camera."""

    asleep: bool = False
    docked: bool = False
    storage_full: bool = False
    slow_s: float = 0.0
    answers_after: asyncio.Event | None = None
    duplicate_reports: bool = False
    stutters: bool = False  # acts twice on each name: for testing checkers

    def refusal(self) -> RefusalReason.ValueType:
        """Why the camera cannot record; unspecified if it can."""
        if self.docked:
            return RefusalReason.REFUSAL_REASON_DOCKED
        if self.asleep:
            return RefusalReason.REFUSAL_REASON_ASLEEP
        return RefusalReason.REFUSAL_REASON_STORAGE_FULL if self.storage_full else RefusalReason.REFUSAL_REASON_UNSPECIFIED


@dataclass(eq=False)
class Camera:
    """One simulated camera. `starts` is its own log of every recording that it started, for checkers."""

    camera_id: str
    rpc: RpcSettings
    target: str
    faults: Faults = field(default_factory=Faults)
    recording: bool = False
    muted: bool = False
    battery_percent: int = 87
    starts: list[tuple[Name, datetime]] = field(default_factory=list)
    orders: pb.CameraOrders | None = None
    on_act: Callable[["Camera", pb.HandledOrder], None] = lambda camera, handled: None
    _handled: dict[Name, pb.HandledOrder] = field(default_factory=dict)
    _dirty: asyncio.Event = field(default_factory=asyncio.Event)
    _pending: dict[Name, asyncio.Task[None]] = field(default_factory=dict)
    _running: asyncio.Task[None] | None = None
    _boot: int = 0
    _sequence: int = 0

    def power_on(self) -> None:
        """Start, or start again after a reboot: what was handled is remembered."""
        self._boot, self._sequence = next(_boots), 0
        self._running = asyncio.create_task(self._keep_link(), name=f"camera {self.camera_id}")

    async def power_off(self) -> None:
        """Lose the link without a word."""
        for task in (self._running, *self._pending.values()):
            if task:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._running = None
        self._pending.clear()

    def changed(self) -> None:
        """Something about the camera changed: report."""
        self._dirty.set()

    async def _keep_link(self) -> None:
        async with connect(self.target, self.rpc, spread=False) as channel:
            stub = CameraLinkServiceStub(channel)
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    self._dirty.set()
                    async for response in stub.Connect(self._reports(), wait_for_ready=True):
                        self._obey(response.orders)
                await asyncio.sleep(_RECONNECT_S)

    async def _reports(self) -> AsyncIterator[pb.ConnectRequest]:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            report = self._report()
            yield pb.ConnectRequest(report=report)
            if self.faults.duplicate_reports:
                yield pb.ConnectRequest(report=report)

    def _report(self) -> pb.CameraReport:
        self._sequence += 1
        report = pb.CameraReport(
            boot_id=self._boot, sequence=self._sequence, state=self._state(), battery_percent=self.battery_percent,
            storage_free_percent=0 if self.faults.storage_full else 60, audio_muted=self.muted, firmware="sim-1.0",
        )  # fmt: skip
        report.device_time.GetCurrentTime()
        report.handled.extend(self._handled.values())
        return report

    def _state(self) -> pb.CameraState.ValueType:
        if self.faults.docked:
            return pb.CAMERA_STATE_DOCKED
        if self.faults.asleep:
            return pb.CAMERA_STATE_ASLEEP
        return pb.CAMERA_STATE_RECORDING if self.recording else pb.CAMERA_STATE_BUFFERING

    def _obey(self, orders: pb.CameraOrders) -> None:
        """Act on each name that has not been handled, within the time it has left on our own clock."""
        self.orders = orders
        now = datetime.now(UTC)
        self._handled = {n: h for n, h in self._handled.items() if now - h.device_time.ToDatetime(UTC) < _REMEMBER}
        for order in orders.record_for:
            name = (order.emergency_id, order.epoch)
            if name not in self._handled and name not in self._pending:
                until = time.monotonic() + order.time_left.ToTimedelta().total_seconds()
                self._pending[name] = asyncio.create_task(self._record(order, until))

    async def _record(self, order: pb.RecordingOrder, until: float) -> None:
        name = (order.emergency_id, order.epoch)
        with telemetry.span("camera record", parent=order.traceparent or None, attributes={"camera.id": self.camera_id}):
            await asyncio.sleep(self.faults.slow_s)
            if self.faults.answers_after:
                await self.faults.answers_after.wait()
            del self._pending[name]
            if time.monotonic() >= until:
                return  # too late to start: nobody wants a camera that wakes up long after the press
            handled = pb.HandledOrder(emergency_id=order.emergency_id, epoch=order.epoch)
            handled.refusal_reason = self.faults.refusal()
            if handled.refusal_reason:
                handled.result = ActivationState.ACTIVATION_STATE_REFUSED
            elif self.recording:
                handled.result = ActivationState.ACTIVATION_STATE_ALREADY_RECORDING
            else:
                handled.result = ActivationState.ACTIVATION_STATE_RECORDING
                self.recording = True
                self.starts.append((name, datetime.now(UTC)))
            handled.device_time.GetCurrentTime()
            self._handled[name] = handled
            self.on_act(self, handled)
            if self.faults.stutters:
                self.on_act(self, handled)
            self.changed()
