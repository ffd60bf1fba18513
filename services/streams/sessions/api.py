"""The gRPC face of sessions: to relays, and to people's desks."""

from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from typing import Any

from chassis.clock import read_duration
from chassis.rpc import caller, ignored
from sightline.streams.v1 import relay_link_service_pb2 as link_pb
from sightline.streams.v1 import session_service_pb2 as pb
from sightline.streams.v1.relay_link_service_pb2_grpc import RelayLinkServiceServicer
from sightline.streams.v1.session_service_pb2_grpc import SessionServiceServicer

from services.streams.sessions.events import to_cause, to_grant, to_session
from services.streams.sessions.model import LEASE, Relay, Use
from services.streams.sessions.service import SessionsService

_AGE = timedelta(days=3660)  # of the last media: more is no time


class RelayLinkApi(RelayLinkServiceServicer):
    """Serves sightline.streams.v1.RelayLinkService."""

    def __init__(self, service: SessionsService) -> None:
        self._service = service

    async def Report(self, request: link_pb.ReportRequest, context: Any) -> link_pb.ReportResponse:
        """A relay is there, and what its sessions do."""
        ages = [(each.session_id.lower(), read_duration(each.media_age), each.stopped) for each in request.sessions]
        heard = [(session_id, age, stopped) for session_id, age, stopped in ages if age is not None and abs(age) < _AGE]
        relay = Relay(request.relay_id, request.ingest_url, request.view_url, request.draining, request.full)
        over, muted = await self._service.report(relay, heard, request.not_kept)
        left_out = len({path.partition(".")[0] for path in ignored()}) + len(ages) - len(heard)
        return link_pb.ReportResponse(over=over, muted=muted, ignored=left_out)

    async def Admit(self, request: link_pb.AdmitRequest, context: Any) -> link_pb.AdmitResponse:
        """Whether a camera may send a session's media."""
        camera = (request.agency_id, request.camera_id)
        return link_pb.AdmitResponse(recording_id=await self._service.admit(request.relay_id, camera, request.session_id, request.token))

    async def Redeem(self, request: link_pb.RedeemRequest, context: Any) -> link_pb.RedeemResponse:
        """What a viewer's token stands for."""
        grant = await self._service.redeem(request.relay_id, request.token)
        response = link_pb.RedeemResponse(grant_id=grant.grant_id, session_id=grant.session_id)
        response.lease.FromTimedelta(LEASE)
        return response

    async def Renew(self, request: link_pb.RenewRequest, context: Any) -> link_pb.RenewResponse:
        """Prolong leases."""
        over = await self._service.renew(request.relay_id, list(request.grant_ids))
        response = link_pb.RenewResponse(revoked=[link_pb.Revocation(grant_id=name, cause=to_cause(cause)) for name, cause in over])
        response.lease.FromTimedelta(LEASE)
        return response

    async def EndGrants(self, request: link_pb.EndGrantsRequest, context: Any) -> link_pb.EndGrantsResponse:
        """What grants came to."""
        uses = [
            Use(
                use.grant_id, use.bytes, use.skipped, use.last_byte_at.ToDatetime(UTC) if use.HasField("last_byte_at") else None,
                use.ended_at.ToDatetime(UTC),
            )
            for use in request.uses
        ]  # fmt: skip
        await self._service.end_grants(uses)
        return link_pb.EndGrantsResponse()

    async def WatchRevocations(
        self, request: link_pb.WatchRevocationsRequest, context: Any
    ) -> AsyncIterator[link_pb.WatchRevocationsResponse]:
        """Grants of the relay that end, as they end."""
        with self._service.watching(request.relay_id) as revocations:
            yield link_pb.WatchRevocationsResponse()
            async for grant_id, cause in revocations:
                yield link_pb.WatchRevocationsResponse(revocation=link_pb.Revocation(grant_id=grant_id, cause=to_cause(cause)))


class SessionApi(SessionServiceServicer):
    """Serves sightline.streams.v1.SessionService."""

    def __init__(self, service: SessionsService) -> None:
        self._service = service

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:
        """The sessions of an emergency's cameras."""
        return pb.ListSessionsResponse(sessions=map(to_session, await self._service.list_sessions(caller(), request.emergency_id)))

    async def WatchCamera(self, request: pb.WatchCameraRequest, context: Any) -> pb.WatchCameraResponse:
        """A grant to watch, and the way to use it."""
        grant, session, url, token = await self._service.watch(caller(), request.emergency_id, request.camera_id)
        return pb.WatchCameraResponse(grant=to_grant(grant), session=to_session(session), view_url=url, token=token)

    async def ExtendGrant(self, request: pb.ExtendGrantRequest, context: Any) -> pb.ExtendGrantResponse:
        """Prolong a grant of the caller."""
        grant, time_left = await self._service.extend(caller(), request.grant_id)
        response = pb.ExtendGrantResponse(grant=to_grant(grant))
        response.time_left.FromTimedelta(time_left)
        return response

    async def RevokeGrant(self, request: pb.RevokeGrantRequest, context: Any) -> pb.RevokeGrantResponse:
        """End a grant."""
        return pb.RevokeGrantResponse(grant=to_grant(await self._service.revoke(caller(), request.grant_id)))
