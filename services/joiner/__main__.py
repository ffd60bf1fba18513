"""Starts one lane: `python -m services.joiner`."""

import asyncio
from datetime import timedelta

import faust
import grpc
import uvloop
from chassis import telemetry
from chassis.settings import load
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.joiner.agents import Lane
from services.joiner.app import build
from services.joiner.settings import JoinerSettings


def serve_health(app: faust.App, listen: str) -> None:
    """Answer grpc.health.v1 in the clear; SERVING once Faust has its partitions and has recovered its table."""
    servicer = health.aio.HealthServicer()

    @app.task  # type: ignore[untyped-decorator]
    async def ready() -> None:
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        telemetry.log().info("ready")

    @app.service
    class Health(faust.Service):
        async def on_start(self) -> None:
            await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            health_pb2_grpc.add_HealthServicer_to_server(servicer, self.server)
            self.server.add_insecure_port(listen)
            await self.server.start()

        async def on_stop(self) -> None:
            await self.server.stop(0.5)


def main() -> None:
    """Read the settings and hand over to Faust."""
    settings = load(JoinerSettings)
    telemetry.setup(f"joiner-{settings.lane}", settings.replica, settings.telemetry)
    app = build(settings)
    Lane(app, settings.lane, timedelta(seconds=settings.trickle_s))
    serve_health(app, settings.health_listen)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        faust.Worker(app, loop=loop, loglevel="WARNING").execute_from_commandline()
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    main()
