"""Whom the relay asks: the streams service, who may send and who may watch; the evidence service, what to delete."""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import grpc
from chassis import telemetry
from chassis.clock import stamp
from chassis.errors import InvalidRequest, SightlineError, Unauthenticated, Unavailable
from chassis.identity import Machine
from chassis.names import is_uuid
from chassis.rpc import addresses, ask, connect
from chassis.settings import RpcSettings
from google.protobuf.duration_pb2 import Duration
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from sightline.evidence.v1 import shelf_link_service_pb2 as shelf_pb
from sightline.evidence.v1.shelf_link_service_pb2_grpc import ShelfLinkServiceStub
from sightline.streams.v1 import relay_link_service_pb2 as pb
from sightline.streams.v1.relay_link_service_pb2_grpc import RelayLinkServiceStub
from sightline.streams.v1.session_pb2 import GrantEndCause

from services.relay.service import Admission, Deleted, Deletion, Grant, Heard, RelayService, Served, Told

T = TypeVar("T")
_WITHIN_S, _REPORT_S, _RENEW_S, _RETRY_S = 2.0, 1.0, 10.0, 0.5
# Without any answer viewers of an emergency may watch on for so long after their lease.
_GRACE_S = 60.0
# What was served and cannot be told waits; beyond this the oldest is only in our log.
_USES_AT_MOST, _USES_AT_ONCE = 100_000, 500
_NAMES_AT_ONCE, _SEGMENTS_AT_ONCE = 1000, 400  # a request has at most 64 KiB
_REDEEMING_AT_ONCE = 8
_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,200}")


