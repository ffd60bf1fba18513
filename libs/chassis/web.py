"""HTTP for those whom gRPC does not reach: cameras' media and browsers."""

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from chassis import telemetry
from chassis.errors import Code, SightlineError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_STATUS = {
    Code.INVALID_ARGUMENT: 400, Code.UNAUTHENTICATED: 401, Code.PERMISSION_DENIED: 403, Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409, Code.FAILED_PRECONDITION: 409, Code.ABORTED: 409, Code.RESOURCE_EXHAUSTED: 413, Code.UNAVAILABLE: 503,
}  # fmt: skip


@web.middleware
async def errors_to_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal is JSON with the same reasons as in gRPC; a defect of ours says no more than its trace."""
    try:
        return await handler(request)
    except SightlineError as error:
        return refusal(_STATUS.get(error.code, 500), error.reason, error.message, error.metadata)
    except TimeoutError as error:
        return refusal(408, "TRY_AGAIN", str(error), {})
    except (web.HTTPException, ConnectionResetError):
        raise
    except Exception:
        telemetry.log().exception("a request failed", path=request.path)
        return refusal(500, "INTERNAL", f"internal error; trace {telemetry.trace_id()}", {})


def refusal(status: int, reason: str, message: str, metadata: Any) -> web.Response:
    """A refusal as JSON. The body may not have been read to its end, so the connection is of no more use."""
    content = {"reason": reason, "message": message, "metadata": dict(metadata)}
    return web.json_response(content, status=status, headers={"Connection": "close"})


def server_tls(cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext | None:
    """For browsers, which have no certificates; None without one: something before us ends TLS."""
    if cert_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert_file, key_file)
    return context


async def serve(app: web.Application, listen: str, tls: ssl.SSLContext | None) -> web.AppRunner:
    """Listen on host:port; the caller cleans the runner up."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    await web.TCPSite(runner, host, int(port), ssl_context=tls, reuse_port=False).start()
    return runner
