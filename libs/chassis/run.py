"""How a service starts, waits, says that it is ready, and stops."""

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from chassis import telemetry
from chassis.audit import Audit
from chassis.bus import TRANSIENT, Topic, check_topics
from chassis.clock import SKEW_ALARM, PlatformClock, Skew, wall_time
from chassis.db import Database, migrate
from chassis.errors import Misconfigured
from chassis.settings import MIGRATION_URL, KafkaSettings, ServiceSettings, load

S = TypeVar("S", bound=ServiceSettings)
_DRAIN_S, _COMPARE_CLOCKS_S, _TOPICS_AGAIN_S = 5.0, 5.0, 2.0
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
# Objects between two looks for garbage: Python's own 700 would look many times for each batch of records.
_GARBAGE_AFTER = 50_000


class App(Generic[S]):
    """One running service: its settings, its background tasks, its health."""

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.resources = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._unready_topics: set[str] = set()
        self._health = health.aio.HealthServicer()

    def background(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run a task for the life of the service; if it ends, the process ends, for somebody to start it again."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.add(task)

    def repeat(self, name: str, every_s: float, work: Callable[[], Awaitable[None]]) -> None:
        """Run short work again and again for the life of the service; what our surroundings do to it only delays it."""

        async def loop() -> None:
            while True:
                try:
                    await work()
                except TRANSIENT as error:
                    telemetry.log().warning("waits", task=name, error=str(error))
                await asyncio.sleep(every_s)

        self.background(name, loop())

    def read(self, name: str, kafka: KafkaSettings, topics: Sequence[Topic], reading: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Read topics for the life of the service, from when they can be read: until then this reader waits, and nothing else does."""

        async def wait_and_read() -> None:
            await self.topics(kafka, topics)
            await reading()

        self.background(name, wait_and_read())

    async def topics(self, kafka: KafkaSettings, topics: Sequence[Topic]) -> None:
        """Wait until topics can be read. What somebody has to mend is an error in the log and a fact in health (`topics`) until then."""
        name, said = f"{topics[0].name} …" if topics else "", ""
        while True:
            try:
                await wait_for("Kafka topics", lambda: check_topics(kafka, topics, any_partitions=True))
                self._unready_topics.discard(name)
                await self._health.set("topics", _NOT_SERVING if self._unready_topics else _SERVING)
                return
            except Misconfigured as error:
                if str(error) != said:
                    telemetry.log().error("topics have to be mended", because=str(error))
                said = str(error)
                self._unready_topics.add(name)
                await self._health.set("topics", _NOT_SERVING)
            await asyncio.sleep(_TOPICS_AGAIN_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            telemetry.log().error("a background task ended", task=task.get_name(), error=repr(task.exception()))
            self._failed.set()

    def ship(self, database: Database, audit: Audit) -> None:
        """Publish what the database's transactions leave behind: events by its outbox, audit records, refused calls."""
        self.background("outbox sweeper", database.sweep())
        self.background("audit shipper", audit.ship())
        self.background("audit of refusals", audit.write_refusals())
        self.background("audit sign of life", audit.say_alive())

    async def keep_time(self, database: Database, clock: PlatformClock, *others: Skew) -> None:
        """Follow the database's clock, from now on. That this machine's or one of `others` is far from it is told in health (`clock`)."""
        await self._compare_clocks(database, clock, others)
        self.repeat("clock", _COMPARE_CLOCKS_S, lambda: self._compare_clocks(database, clock, others))

    async def _compare_clocks(self, database: Database, clock: PlatformClock, others: Sequence[Skew]) -> None:
        asked, theirs, answered = await database.time()
        clock.database.measured(asked, theirs, answered)
        here = theirs + (answered - asked) / 2 - wall_time()
        off = max((here, *(other.ahead for other in others)), key=abs)
        if abs(off) > SKEW_ALARM:
            telemetry.log().error("clocks disagree: run an NTP client on every machine", seconds=round(off.total_seconds(), 3))
        await self._health.set("clock", _SERVING if abs(off) <= SKEW_ALARM else _NOT_SERVING)

    async def serve_health(self, listen: str) -> None:
        """Answer grpc.health.v1 in the clear, for the kubelet; NOT_SERVING until `ready`."""
        server = await health_server(self._health, listen)
        self.resources.push_async_callback(server.stop, 0.5)

    async def ready(self) -> None:
        """Everything that this service needs has been seen to work. What is there by now is not looked at for garbage again."""
        gc.collect()
        gc.freeze()
        await self._health.set("", _SERVING)
        telemetry.log().info("ready")

    async def until_stopped(self) -> bool:
        """Wait for SIGTERM, SIGINT or a failed task; False for the last."""
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        await first_of(stopping, self._failed)
        return not self._failed.is_set()

    async def close(self) -> None:
        """Refuse new work, finish what is under way, let go of everything; bounded in time."""
        telemetry.log().info("stopping")
        await self._health.enter_graceful_shutdown()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_DRAIN_S)
        await asyncio.wait_for(self.resources.aclose(), _DRAIN_S)


async def wait_for(what: str, attempt: Callable[[], Awaitable[Any]]) -> None:
    """Repeat until it works; services start in any order, and each says what it waits for."""
    pause = 0.1
    while True:
        try:
            await attempt()
            return
        except Misconfigured:
            raise
        except Exception as error:
            telemetry.log().warning("waiting", for_=what, because=f"{type(error).__name__}: {error}"[:300])
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 2.0)


