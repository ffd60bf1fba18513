"""The gRPC face of the log."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from chassis.clock import stamp
from chassis.errors import InvalidRequest
from chassis.paging import page_cursor, page_token
from chassis.rpc import caller
from sightline.audit.v1 import audit_service_pb2 as pb
from sightline.audit.v1.audit_service_pb2_grpc import AuditServiceServicer
from sightline.audit.v1.leaf_pb2 import AuditLeaf
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from services.audit.model import LEAF_VERSION, Entry, Search
from services.audit.service import AuditService

_DEFAULT_PAGE = 50
_PAGE_BYTES = 2 * 1024 * 1024  # an answer has at most 4 MiB, and one more entry
_INDEX = re.compile(r"[0-9]{1,18}")


class AuditApi(AuditServiceServicer):
    """Serves sightline.audit.v1.AuditService."""

    def __init__(self, service: AuditService) -> None:
        self._service = service

    async def GetLog(self, request: pb.GetLogRequest, context: Any) -> pb.GetLogResponse:
        """How the log stands."""
        log = await self._service.log(caller())
        states = [
            pb.ProducerState(producer=p.producer, highest=p.highest, missing=p.missing, newest_at=stamp(p.newest_at)) for p in log.producers
        ]
        return pb.GetLogResponse(
            checkpoint=log.checkpoint, key=log.key, producers=states, cosigned=log.cosigned, witness_keys=log.witness_keys
        )

    async def GetHealth(self, request: pb.GetHealthRequest, context: Any) -> pb.GetHealthResponse:
        """Whether the log can be relied on."""
        health = await self._service.health()
        return pb.GetHealthResponse(
            works=not health.problem, problem=health.problem, size=health.size, unsigned=health.unsigned, rechecked=health.rechecked,
            waiting=health.waiting,
        )  # fmt: skip

    async def ForgetActor(self, request: pb.ForgetActorRequest, context: Any) -> pb.ForgetActorResponse:
        """Make what the log says of an actor unreadable."""
        await self._service.forget(caller(), caller().agency_id, request.actor_id, request.reason)
        return pb.ForgetActorResponse()

    async def ReadLeaves(self, request: pb.ReadLeavesRequest, context: Any) -> AsyncIterator[pb.ReadLeavesResponse]:
        """All leaves of a range."""
        async for start, leaves in self._service.leaves(caller(), request.start, request.end):
            yield pb.ReadLeavesResponse(start=start, leaves=(pb.Leaf(hash=hashed, leaf=leaf) for hashed, leaf in leaves))

    async def WatchEntries(self, request: pb.WatchEntriesRequest, context: Any) -> AsyncIterator[pb.WatchEntriesResponse]:
        """Entries as they become provable."""
        start = request.start_index if request.HasField("start_index") else None
        async for entries, next_index in self._service.watch(caller(), start):
            yield pb.WatchEntriesResponse(entries=map(_entry, entries), next_index=next_index)

    async def GetEntry(self, request: pb.GetEntryRequest, context: Any) -> pb.GetEntryResponse:
        """An entry and its proof."""
        entry, checkpoint, path = await self._service.entry(caller(), request.index, request.size)
        return pb.GetEntryResponse(entry=_entry(entry), checkpoint=checkpoint, path=path)

    async def SearchEntries(self, request: pb.SearchEntriesRequest, context: Any) -> pb.SearchEntriesResponse:
        """A page of entries."""
        size = request.page_size or _DEFAULT_PAGE
        search = Search(
            caller().agency_id, request.actor_id, request.actor_agency_id, request.target, request.action, request.emergency_id,
            _time(request, "since"), _time(request, "until"),
        )  # fmt: skip
        query = f"SearchEntries/{search}"
        before = page_cursor(query, request.page_token)
        if before and not _INDEX.fullmatch(before):
            raise InvalidRequest(Reason.ERROR_REASON_PAGE_TOKEN_INVALID, "the page token is not one that this query gave")
        found = await self._service.search(caller(), search, int(before) if before else None, size)
        response, room = pb.SearchEntriesResponse(), _PAGE_BYTES
        for entry in found:
            response.entries.append(_entry(entry))
            room -= 2 * len(entry.leaf) + len(entry.personal)
            if room < 0:
                break
        if len(response.entries) < len(found) or len(found) == size:
            response.next_page_token = page_token(query, str(response.entries[-1].index))
        return response

    async def ProveConsistency(self, request: pb.ProveConsistencyRequest, context: Any) -> pb.ProveConsistencyResponse:
        """That the log begins with what it was."""
        checkpoint, path = await self._service.prove_consistency(caller(), request.size)
        return pb.ProveConsistencyResponse(checkpoint=checkpoint, path=path)


def _time(request: pb.SearchEntriesRequest, name: str) -> datetime | None:
    if not request.HasField(name):  # type: ignore[arg-type]
        return None
    try:
        found: datetime = getattr(request, name).ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, f"{name} is no time", violations={name: str(error)}) from error
    return found


def _entry(entry: Entry) -> pb.Entry:
    content = AuditLeaf.FromString(entry.leaf.removeprefix(LEAF_VERSION))
    return pb.Entry(index=entry.index, leaf=entry.leaf, content=content, personal=entry.personal)
