"""What the streams service asks of other services."""

import time
from datetime import datetime
from typing import Any

import grpc
from activation import join
from chassis import telemetry
from chassis.clock import Clock, Skew, read_time
from chassis.errors import Unavailable
from chassis.rpc import with_trace
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.emergency.v1.emergency_pb2 import Emergency
from sightline.emergency.v1.emergency_service_pb2_grpc import EmergencyServiceStub
from sightline.registry.v1 import registry_service_pb2 as registry_pb
from sightline.registry.v1.duty_pb2 import DutyRecord
from sightline.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from services.streams.events import to_decision, to_known
from services.streams.model import Decision, KnownEmergency, OpenEmergency

# The rest is shorter than a turn of `reconcile`.
_WITHIN_S, _REST_S = 1.0, 0.3
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Peers:
    """The emergency service and the registry over gRPC. Every question raises Unavailable when it gets no answer."""

    def __init__(self, emergency: grpc.aio.Channel, registry: grpc.aio.Channel, clock: Clock) -> None:
        self._emergency, self._registry, self._clock = EmergencyServiceStub(emergency), RegistryServiceStub(registry), clock
        self.skew = Skew()  # of the emergency service's clock, as each look at what is open tells
        self._registry_rests_until = 0.0

    async def open_emergencies(self) -> list[OpenEmergency]:
        """All that is open."""
        found: list[OpenEmergency] = []
        request = pb.ScanOpenEmergenciesRequest()
        while True:
            asked = self._clock.now()
            page = await _ask(self._emergency.ScanOpenEmergencies, request)
            if page.HasField("now") and (theirs := read_time(page.now)):
                self.skew.measured(asked, theirs, self._clock.now())
            found += [OpenEmergency(e.emergency_id, e.version, e.epoch, e.epoch_age.ToTimedelta()) for e in page.emergencies]
            if not page.more:
                return found
            request.after_emergency_id = found[-1].emergency_id

    def here(self, at: datetime) -> datetime:
        """A time of the emergency service by our own clock: what travels is how much of it is left."""
        return at - self.skew.ahead

    async def emergency(self, emergency_id: str) -> KnownEmergency | None:
        """An emergency as its owner knows it; None if there is none."""
        found = await self._whole(emergency_id)
        return to_known(found) if found else None

    async def decide(self, emergency_id: str) -> tuple[KnownEmergency | None, Decision | None]:
        """The emergency, and what a lane would join on the registry's own answer; None if there is nothing to decide, or not yet."""
        found = await self._whole(emergency_id)
        if found is None:
            return None, None
        decision = join(found, await self._duty(found), duty_is_fresh=True)
        return to_known(found), to_decision(decision, "reconcile", found.traceparent) if decision else None

    async def _duty(self, emergency: Emergency) -> DutyRecord | None:
        """The registry's record; None without an answer, which a bound emergency does not need.

        After a failure it is left alone for a moment: a registry that hangs must not make hundreds of gaps wait one after the other.
        """
        if time.monotonic() < self._registry_rests_until:
            return None
        request = registry_pb.ResolveRadioRequest(radio=emergency.radio, at=emergency.epoch_started_at, agency_id=emergency.agency_id)
        try:
            answer = await _ask(self._registry.ResolveRadio, request)
        except _Refused:
            return None
        except Unavailable as error:
            telemetry.log().warning("the registry does not answer", emergency=emergency.emergency_id, error=str(error))
            if getattr(error.__cause__, "code", lambda: None)() in _AWAY:
                self._registry_rests_until = time.monotonic() + _REST_S
            return None
        duty: DutyRecord | None = answer.duty if answer.HasField("duty") else None
        return duty

    async def _whole(self, emergency_id: str) -> Emergency | None:
        try:
            answer = await _ask(self._emergency.GetEmergency, pb.GetEmergencyRequest(emergency_id=emergency_id))
        except _Refused:
            return None
        found: Emergency = answer.emergency
        return found


class _Refused(Exception):
    """There is no such thing."""


async def _ask(method: Any, request: Any) -> Any:
    try:
        return await method(request, timeout=_WITHIN_S, metadata=with_trace())
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            raise _Refused from error
        raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, f"a peer does not answer: {error.code().name}") from error