async def first_of(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def health_server(servicer: health.aio.HealthServicer, listen: str) -> grpc.aio.Server:
    """Start a plain gRPC server with nothing but health, NOT_SERVING to begin with."""
    await servicer.set("", _NOT_SERVING)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(listen)
    await server.start()
    return server


def run(name: str, kind: type[S], main: Callable[[App[S]], Coroutine[Any, Any, None]], migrations: Path | None = None) -> None:
    """Entry of every service: `python -m services.<name> [migrate]`."""
    parser = argparse.ArgumentParser(f"python -m services.{name}", description=f"Sightline's {name} service.")
    parser.add_argument("command", nargs="?", choices=["serve", "migrate"], default="serve")
    command = parser.parse_args().command
    if command == "migrate":
        _migrate(name, migrations)
        return
    settings = load(kind)
    telemetry.setup(name, settings.replica, settings.telemetry)
    tune_garbage_collector()
    try:
        ended_well = uvloop.run(_serve(settings, main))
    except Misconfigured as error:
        sys.exit(f"{name}: {error}")
    finally:
        telemetry.shutdown()
    sys.exit(0 if ended_well else 1)


def tune_garbage_collector() -> None:
    """Fewer looks for garbage; what services make is nearly all freed without."""
    gc.set_threshold(_GARBAGE_AFTER, 20, 20)


def give_way(nice: int) -> None:
    """Let whatever else wants the same processors go first.

    Where the kernel weighs sessions against each other (autogroup), niceness counts inside a session only: then ours weighs less, too.
    """
    os.nice(nice)
    if os.getsid(0) == os.getpid():  # else it is somebody else's session as well
        with contextlib.suppress(OSError):  # a kernel without
            Path("/proc/self/autogroup").write_text(str(nice))


def _migrate(name: str, migrations: Path | None) -> None:
    url = os.environ.get(MIGRATION_URL)
    if migrations is None or not url:
        sys.exit(f"{name}: set {MIGRATION_URL} to the owner's PostgreSQL URL" if migrations else f"{name} has no tables")
    migrate(url, name, migrations)


async def _serve(settings: S, main: Callable[[App[S]], Coroutine[Any, Any, None]]) -> bool:
    app = App(settings)
    try:
        starting = asyncio.create_task(main(app))
        stopped = asyncio.create_task(app.until_stopped())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            return await stopped
        starting.cancel()
        return stopped.result()
    finally:
        await app.close()
