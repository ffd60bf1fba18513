"""What the console asks the services, with the person's own token: the console itself may do nothing."""

from typing import Any

import grpc
from chassis.errors import (
    REASON_PREFIX,
    AlreadyExists,
    Changed,
    Forbidden,
    InvalidRequest,
    NotFound,
    SightlineError,
    Unauthenticated,
    Unavailable,
    WrongState,
)
from chassis.rpc import reason_of, with_trace
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from sightline.streams.v1 import session_service_pb2 as pb
from sightline.streams.v1.session_service_pb2_grpc import SessionServiceStub

_WITHIN_S = 5.0
_KINDS: dict[grpc.StatusCode, type[SightlineError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.ABORTED: Changed,
}


class Streams:
    """The streams service over gRPC. Every question raises what it is refused with, or Unavailable."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._sessions = SessionServiceStub(channel)

    async def sessions(self, token: str, emergency_id: str) -> pb.ListSessionsResponse:
        """The sessions of an emergency's cameras."""
        answer: pb.ListSessionsResponse = await _ask(self._sessions.ListSessions, pb.ListSessionsRequest(emergency_id=emergency_id), token)
        return answer

    async def watch(self, token: str, emergency_id: str, camera_id: str) -> pb.WatchCameraResponse:
        """A grant to watch, and the way to use it."""
        request = pb.WatchCameraRequest(emergency_id=emergency_id, camera_id=camera_id)
        answer: pb.WatchCameraResponse = await _ask(self._sessions.WatchCamera, request, token)
        return answer

    async def extend(self, token: str, grant_id: str) -> pb.ExtendGrantResponse:
        """Prolong a grant."""
        answer: pb.ExtendGrantResponse = await _ask(self._sessions.ExtendGrant, pb.ExtendGrantRequest(grant_id=grant_id), token)
        return answer


async def _ask(method: Any, request: Any, token: str) -> Any:
    try:
        return await method(request, timeout=_WITHIN_S, metadata=with_trace(("authorization", f"Bearer {token}")))
    except grpc.aio.AioRpcError as error:
        name = REASON_PREFIX + reason_of(error)
        known = name in dict(Reason.items())
        kind = _KINDS.get(error.code(), Unavailable) if known else Unavailable
        raise kind(Reason.Value(name) if known else Reason.ERROR_REASON_TRY_AGAIN, error.details() or error.code().name) from error
