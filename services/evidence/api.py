"""The gRPC face of evidence: to people's desks, and to relays."""

from datetime import UTC
from typing import Any

from chassis.clock import stamp
from chassis.errors import Forbidden, InvalidRequest
from chassis.names import is_uuid
from chassis.paging import page_cursor, page_token
from chassis.rpc import caller
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from sightline.evidence.v1 import evidence_service_pb2 as pb
from sightline.evidence.v1 import shelf_link_service_pb2 as link_pb
from sightline.evidence.v1.evidence_service_pb2_grpc import EvidenceServiceServicer
from sightline.evidence.v1.recording_pb2 import Gap
from sightline.evidence.v1.recording_pb2 import RecordingState as WireState
from sightline.evidence.v1.shelf_link_service_pb2_grpc import ShelfLinkServiceServicer

from services.evidence.events import to_hold, to_recording, to_segment
from services.evidence.model import Deleted, DeletionResult, RecordingState, Segment, gaps
from services.evidence.service import EvidenceService

_DEFAULT_PAGE = 50
_RESULT = "DELETION_RESULT_"


class EvidenceApi(EvidenceServiceServicer):
    """Serves sightline.evidence.v1.EvidenceService."""

    def __init__(self, service: EvidenceService) -> None:
        self._service = service

    async def ListRecordings(self, request: pb.ListRecordingsRequest, context: Any) -> pb.ListRecordingsResponse:
        """A page of the recordings of the caller's agency."""
        agency, size = caller().agency_id, request.page_size or _DEFAULT_PAGE
        state = RecordingState(WireState.Name(request.state).removeprefix("RECORDING_STATE_")) if request.state else None
        query = f"ListRecordings/{agency}/{request.emergency_id}/{state}"
        before = page_cursor(query, request.page_token)
        if before and not is_uuid(before):
            raise InvalidRequest(Reason.ERROR_REASON_PAGE_TOKEN_INVALID, "the page token is not one that this query gave")
        found = await self._service.list_recordings(agency, before, size, request.emergency_id, state)
        response = pb.ListRecordingsResponse(recordings=map(to_recording, found))
        if len(found) == size:
            response.next_page_token = page_token(query, found[-1].recording_id)
        return response

    async def GetRecording(self, request: pb.GetRecordingRequest, context: Any) -> pb.GetRecordingResponse:
        """All that is known of a recording."""
        recording, segments, holds = await self._service.get_recording(caller(), request.recording_id)
        return pb.GetRecordingResponse(
            recording=to_recording(recording),
            segments=map(to_segment, segments),
            gaps=[Gap(**{"from": stamp(since), "until": stamp(until)}) for since, until in gaps(segments)],
            holds=map(to_hold, holds),
        )

    async def PlaceHold(self, request: pb.PlaceHoldRequest, context: Any) -> pb.PlaceHoldResponse:
        """Keep a recording."""
        recording, hold = await self._service.place_hold(caller(), request.request_id, request.recording_id, request.note)
        return pb.PlaceHoldResponse(recording=to_recording(recording), hold=to_hold(hold))

    async def ReleaseHold(self, request: pb.ReleaseHoldRequest, context: Any) -> pb.ReleaseHoldResponse:
        """End a hold."""
        recording, hold = await self._service.release_hold(caller(), request.hold_id, request.note, although_open=request.although_open)
        return pb.ReleaseHoldResponse(recording=to_recording(recording), hold=to_hold(hold))

    async def SetRetention(self, request: pb.SetRetentionRequest, context: Any) -> pb.SetRetentionResponse:
        """How long the caller's agency keeps recordings."""
        return pb.SetRetentionResponse(prolonged=await self._service.set_retention(caller(), request.days))

    async def GetRetention(self, request: pb.GetRetentionRequest, context: Any) -> pb.GetRetentionResponse:
        """How long the caller's agency keeps recordings."""
        return pb.GetRetentionResponse(days=await self._service.get_retention(caller().agency_id))


class ShelfLinkApi(ShelfLinkServiceServicer):
    """Serves sightline.evidence.v1.ShelfLinkService."""

    def __init__(self, service: EvidenceService) -> None:
        self._service = service

    async def ListDeletions(self, request: link_pb.ListDeletionsRequest, context: Any) -> link_pb.ListDeletionsResponse:
        """What a relay shall delete."""
        _check_is_relay()
        found = await self._service.deletions(request.relay_id, list(request.recording_ids))
        deletions = [link_pb.Deletion(recording_id=name, heads=map(_to_published, heads)) for name, heads in found.items()]
        return link_pb.ListDeletionsResponse(deletions=deletions)

    async def ConfirmDeletion(self, request: link_pb.ConfirmDeletionRequest, context: Any) -> link_pb.ConfirmDeletionResponse:
        """What became of a deletion."""
        _check_is_relay()
        await self._service.confirm(request.relay_id, request.recording_id, [_deleted(each) for each in request.segments])
        return link_pb.ConfirmDeletionResponse()


def _to_published(segment: Segment) -> link_pb.PublishedHead:
    return link_pb.PublishedHead(segment_id=segment.segment_id, piece=segment.pieces - 1, chain=segment.chain)


def _check_is_relay() -> None:
    """Certificates name the service, not the replica."""
    if caller().machine.id != "relay":
        raise Forbidden(Reason.ERROR_REASON_CALLER_NOT_ALLOWED, "only relays delete")


def _deleted(message: link_pb.DeletedSegment) -> Deleted:
    result = DeletionResult(link_pb.DeletionResult.Name(message.result).removeprefix(_RESULT))
    try:
        deleted_at = message.deleted_at.ToDatetime(UTC) if message.HasField("deleted_at") else None
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, f"segment {message.segment_id}: an impossible time") from error
    return Deleted(message.segment_id, result, message.pieces, message.bytes, message.chain, deleted_at)
