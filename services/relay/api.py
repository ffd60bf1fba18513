"""The relay's HTTP face: media in over one request a segment, frames out over WebSockets.

Cameras come with their certificate (mutual TLS) and a token of the session; viewers with a token in their first message. Two
servers, because browsers have no certificates.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import WSMsgType, web
from chassis import telemetry
from chassis.errors import Forbidden, InvalidRequest, SightlineError, Unauthenticated, Unavailable
from chassis.identity import Machine, parse_machine
from chassis.names import is_uuid
from chassis.web import Handler, errors_to_json, refusal
from media.chain import Name
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from services.relay.model import Frame
from services.relay.service import RelayService, Replaced, Watch

CHUNK = 64 * 1024
# A viewer says who it is within this time; what it says is short.
_TOKEN_WITHIN_S, _MAX_MESSAGE, _PING_S, _GOODBYE_S = 5.0, 1024, 5.0, 0.25
_SEGMENT = re.compile(r"[0-9]{4}-(live|pre|late)")
# WebSocket close codes of our own: may not (any more), said nonsense, not here.
CLOSE_REVOKED, CLOSE_NONSENSE, CLOSE_NOT_HERE, CLOSE_TRY_AGAIN = 4403, 4400, 4404, 4503


@web.middleware
async def _replaced(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Replaced:
        return refusal(409, "LINK_SUPERSEDED", "a newer connection of this session has taken over, or it is over or elsewhere", {})


class IngestApi:
    """Takes segments from cameras."""

    def __init__(self, service: RelayService, trust_domain: str) -> None:
        self._service, self._trust_domain = service, trust_domain

    def app(self) -> web.Application:
        """The application for the server that asks for client certificates."""
        app = web.Application(middlewares=[errors_to_json, _replaced], client_max_size=CHUNK)
        app.router.add_post("/v1/sessions/{session}/segments/{segment}", self.post)
        return app

    async def post(self, request: web.Request) -> web.Response:
        """Keep one segment; answers when it has ended, with what it came to."""
        session, segment = request.match_info["session"], request.match_info["segment"]
        if not is_uuid(session) or not (kind := _SEGMENT.fullmatch(segment)):
            raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, "the path is /v1/sessions/<uuid>/segments/<4 digits>-live|pre|late")
        camera = self._camera(request)
        admission = await self._service.admit(camera, session, _bearer(request))
        with telemetry.span("relay ingest", parent=request.headers.get(telemetry.TRACEPARENT)):
            end = await self._service.take(Name(admission.recording_id, segment), _chunks(request), live=kind[1] == "live")
        return web.json_response({"end": end.end, "pieces": end.pieces, "bytes": end.bytes, "chain": end.chain}, status=201)

    def _camera(self, request: web.Request) -> Machine:
        certificate = (request.transport and request.transport.get_extra_info("peercert")) or {}
        uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
        machine = parse_machine(uris, self._trust_domain)
        if machine.kind != "camera":
            raise Forbidden(Reason.ERROR_REASON_CALLER_NOT_ALLOWED, "only cameras send media")
        return machine


def _bearer(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated(Reason.ERROR_REASON_TOKEN_INVALID, "send the session's token as Authorization: Bearer …")
    return token


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    while chunk := await request.content.read(CHUNK):
        yield chunk


class ViewApi:
    """Shows sessions to viewers."""

    def __init__(self, service: RelayService) -> None:
        self._service = service

    def app(self) -> web.Application:
        """The application for the server that browsers connect to."""
        app = web.Application(middlewares=[errors_to_json])
        app.router.add_get("/v1/view", self.view)
        return app

    async def view(self, request: web.Request) -> web.WebSocketResponse:
        """One viewer. First message from it: {"token": …}; then {"got": bytes of messages received in all}, now and then."""
        # Compressing compressed video took seven times the processor time (measured).
        socket = web.WebSocketResponse(compress=False, max_msg_size=_MAX_MESSAGE, heartbeat=_PING_S, timeout=2.0)
        await socket.prepare(request)
        try:
            async with asyncio.timeout(_TOKEN_WITHIN_S):
                token = _token(await socket.receive())
            async with self._service.watching(token) as watch:
                await self._serve(socket, watch)
                if watch.ended:
                    await self._cut_off(request, socket, watch.ended)
        except InvalidRequest as error:
            await socket.close(code=CLOSE_NONSENSE, message=error.message.encode()[:100])
        except (Forbidden, Unauthenticated) as error:
            await socket.close(code=CLOSE_REVOKED, message=error.reason.encode())
        except (TimeoutError, Unavailable):
            await socket.close(code=CLOSE_TRY_AGAIN)
        except SightlineError as error:
            await socket.close(code=CLOSE_NOT_HERE, message=error.reason.encode())
        return socket

    async def _cut_off(self, request: web.Request, socket: web.WebSocketResponse, cause: str) -> None:
        """Say that it is over, and do not wait for somebody who does not listen: what lies in buffers is dropped with the connection."""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            async with asyncio.timeout(_GOODBYE_S):
                await socket.close(code=CLOSE_REVOKED, message=cause.encode()[:100])
        if request.transport is not None:
            request.transport.abort()

    async def _serve(self, socket: web.WebSocketResponse, watch: Watch) -> None:
        """Send until the viewer leaves or may not watch any more; InvalidRequest if it talks nonsense."""
        listening, sending, over = (
            asyncio.create_task(work) for work in (self._listen(socket, watch), self._send(socket, watch), watch.over.wait())
        )
        try:
            # A viewer that reads nothing keeps `sending` waiting: its end must not wait with it.
            done, _ = await asyncio.wait({listening, sending, over}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except ConnectionResetError:
            return
        finally:
            for task in (listening, sending, over):
                task.cancel()
            await asyncio.gather(listening, sending, over, return_exceptions=True)

    async def _send(self, socket: web.WebSocketResponse, watch: Watch) -> None:
        while True:
            await watch.wake.wait()
            watch.wake.clear()
            if (muted := self._service.news_for(watch)) is not None:
                await socket.send_str(json.dumps({"muted": muted}))
            while (frame := self._service.next_message(watch)) is not None:
                if frame.init is not None:
                    await socket.send_str(_describe(frame, self._service.now_ms()))
                await socket.send_bytes(frame.message())

    async def _listen(self, socket: web.WebSocketResponse, watch: Watch) -> None:
        async for message in socket:
            if message.type != WSMsgType.TEXT or not watch.viewer.acknowledge(_got(message.data)):
                raise InvalidRequest(Reason.ERROR_REASON_MALFORMED_REQUEST, 'say {"got": bytes received in all}')
            watch.wake.set()


def _describe(frame: Frame, now_ms: int) -> str:
    """What a decoder must be told before an init, and our time (ms since 1970), which pictures' ages are against."""
    init = frame.init
    told = init and {"codec": init.codec, "width": init.width, "height": init.height, "audio": init.has_audio}
    return json.dumps({"init": told, "now_ms": now_ms})


def _token(message: Any) -> str:
    token = _field(message.data, "token") if message.type == WSMsgType.TEXT else None
    if not isinstance(token, str) or not token or not token.isascii():
        raise InvalidRequest(Reason.ERROR_REASON_MALFORMED_REQUEST, 'say {"token": …} first')
    return token


def _got(text: str) -> int:
    got = _field(text, "got")
    return got if isinstance(got, int) else -1


def _field(text: str, name: str) -> object:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content.get(name) if isinstance(content, dict) else None
