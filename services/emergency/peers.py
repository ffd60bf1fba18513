"""What the emergency service asks of other services."""

import asyncio
from datetime import UTC, datetime

import grpc
from chassis import telemetry
from chassis.errors import NotFound, Unavailable
from chassis.rpc import with_trace
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from sightline.registry.v1 import registry_service_pb2 as pb
from sightline.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from services.emergency.events import to_radio
from services.emergency.model import Holder, RadioId, Subject, SubjectState

# A press does not wait longer than this for the registry's word on who held the radio.
PIN_WITHIN_S, _AGAIN_S = 0.1, 0.01


class RegistryPeer:
    """The registry over gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)

    async def holder(self, radio: RadioId, at: datetime, agency_id: str) -> Holder | None:
        """Who held the radio; None if there is no answer within the budget."""
        request = pb.ResolveRadioRequest(radio=to_radio(radio), agency_id=agency_id)
        request.at.FromDatetime(at)
        refused: list[str] = []
        try:
            async with asyncio.timeout(PIN_WITHIN_S):
                answer = await self._resolve(request, refused)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            # A name that cannot be resolved, a certificate that is not believed: no registry will ever answer, and only this tells why.
            because = f"the registry cannot be reached: {refused[-1]}" if refused else _words(error)
            telemetry.log().warning("a press goes on without its holder", because=because)
            return None
        return Holder(_subject(answer), answer.agency_known, tuple(answer.held.camera_ids))

    async def _resolve(self, request: pb.ResolveRadioRequest, refused: list[str]) -> pb.ResolveRadioResponse:
        """Ask; a replica that has just died refuses at once, and the next one may still answer in time. `refused` gets what was said."""
        while True:
            try:
                return await self._stub.ResolveRadio(request, timeout=PIN_WITHIN_S, metadata=with_trace())
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                refused.append(str(error.details()))
            await asyncio.sleep(_AGAIN_S)

    async def officer(self, officer_id: str, at: datetime) -> tuple[str, Subject]:
        """An officer's agency, and the officer as a bound subject; NotFound, or Unavailable."""
        request = pb.ResolveOfficerRequest(officer_id=officer_id)
        request.at.FromDatetime(at)
        try:
            answer = await self._stub.ResolveOfficer(request, timeout=2, metadata=with_trace())
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such officer") from error
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "the registry does not answer") from error
        agency = answer.officer.agency_id
        bound = Subject(SubjectState.BOUND, officer_id, answer.unit_id, home_agency_id=agency, camera_ids=tuple(answer.camera_ids))
        return agency, bound


def _words(error: grpc.aio.AioRpcError | TimeoutError) -> str:
    if isinstance(error, TimeoutError) or error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {PIN_WITHIN_S * 1000:.0f} ms"
    return f"{error.code().name}: {error.details()}"


def _subject(answer: pb.ResolveRadioResponse) -> Subject:
    """The pin: held, nobody or unknown, three different things."""
    if not answer.HasField("duty"):
        return Subject(SubjectState.RADIO_UNKNOWN)
    home, version = answer.duty.agency_id, answer.duty.version
    if not answer.HasField("held"):
        return Subject(SubjectState.NOBODY, duty_version=version, home_agency_id=home)
    held = answer.held
    # A registry of the release before knows only since when the interval lasts.
    start = (answer.held_since if answer.HasField("held_since") else getattr(held, "from")).ToDatetime(UTC)
    end = held.to.ToDatetime(UTC) if held.HasField("to") else None
    return Subject(SubjectState.HELD, held.officer_id, held.unit_id, version, start, end, home)
