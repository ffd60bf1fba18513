"""The HTTP face of the witness (c2sp.org/tlog-witness)."""

from aiohttp import web
from chassis.web import errors_to_json

from services.witness.model import Refused
from services.witness.service import WitnessService

_BODY = 96 * 1024  # a note has at most 64 KiB


class WitnessApi:
    """`POST /add-checkpoint`; `GET /` shows the key."""

    def __init__(self, service: WitnessService) -> None:
        self._service = service

    def app(self) -> web.Application:
        """The application."""
        app = web.Application(middlewares=[errors_to_json], client_max_size=_BODY)
        app.router.add_post("/add-checkpoint", self._add_checkpoint)
        app.router.add_get("/", self._key)
        return app

    async def _add_checkpoint(self, request: web.Request) -> web.Response:
        try:
            return web.Response(text=await self._service.cosign(await request.read()))
        except Refused as refused:
            if refused.size is not None:
                return web.Response(status=refused.status, body=f"{refused.size}\n".encode(), content_type="text/x.tlog.size")
            return web.Response(status=refused.status, text=f"{refused.why}\n")

    async def _key(self, _: web.Request) -> web.Response:
        return web.Response(text=f"{self._service.key}\n")
