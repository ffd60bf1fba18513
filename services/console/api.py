"""The console's HTTP face: a page, and the few questions that it asks."""

import json
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web
from chassis.errors import InvalidRequest, Unauthenticated
from chassis.web import Handler, errors_to_json
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

_PAGE = Path(__file__).parent / "page"
_FILES = {"/": "index.html", "/player.js": "player.js", "/style.css": "style.css"}
_MAX_BODY, _MAX_FIELD, _MAX_TOKEN = 4096, 100, 16 * 1024


class Streams(Protocol):
    """What the page's questions are answered from, each with the person's own token."""

    async def sessions(self, token: str, emergency_id: str) -> Message:
        """The sessions of an emergency's cameras."""
        ...

    async def watch(self, token: str, emergency_id: str, camera_id: str) -> Message:
        """A grant to watch, and the way to use it."""
        ...

    async def extend(self, token: str, grant_id: str) -> Message:
        """Prolong a grant."""
        ...


class ConsoleApi:
    """One page; its questions carry the person's access token in a header, never in a URL or a cookie."""

    def __init__(self, streams: Streams, view_sources: str) -> None:
        self._streams = streams
        # Nothing from elsewhere, nothing inline, in nobody's frame.
        self._policy = (
            f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' {view_sources}; base-uri 'none';"
            " form-action 'none'; frame-ancestors 'none'"
        )

    def app(self) -> web.Application:
        """The application."""
        app = web.Application(middlewares=[self._secured, errors_to_json], client_max_size=_MAX_BODY)
        for path, file in _FILES.items():
            app.router.add_get(path, _file(file))
        app.router.add_post("/api/sessions", self.sessions)
        app.router.add_post("/api/watch", self.watch)
        app.router.add_post("/api/extend", self.extend)
        return app

    @web.middleware
    async def _secured(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        response.headers.update(
            {
                "Content-Security-Policy": self._policy,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cross-Origin-Opener-Policy": "same-origin",
                "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
                "Cache-Control": "no-store",
            }
        )
        return response

    async def sessions(self, request: web.Request) -> web.Response:
        """{emergency_id} → the sessions of its cameras."""
        emergency_id = _texts(await _body(request), "emergency_id")
        return _json(await self._streams.sessions(_token(request), *emergency_id))

    async def watch(self, request: web.Request) -> web.Response:
        """{emergency_id, camera_id} → a grant, where to connect, and a token for it."""
        names = _texts(await _body(request), "emergency_id", "camera_id")
        return _json(await self._streams.watch(_token(request), *names))

    async def extend(self, request: web.Request) -> web.Response:
        """{grant_id} → the grant, prolonged."""
        grant_id = _texts(await _body(request), "grant_id")
        return _json(await self._streams.extend(_token(request), *grant_id))


def _file(name: str) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(_PAGE / name)

    return answer


def _token(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN or not token.isascii():
        raise Unauthenticated(Reason.ERROR_REASON_TOKEN_INVALID, "send your access token as Authorization: Bearer …")
    return token


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        content = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(Reason.ERROR_REASON_MALFORMED_REQUEST, "the body is no JSON") from error
    if not isinstance(content, dict):
        raise InvalidRequest(Reason.ERROR_REASON_MALFORMED_REQUEST, "the body is no JSON object")
    return content


def _texts(content: dict[str, Any], *names: str) -> list[str]:
    values = [content.get(name) for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_FIELD:
            raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, f"{name} is missing or no text", violations={name: "is missing"})
    return [str(value) for value in values]


def _json(message: Message) -> web.Response:
    return web.json_response(MessageToDict(message, preserving_proto_field_name=True))
