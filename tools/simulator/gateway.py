"""A radio gateway: counts presses, and repeats each until the platform says OK."""

import asyncio
import itertools
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
from chassis import telemetry
from chassis.rpc import connect, with_trace
from chassis.settings import RpcSettings
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.emergency.v1.emergency_pb2 import ALARM_STATUS_ACTUAL, AlarmStatus
from sightline.emergency.v1.emergency_service_pb2_grpc import EmergencyServiceStub

if TYPE_CHECKING:  # exists for the type checker only
    from sightline.emergency.v1.emergency_service_pb2_grpc import EmergencyServiceAsyncStub

_ATTEMPT_S, PAUSE_S = 1.5, 0.1
# These are answers; anything else is worth repeating.
REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
_boots = itertools.count(int(time.time()))
_NAMESPACE = uuid.UUID("5f0c1a52-8a51-4f0e-9d0c-5a1d6a3b2c10")


@dataclass
class Gateway:
    """One gateway. `clock_skew` is how wrong its clock is."""

    gateway_id: str
    rpc: RpcSettings
    target: str
    clock_skew: timedelta = timedelta(0)
    boot: int = field(default_factory=lambda: next(_boots))
    _counters: dict[int, "itertools.count[int]"] = field(default_factory=dict)
    _received: dict[str, float] = field(default_factory=dict)  # when each press came, by a clock that nobody sets
    _channel: grpc.aio.Channel | None = None

    @property
    def stub(self) -> "EmergencyServiceAsyncStub":
        """The emergency service, over one channel."""
        if self._channel is None:
            self._channel = connect(self.target, self.rpc)
        return EmergencyServiceStub(self._channel)

    def now(self) -> datetime:
        """The gateway's own clock."""
        return datetime.now(UTC) + self.clock_skew

    def press(
        self,
        radio: RadioIdentity,
        *,
        counter: int | None = None,
        late: timedelta = timedelta(0),
        status: AlarmStatus.ValueType = ALARM_STATUS_ACTUAL,
    ) -> pb.RaiseAlarmRequest:
        """The request of a new press, or of the given one; `late` is how long the alarm lay at the gateway."""
        count = next(self._counters.setdefault(radio.unit_id, itertools.count(1))) if counter is None else counter
        # Derived from what was received, so that a gateway that restarts in between repeats the same request.
        request_id = uuid.uuid5(_NAMESPACE, f"{radio.wacn}/{radio.system_id}/{radio.unit_id}/{self.boot}/{count}")
        request = pb.RaiseAlarmRequest(
            request_id=str(request_id), radio=radio, press=pb.PressCounter(counter=count, boot_epoch=self.boot), status=status,
            radio_alias=f"P{radio.unit_id}".encode(), talkgroup_id=101,
        )  # fmt: skip
        request.received_at.FromDatetime(self.now() - late)
        self._received[request.request_id] = time.monotonic() - late.total_seconds()
        return request

    async def send(self, request: pb.RaiseAlarmRequest, within: timedelta = timedelta(seconds=30)) -> pb.RaiseAlarmResponse:
        """Send a press until it is taken; the last error if that takes too long, or at once if it was refused."""
        deadline = time.monotonic() + within.total_seconds()
        with telemetry.span("gateway press"):
            while True:
                try:
                    return await self.attempt(request)
                except grpc.aio.AioRpcError as error:
                    if error.code() in REFUSED or time.monotonic() > deadline:
                        raise
                await asyncio.sleep(PAUSE_S)

    async def attempt(self, request: pb.RaiseAlarmRequest) -> pb.RaiseAlarmResponse:
        """Send a press once."""
        request.sent_at.FromDatetime(self.now())
        if request.request_id in self._received:
            request.waited.FromTimedelta(timedelta(seconds=time.monotonic() - self._received[request.request_id]))
        answer: pb.RaiseAlarmResponse = await self.stub.RaiseAlarm(request, timeout=_ATTEMPT_S, metadata=with_trace())
        return answer

    async def cancel(self, request: pb.RaiseAlarmRequest, radio: RadioIdentity | None = None) -> pb.CancelAlarmResponse:
        """Cancel a press, as its own radio or (wrongly) as another."""
        cancel = pb.CancelAlarmRequest(radio=radio or request.radio, press=request.press)
        if radio is not None:
            cancel = pb.CancelAlarmRequest(radio=radio, press_request_id=request.request_id)
        return await self.stub.CancelAlarm(cancel, timeout=_ATTEMPT_S)

    async def close(self) -> None:
        """Close the channel."""
        if self._channel:
            await self._channel.close()
