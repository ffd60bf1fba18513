"""The streams service's gRPC face: camera links, and answers about cameras."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from chassis import telemetry
from chassis.clock import read_time
from chassis.names import readable
from chassis.paging import page_cursor, page_token
from chassis.rpc import caller, require_readable, settle
from sightline.activation.v1.activation_pb2 import REFUSAL_REASON_UNSPECIFIED, ActivationDecision, ActivationState, RefusalReason
from sightline.streams.v1 import camera_link_service_pb2 as link_pb
from sightline.streams.v1 import stream_service_pb2 as pb
from sightline.streams.v1.camera_link_service_pb2_grpc import CameraLinkServiceServicer
from sightline.streams.v1.stream_service_pb2_grpc import StreamServiceServicer
from uuid_utils import uuid7

from services.streams.events import to_result, to_status
from services.streams.model import Handled, Orders, Report, State
from services.streams.service import LocalLink, StreamsService

_DEFAULT_PAGE = 50
# Of what a camera says that it handled the newest are looked at, so many by their ids and so many by their places in the list.
_HANDLED = 1000
_FIRMWARE = 64  # characters


class CameraLinkApi(CameraLinkServiceServicer):
    """Serves sightline.streams.v1.CameraLinkService: one task reads reports, the other sends orders."""

    def __init__(self, service: StreamsService) -> None:
        self._service = service

    async def Connect(
        self, request_iterator: AsyncIterator[link_pb.ConnectRequest], context: Any
    ) -> AsyncIterator[link_pb.ConnectResponse]:
        """One link of one camera."""
        camera = caller().machine
        link = await self._service.open_link(camera, str(uuid7()))
        reports: asyncio.Task[None] | None = None
        orders: asyncio.Task[Orders] | None = None
        try:
            # Whatever its reports are like, a camera gets its orders first.
            yield link_pb.ConnectResponse(orders=_orders(await self._service.next_orders(link)))
            reports = asyncio.create_task(self._read(link, request_iterator))
            while not reports.done():
                orders = asyncio.create_task(self._service.next_orders(link))
                await asyncio.wait({reports, orders}, return_when=asyncio.FIRST_COMPLETED)
                if not orders.done():
                    break
                yield link_pb.ConnectResponse(orders=_orders(orders.result()))
            reports.result()  # raises what could not be read
        finally:
            for task in (reports, orders):
                if task is not None:
                    task.cancel()
            await asyncio.shield(self._service.close_link(link))

    async def _read(self, link: LocalLink, requests: AsyncIterator[link_pb.ConnectRequest]) -> None:
        async for request in requests:
            require_readable(request)
            if request.HasField("report"):
                await self._service.take_report(link.camera, _report(request.report))


class StreamApi(StreamServiceServicer):
    """Serves sightline.streams.v1.StreamService."""

    def __init__(self, service: StreamsService) -> None:
        self._service = service

    async def GetActivation(self, request: pb.GetActivationRequest, context: Any) -> pb.GetActivationResponse:
        """A decision and what it came to."""
        decision, results = await self._service.get_activation(caller(), request.emergency_id)
        return pb.GetActivationResponse(
            decision=ActivationDecision.FromString(bytes(decision["content"])),
            results=map(to_result, results),
            decided_by=decision["decided_by"],
            rejected_decisions=decision["rejected"],
        )

    async def ListCameras(self, request: pb.ListCamerasRequest, context: Any) -> pb.ListCamerasResponse:
        """A page of the caller's agency's cameras."""
        agency, size = caller().agency_id, request.page_size or _DEFAULT_PAGE
        query = f"ListCameras/{agency}"
        found = await self._service.list_cameras(agency, page_cursor(query, request.page_token), size)
        response = pb.ListCamerasResponse(next_page_token=page_token(query, found[-1].camera_id) if len(found) == size else "")
        response.cameras.extend(map(to_status, found))
        return response


def _orders(orders: Orders) -> link_pb.CameraOrders:
    message = link_pb.CameraOrders(version=orders.version, watched=orders.watched)
    message.position_interval.FromTimedelta(orders.position_interval)
    for order in orders.record_for:
        with telemetry.span("streams order", parent=order.traceparent or None):
            named = message.record_for.add(
                emergency_id=order.emergency_id, epoch=order.epoch, traceparent=telemetry.traceparent(), exercise=order.exercise
            )
        named.time_left.FromTimedelta(order.time_left)
    for session in orders.publish:
        message.publish.add(session_id=session.session_id, url=session.url, token=session.token, traceparent=session.traceparent)
    return message


def _report(message: link_pb.CameraReport) -> Report:
    """The report's model form, whatever is in it: what cannot be right is left out and named as a fault."""
    _keep_newest(message)
    faults = {re.sub(r"\[\d+\]", "", path): value for path, value in settle(message, ()).items()}
    handled: dict[tuple[str, int], Handled] = {}
    for each in map(_handled, message.handled):
        handled[each.emergency_id, each.epoch] = each
    firmware, is_whole = readable(message.firmware, _FIRMWARE)
    if not is_whole:
        faults["firmware"] = firmware
    kept = link_pb.CameraReport()
    kept.CopyFrom(message)
    kept.firmware = firmware.encode()
    del kept.handled[:]
    kept.DiscardUnknownFields()
    if kept.HasField("device_time") and read_time(kept.device_time) is None:
        faults["device_time"] = str(kept.device_time.seconds)
        kept.ClearField("device_time")
    return Report(message.boot_id, message.sequence, kept.SerializeToString(), message.audio_muted, tuple(handled.values()), faults)


def _keep_newest(message: link_pb.CameraReport) -> None:
    """Ids of emergencies are in order of time, by the platform's clock; but a faulty camera may name others."""
    if len(message.handled) > 2 * _HANDLED:
        by_id = sorted(message.handled, key=lambda each: (each.emergency_id, each.epoch))[-_HANDLED:]
        newest = [*by_id, *message.handled[-_HANDLED:]]
        del message.handled[:]
        message.handled.extend(newest)


def _handled(message: link_pb.HandledOrder) -> Handled:
    refusal = message.refusal_reason
    return Handled(
        message.emergency_id.lower(),
        message.epoch,
        State(ActivationState.Name(message.result).removeprefix("ACTIVATION_STATE_")),
        "" if refusal == REFUSAL_REASON_UNSPECIFIED else RefusalReason.Name(refusal).removeprefix("REFUSAL_REASON_"),
        read_time(message.device_time) if message.HasField("device_time") else None,
    )
