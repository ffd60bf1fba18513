"""Starts one lane: `python -m services.joiner`."""

import asyncio
import sys
from datetime import timedelta

import faust
import grpc
import uvloop
from chassis import telemetry
from chassis.bus import check_topics
from chassis.errors import Misconfigured
from chassis.settings import load
from confluent_kafka import KafkaException
from contracts.topics import ACTIVATION_DECISION, EMERGENCY_EVENT, REGISTRY_DUTY
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


async def _check(settings: JoinerSettings) -> None:
    """Wait for Kafka; end if its topics are not what the join needs."""
    while True:
        try:
            return await check_topics(settings.kafka, (EMERGENCY_EVENT, REGISTRY_DUTY, ACTIVATION_DECISION))
        except Misconfigured as error:
            sys.exit(f"joiner: {error}")
        except KafkaException as error:
            telemetry.log().warning("waiting", for_="Kafka topics", because=str(error))
        await asyncio.sleep(1)


def main() -> None:
    """Read the settings and hand over to Faust."""
    settings = load(JoinerSettings)
    telemetry.setup(f"joiner-{settings.lane}", settings.replica, settings.telemetry)
    asyncio.run(_check(settings))
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
