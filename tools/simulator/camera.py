"""A body-worn camera: keeps its link, obeys its orders, reports what it did, remembers across reboots."""

import asyncio
import contextlib
import itertools
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import aiohttp
import grpc
from chassis import telemetry
from chassis.rpc import connect
from chassis.settings import RpcSettings
from sightline.activation.v1.activation_pb2 import ActivationState, RefusalReason
from sightline.streams.v1 import camera_link_service_pb2 as pb
from sightline.streams.v1.camera_link_service_pb2_grpc import CameraLinkServiceStub

from tools.simulator.footage import Footage

_REMEMBER = timedelta(minutes=30)
_RECONNECT_S, _RESUME_S, _FINISH_S = 0.1, 0.2, 3.0
# What a camera keeps of the time before it recorded is sent too; at most 5 Mbit/s, so that live pictures come first.
PRE_EVENT_S, _UPLOAD_BYTES, _UPLOAD_PAUSE_S = 30.0, 32 * 1024, 0.05
Span = tuple[float, float]
# Answers of a relay after which the same session may be tried again, as its next segment.
_AGAIN = frozenset({408, 409, 500, 503})
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
    footage: Footage | None = None  # what it sees; without, it records and streams nothing
    sent: dict[str, int] = field(default_factory=dict)  # segments begun, by session
    _handled: dict[Name, pb.HandledOrder] = field(default_factory=dict)
    _dirty: asyncio.Event = field(default_factory=asyncio.Event)
    _pending: dict[Name, asyncio.Task[None]] = field(default_factory=dict)
    _running: asyncio.Task[None] | None = None
    _streams: dict[str, tuple[pb.PublishOrder, asyncio.Task[None]]] = field(default_factory=dict)
    # By session, times of the monotonic clock: until when all was sent live, and what of before and between has still to be sent.
    _sent_until: dict[str, float] = field(default_factory=dict)
    _owed: dict[str, set[Span]] = field(default_factory=dict)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _cut: bool = False
    _boot: int = 0
    _sequence: int = 0

    def power_on(self) -> None:
        """Start, or start again after a reboot: what was handled is remembered."""
        self._boot, self._sequence = next(_boots), 0
        self._running = asyncio.create_task(self._keep_link(), name=f"camera {self.camera_id}")

    async def power_off(self) -> None:
        """Lose the link without a word."""
        for task in (self._running, *self._pending.values(), *(task for _, task in self._streams.values())):
            if task:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._running = None
        self._pending.clear()
        self._streams.clear()

    def stop_recording(self) -> None:
        """The wearer ends the recording; what streams ends in order."""
        self.recording = False
        self._stopping.set()
        self.changed()

    async def finish(self) -> None:
        """The wearer ends the recording at the end of the shift: wait a moment until what streams has ended in order."""
        self.stop_recording()
        if tasks := [task for _, task in self._streams.values()]:
            await asyncio.wait(tasks, timeout=_FINISH_S)

    async def cut_media(self, until: asyncio.Event) -> None:
        """Lose the way to the relay, but not the link, until something happens; then the sessions resume."""
        orders, self._cut = self.orders, True
        self._follow(pb.CameraOrders())
        await until.wait()
        self._cut = False
        self._follow(self.orders or orders or pb.CameraOrders())

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
            storage_free_percent=0 if self.faults.storage_full else 60, audio_muted=self.muted, firmware=b"sim-1.0",
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
        if not self._cut:
            self._follow(orders)

    def _follow(self, orders: pb.CameraOrders) -> None:
        """Stream the sessions that are ordered, where they are ordered to. Begin only while we record; what ends with the recording ends
        by itself, in order.
        """
        wanted = {each.session_id: each for each in orders.publish}
        for session_id, (order, task) in list(self._streams.items()):
            if wanted.get(session_id) != order:
                task.cancel()
                del self._streams[session_id]
        for session_id, order in wanted.items():
            if session_id not in self._streams and self.footage and self.recording:
                self._streams[session_id] = order, asyncio.create_task(self._stream(order, self.footage), name=f"{self.camera_id} streams")

    async def _stream(self, order: pb.PublishOrder, footage: Footage) -> None:
        """One request a segment; the next one when that breaks. What came before, or was missed, goes beside it as a segment of its own."""
        tls = ssl.create_default_context(cafile=str(self.rpc.ca_file))
        tls.load_cert_chain(self.rpc.cert_file, self.rpc.key_file)
        headers = {"Authorization": f"Bearer {order.token}", telemetry.TRACEPARENT: order.traceparent}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=3)
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as client, asyncio.TaskGroup() as uploads:

            async def post(name: str, data: AsyncGenerator[bytes, None]) -> int:
                url = f"{order.url}/v1/sessions/{order.session_id}/segments/{name}"
                try:
                    async with client.post(url, data=data, ssl=tls) as answer:
                        return answer.status
                except (aiohttp.ClientError, OSError):
                    return 503

            owed, under_way = self._owed.setdefault(order.session_id, set()), set[Span]()

            async def catch_up(name: str, spans: set[Span]) -> None:
                under_way.update(spans)
                missed = footage.between(min(since for since, _ in spans), max(until for _, until in spans))
                if not missed or await post(name, _slowly(missed)) not in _AGAIN:
                    owed.difference_update(spans)
                under_way.difference_update(spans)

            while True:
                self.sent[order.session_id] = n = self.sent.get(order.session_id, 0) + 1
                name, now = "0000-pre" if n == 1 else f"{n:04}-late", time.monotonic()
                owed.add((self._sent_until.get(order.session_id, now - PRE_EVENT_S), now))
                uploads.create_task(catch_up(name, owed - under_way))
                if await post(f"{n:04}-live", self._media(order.session_id, footage)) not in _AGAIN:
                    return  # ended in order, or not ours: only new orders change that
                await asyncio.sleep(_RESUME_S)

    async def _media(self, session_id: str, footage: Footage) -> AsyncGenerator[bytes, None]:
        """What the camera sees, until it stops recording."""
        stream = footage.stream()
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while True:
                coming = asyncio.ensure_future(anext(stream, b""))
                await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():
                    coming.cancel()
                    await asyncio.wait({coming})
                    return
                if not coming.result():  # the link is too slow: the next segment begins at the newest keyframe
                    raise ConnectionResetError("too slow")
                yield coming.result()
                self._sent_until[session_id] = time.monotonic()
        finally:
            stopping.cancel()
            await stream.aclose()

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
                self._stopping.clear()
                self.starts.append((name, datetime.now(UTC)))
            handled.device_time.GetCurrentTime()
            self._handled[name] = handled
            self.on_act(self, handled)
            if self.orders and not self._cut:
                self._follow(self.orders)
            if self.faults.stutters:
                self.on_act(self, handled)
            self.changed()


async def _slowly(pieces: list[bytes]) -> AsyncGenerator[bytes, None]:
    data = b"".join(pieces)
    for at in range(0, len(data), _UPLOAD_BYTES):
        yield data[at : at + _UPLOAD_BYTES]
        await asyncio.sleep(_UPLOAD_PAUSE_S)
