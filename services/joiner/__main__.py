"""Starts one lane: `python -m services.joiner`."""

import asyncio
import logging
import sys
from datetime import timedelta

import faust
import uvloop
from chassis import telemetry
from chassis.bus import Publisher, check_topics
from chassis.errors import Misconfigured
from chassis.run import health_server, wait_for
from chassis.settings import load
from contracts.topics import ACTIVATION_DECISION, EMERGENCY_EVENT, REGISTRY_DUTY
from grpc_health.v1 import health, health_pb2

from services.joiner.agents import Lane
from services.joiner.app import build, declare_table, start_over
from services.joiner.settings import JoinerSettings
from services.joiner.watchdog import Watchdog


def serve_health(app: faust.App, listen: str, watchdog: Watchdog, lane: Lane) -> None:
    """Answer grpc.health.v1 in the clear; SERVING once Faust has its partitions and has recovered its table. Ends the lane's sending."""
    servicer = health.aio.HealthServicer()

    @app.task  # type: ignore[untyped-decorator]
    async def ready() -> None:
        watchdog.recovered.set()
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        telemetry.log().info("ready")

    @app.service
    class Health(faust.Service):
        async def on_start(self) -> None:
            self.server = await health_server(servicer, listen)

        async def on_stop(self) -> None:
            await lane.close()
            await self.server.stop(0.5)


def main() -> None:
    """Read the settings and hand over to Faust."""
    settings = load(JoinerSettings)
    telemetry.setup(f"joiner-{settings.lane}", settings.replica, settings.telemetry)
    topics = (EMERGENCY_EVENT, REGISTRY_DUTY, ACTIVATION_DECISION)
    try:
        asyncio.run(wait_for("Kafka topics", lambda: check_topics(settings.kafka, topics)))
        asyncio.run(wait_for("the table's topic", lambda: asyncio.to_thread(declare_table, settings)))
    except Misconfigured as error:
        sys.exit(f"joiner: {error}")
    app = build(settings)
    watched = {topic.name: topic.partitions for topic in (EMERGENCY_EVENT, REGISTRY_DUTY)}
    watchdog = Watchdog(settings.kafka, watched, settings.stall_s, settings.recovery_s, lambda: start_over(settings))
    lane = Lane(app, settings.lane, timedelta(seconds=settings.trickle_s), watchdog.progress, Publisher(settings.kafka))
    serve_health(app, settings.health_listen, watchdog, lane)
    # Faust opens the root logger for everything and filters in the handlers: a tenth of the lane's time went into such records.
    logging.disable(logging.INFO)
    watchdog.start()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        faust.Worker(app, loop=loop, loglevel="WARNING").execute_from_commandline()
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    main()
