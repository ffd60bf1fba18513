"""What the streams service asks of other services."""

import grpc
from chassis.errors import Unavailable
from chassis.rpc import with_trace
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.emergency.v1.emergency_service_pb2_grpc import EmergencyServiceStub

from services.streams.events import to_known
from services.streams.model import KnownEmergency


class EmergencyPeer:
    """The emergency service over gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = EmergencyServiceStub(channel)

    async def emergency(self, emergency_id: str) -> KnownEmergency | None:
        """An emergency as its owner knows it; None if there is none; Unavailable without an answer."""
        try:
            answer = await self._stub.GetEmergency(pb.GetEmergencyRequest(emergency_id=emergency_id), timeout=1, metadata=with_trace())
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return None
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, f"the emergency service does not answer: {error.code().name}") from error
        return to_known(answer.emergency)
