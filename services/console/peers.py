"""What the console asks the services, with the person's own token: the console itself may do nothing."""

import grpc
from chassis.rpc import ask
from sightline.streams.v1 import session_service_pb2 as pb
from sightline.streams.v1.session_service_pb2_grpc import SessionServiceStub

_WITHIN_S = 5.0


class Streams:
    """The streams service over gRPC. Every question raises what it is refused with, or Unavailable."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._sessions = SessionServiceStub(channel)

    async def sessions(self, token: str, emergency_id: str) -> pb.ListSessionsResponse:
        """The sessions of an emergency's cameras."""
        request = pb.ListSessionsRequest(emergency_id=emergency_id)
        answer: pb.ListSessionsResponse = await ask(self._sessions.ListSessions, request, _WITHIN_S, _bearer(token))
        return answer

    async def watch(self, token: str, emergency_id: str, camera_id: str) -> pb.WatchCameraResponse:
        """A grant to watch, and the way to use it."""
        request = pb.WatchCameraRequest(emergency_id=emergency_id, camera_id=camera_id)
        answer: pb.WatchCameraResponse = await ask(self._sessions.WatchCamera, request, _WITHIN_S, _bearer(token))
        return answer

    async def extend(self, token: str, grant_id: str) -> pb.ExtendGrantResponse:
        """Prolong a grant."""
        request = pb.ExtendGrantRequest(grant_id=grant_id)
        answer: pb.ExtendGrantResponse = await ask(self._sessions.ExtendGrant, request, _WITHIN_S, _bearer(token))
        return answer


def _bearer(token: str) -> tuple[str, str]:
    return "authorization", f"Bearer {token}"