class StreamsLink:
    """Decides through the streams service. Its loops are `report`, `renew`, `tell` and `watch`; repeat each."""

    def __init__(self, target: str, rpc: RpcSettings, relay_id: str, ingest_url: str, view_url: str) -> None:
        self._target, self._rpc, self._relay_id = target, rpc, relay_id
        self._ingest_url, self._view_url = ingest_url, view_url
        self._stub = RelayLinkServiceStub(connect(target, rpc))
        self._uses: dict[str, pb.GrantUse] = {}
        self._redeeming = asyncio.Semaphore(_REDEEMING_AT_ONCE)
        self._leases: dict[str, float] = {}  # by grant, until when, on the monotonic clock
        self._news, self._served, self._again = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._draining = self._full = False

    async def admit(self, camera: Machine, session_id: str, token: str) -> Admission:
        """Whether a camera may send a session's media."""
        request = pb.AdmitRequest(
            relay_id=self._relay_id, camera_id=camera.id, agency_id=camera.agency_id, session_id=session_id, token=token
        )
        try:
            answer = await ask(self._stub.Admit, request, _WITHIN_S)
        except InvalidRequest as error:
            raise Unauthenticated(Reason.ERROR_REASON_TOKEN_INVALID, error.message) from error
        return Admission(answer.recording_id)

    async def redeem(self, token: str) -> Grant:
        """What a viewer's token stands for; it works once."""
        if not _TOKEN.fullmatch(token):  # anybody may say anything here: what cannot be a token asks nobody
            raise Unauthenticated(Reason.ERROR_REASON_TOKEN_INVALID, "this is no token")
        async with self._redeeming:
            answer = await ask(self._stub.Redeem, pb.RedeemRequest(relay_id=self._relay_id, token=token), _WITHIN_S)
        self._leases[answer.grant_id] = time.monotonic() + answer.lease.ToTimedelta().total_seconds()
        return Grant(answer.grant_id, answer.session_id)

    def served(self, served: Served) -> None:
        """A grant has ended here. Never blocks."""
        grant_id = served.grant.grant_id
        self._leases.pop(grant_id, None)
        telemetry.log().info("served", grant=grant_id, bytes=served.bytes, skipped=served.skipped, cause=served.cause)
        use = pb.GrantUse(
            grant_id=grant_id, bytes=served.bytes, skipped=served.skipped,
            last_byte_at=stamp(served.last_byte_at), ended_at=stamp(served.ended_at),
        )  # fmt: skip
        self._uses[grant_id] = use
        if len(self._uses) > _USES_AT_MOST:
            lost = self._uses.pop(next(iter(self._uses)))
            telemetry.log().error("too much waits: what a grant was served is not told", grant=lost.grant_id, bytes=lost.bytes)
        self._served.set()

    def news(self) -> None:
        """A session has begun, resumed or stopped: report at once. Never blocks."""
        self._news.set()

    # --- loops ---------------------------------------------------------------------------------------------------

    async def report(self, relay: RelayService) -> None:
        """Say that we are there and what our sessions do."""
        await _either(self._news, _REPORT_S)
        self._full = relay.is_full
        for not_kept in _batches(sorted(relay.not_kept())):
            await self._report([], not_kept)
            relay.told_not_kept(not_kept)
        for some in _batches(relay.heard()) or [[]]:
            answer = await self._report(some)
            relay.told(some, Told(frozenset(answer.over), frozenset(answer.muted)))

    async def drain(self) -> None:
        """Say that we go, so that our sessions move at once; nobody waits for an answer for long."""
        self._draining = True
        with suppress(SightlineError):
            await self._report([])

    async def _report(self, sessions: Sequence[Heard], not_kept: Sequence[str] = ()) -> pb.ReportResponse:
        request = pb.ReportRequest(
            relay_id=self._relay_id, ingest_url=self._ingest_url, view_url=self._view_url, draining=self._draining,
            full=self._full, not_kept=not_kept,
            sessions=[pb.SessionReport(session_id=s.session_id, media_age=_duration(s.media_age_s), stopped=s.stopped) for s in sessions],
        )  # fmt: skip
        answer: pb.ReportResponse = await _ask_surely(self._stub.Report, request)
        return answer

    async def renew(self, grants: Callable[[], Sequence[str]], revoke: Callable[[str, str], object]) -> None:
        """Prolong the leases of all that is served; end what must end, also when nobody can be asked for too long."""
        await _either(self._again, _RENEW_S)
        for some in _batches(list(grants())):
            await self._renew_some(some, revoke)

    async def _renew_some(self, ids: Sequence[str], revoke: Callable[[str, str], object]) -> None:
        try:
            answer = await _ask_surely(self._stub.Renew, pb.RenewRequest(relay_id=self._relay_id, grant_ids=ids))
        except SightlineError:
            self._again.set()
            for grant_id in [g for g in ids if time.monotonic() >= self._leases.get(g, 0.0) + _GRACE_S]:
                revoke(grant_id, "RELAY_LOST")
            raise
        until = time.monotonic() + answer.lease.ToTimedelta().total_seconds()
        self._leases.update((grant_id, until) for grant_id in ids if grant_id in self._leases)
        for revocation in answer.revoked:
            revoke(revocation.grant_id, _cause(revocation.cause))

    async def tell(self) -> None:
        """Tell what grants came to; what cannot be told waits."""
        await self._served.wait()
        self._served.clear()
        try:
            await self._tell_some()
        finally:
            if self._uses:
                self._served.set()

    async def tell_the_last(self) -> None:
        """What the end of this process has ended; nobody waits for an answer for long."""
        with suppress(SightlineError):
            while self._uses:
                await self._tell_some()

    async def _tell_some(self) -> None:
        uses = list(self._uses.values())[:_USES_AT_ONCE]
        await _ask_surely(self._stub.EndGrants, pb.EndGrantsRequest(relay_id=self._relay_id, uses=uses))
        for use in uses:
            self._uses.pop(use.grant_id, None)

    async def watch(self, revoke: Callable[[str, str], object]) -> None:
        """Hear of revocations from every replica, while the set of replicas stays the same."""
        there = await addresses(self._target)
        watches = [asyncio.create_task(self._watch(address, revoke), name=f"revocations of {address}") for address in there]
        try:
            while await addresses(self._target) == there:
                done, _ = await asyncio.wait(watches, timeout=_RENEW_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # raises: it never ends by itself
        finally:
            for task in watches:
                task.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    async def _watch(self, address: str, revoke: Callable[[str, str], object]) -> None:
        """For ever, also when that replica is away."""
        async with connect(address, self._rpc, spread=False) as channel:
            stub = RelayLinkServiceStub(channel)
            while True:
                with suppress(grpc.aio.AioRpcError):
                    request = pb.WatchRevocationsRequest(relay_id=self._relay_id)
                    async for response in stub.WatchRevocations(request, wait_for_ready=True):
                        if response.HasField("revocation"):
                            revoke(response.revocation.grant_id, _cause(response.revocation.cause))
                        else:
                            self._again.set()  # what ended while nobody told us
                await asyncio.sleep(_RETRY_S)


class EvidenceLink:
    """Decides through the evidence service how long recordings are kept."""

    def __init__(self, target: str, rpc: RpcSettings, relay_id: str) -> None:
        self._relay_id = relay_id
        self._stub = ShelfLinkServiceStub(connect(target, rpc))

    async def deletions(self, recordings: Sequence[str]) -> Sequence[Deletion]:
        """What shall be deleted of what is here, or should be."""
        names = [name for name in recordings if is_uuid(name)]  # a disk may have folders of its own
        request = shelf_pb.ListDeletionsRequest(relay_id=self._relay_id, recording_ids=names)
        answer = await _ask_surely(self._stub.ListDeletions, request)
        return [
            Deletion(each.recording_id, {head.segment_id: (head.piece, head.chain.hex()) for head in each.heads})
            for each in answer.deletions
        ]

    async def confirm(self, recording_id: str, deleted: Sequence[Deleted]) -> None:
        """It has been, or why not."""
        for some in _batches(deleted, _SEGMENTS_AT_ONCE) or [[]]:
            request = shelf_pb.ConfirmDeletionRequest(relay_id=self._relay_id, recording_id=recording_id, segments=map(_to_deleted, some))
            await ask(self._stub.ConfirmDeletion, request, _WITHIN_S)


def _to_deleted(deleted: Deleted) -> shelf_pb.DeletedSegment:
    last = deleted.last
    return shelf_pb.DeletedSegment(
        segment_id=deleted.segment_id,
        result=shelf_pb.DeletionResult.Value(f"DELETION_RESULT_{deleted.fate}"),
        pieces=last.n + 1 if last else 0,
        bytes=last.offset + last.length if last else 0,
        chain=bytes.fromhex(last.chain) if last else b"",
        deleted_at=stamp(deleted.at),
    )


def _batches(items: Sequence[T], at_once: int = _NAMES_AT_ONCE) -> list[Sequence[T]]:
    return [items[at : at + at_once] for at in range(0, len(items), at_once)]


async def _either(event: asyncio.Event, within_s: float) -> None:
    """Wait for an event, but only so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    event.clear()


async def _ask_surely(method: Any, request: Any) -> Any:
    """One call that can only be refused by a mistake of ours: it must not end the process, and with it all recordings."""
    try:
        return await ask(method, request, _WITHIN_S)
    except Unavailable:
        raise
    except SightlineError as error:
        telemetry.log().error("refused", why=str(error))
        raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, str(error)) from error


def _cause(cause: GrantEndCause.ValueType) -> str:
    return GrantEndCause.Name(cause).removeprefix("GRANT_END_CAUSE_") if cause in GrantEndCause.values() else "REVOKED"


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration
