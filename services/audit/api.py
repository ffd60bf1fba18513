"""The gRPC face of the log."""

from datetime import UTC
from typing import Any

from chassis.clock import stamp
from chassis.paging import page_cursor, page_token
from chassis.rpc import caller
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.audit.v1 import audit_service_pb2 as pb
from sightline.audit.v1.audit_service_pb2_grpc import AuditServiceServicer
from sightline.audit.v1.leaf_pb2 import AuditLeaf

from services.audit.model import LEAF_VERSION, Entry, Search
from services.audit.service import AuditService

_DEFAULT_PAGE = 50


class AuditApi(AuditServiceServicer):
    """Serves sightline.audit.v1.AuditService."""

    def __init__(self, service: AuditService) -> None:
        self._service = service

    async def GetLog(self, request: pb.GetLogRequest, context: Any) -> pb.GetLogResponse:
        """How the log stands."""
        checkpoint, key, producers = await self._service.log(caller())
        states = [
            pb.ProducerState(producer=p.producer, highest=p.highest, missing=p.missing, newest_at=stamp(p.newest_at)) for p in producers
        ]
        return pb.GetLogResponse(checkpoint=checkpoint, key=key, producers=states)

    async def GetEntry(self, request: pb.GetEntryRequest, context: Any) -> pb.GetEntryResponse:
        """An entry and its proof."""
        entry, checkpoint, path = await self._service.entry(caller(), request.index)
        return pb.GetEntryResponse(entry=_entry(entry), checkpoint=checkpoint, path=path)

    async def SearchEntries(self, request: pb.SearchEntriesRequest, context: Any) -> pb.SearchEntriesResponse:
        """A page of entries."""
        size, since, until = request.page_size or _DEFAULT_PAGE, _time(request, "since"), _time(request, "until")
        search = Search(
            caller().agency_id, request.actor_id, request.target, request.action, request.emergency_id,
            since.ToDatetime(UTC) if since else None, until.ToDatetime(UTC) if until else None,
        )  # fmt: skip
        query = f"SearchEntries/{search}"
        before = page_cursor(query, request.page_token)
        found = await self._service.search(caller(), search, int(before) if before else None, size)
        response = pb.SearchEntriesResponse(entries=map(_entry, found))
        if len(found) == size:
            response.next_page_token = page_token(query, str(found[-1].index))
        return response

    async def ProveConsistency(self, request: pb.ProveConsistencyRequest, context: Any) -> pb.ProveConsistencyResponse:
        """That the log begins with what it was."""
        checkpoint, path = await self._service.prove_consistency(caller(), request.size)
        return pb.ProveConsistencyResponse(checkpoint=checkpoint, path=path)


def _time(request: pb.SearchEntriesRequest, name: str) -> Timestamp | None:
    return getattr(request, name) if request.HasField(name) else None  # type: ignore[arg-type]


def _entry(entry: Entry) -> pb.Entry:
    content = AuditLeaf.FromString(entry.leaf.removeprefix(LEAF_VERSION))
    return pb.Entry(index=entry.index, leaf=entry.leaf, content=content, personal=entry.personal)
