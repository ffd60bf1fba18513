"""A running stack that can be broken: its processes killed, frozen, replaced by failing ones, cut off from broker and database."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from testkit import sabotage
from testkit.proxy import Proxy
from tools import world
from tools.local.process import Process, free_ports, reap, stop
from tools.local.stack import Stack, process_named, restart, serving

_LOOK_EVERY_S = 0.05
# Ten times, and more, what a process takes to start on a busy machine.
READY_WITHIN_S = 120.0
KAFKA, POSTGRES = "kafka", "postgres"


class Rig:
    """Use as an async context manager. What dies is started again at once, as a kubelet would, unless it is held down."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.deaths: dict[str, int] = {}
        self._held: set[str] = set()
        broker, proxy = stack.kafka_proxied
        self.kafka = Proxy(proxy, broker)
        self.postgres = Proxy(free_ports(1)[0], int(str(conninfo_to_dict(stack.database)["port"])))

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper  # raises what has ended it before its time

    @property
    def services(self) -> list[str]:
        """Names of all Sightline processes."""
        return list(self.stack.health)

    def process(self, name: str) -> Process:
        """A process by name, as it runs now."""
        return process_named(self.stack, name)

    def holds_down(self, name: str) -> bool:
        """Whether a process is kept from coming back."""
        return name in self._held

    async def _keep(self) -> None:
        while True:
            reap()
            for process in self.stack.processes:
                if process.name not in self._held and not process.alive():
                    self.deaths[process.name] = self.deaths.get(process.name, 0) + 1
                    await asyncio.to_thread(restart, self.stack, process.name)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def kill(self, name: str) -> None:
        """SIGKILL, also to what the process has started; it is started again, and this returns when it serves."""
        self.process(name).signal_all(signal.SIGKILL)
        await self.gone_and_back(name, self.process(name))

    async def gone_and_back(self, name: str, process: Process) -> None:
        """Wait until a process has ended and its successor serves."""
        await until(lambda: not process.alive(), f"end of {name}")
        await until(lambda: self.process(name) != process and self.process(name).alive(), f"successor of {name}")
        await self.serves(name)

    async def serves(self, name: str) -> None:
        """Wait until a process serves; brokers and databases are waited for by those who use them."""
        if name in self.stack.health:
            await world.until(lambda: asyncio.to_thread(serving, self.stack, name), f"{name} to serve", READY_WITHIN_S)

    @asynccontextmanager
    async def down(self, *names: str) -> AsyncIterator[None]:
        """Killed, and not there for the length of the body."""
        self._held.update(names)
        for name in names:
            self.process(name).signal_all(signal.SIGKILL)
            await until(lambda name=name: not self.process(name).alive(), f"end of {name}")  # type: ignore[misc]
        try:
            yield
        finally:
            self._held.difference_update(names)
        for name in names:
            await until(lambda name=name: self.process(name).alive(), f"return of {name}")  # type: ignore[misc]
            await self.serves(name)

    @asynccontextmanager
    async def frozen(self, *names: str) -> AsyncIterator[None]:
        """SIGSTOP for the length of the body: alive for the kernel, dead for everybody else."""
        for name in names:
            self.process(name).signal_all(signal.SIGSTOP)
        try:
            yield
        finally:
            for name in names:
                self.process(name).signal_all(signal.SIGCONT)

    async def terminate(self, name: str) -> None:
        """SIGTERM, as in a roll-out; the process drains, ends, and is started again."""
        process = self.process(name)
        process.signal(signal.SIGTERM)
        await self.gone_and_back(name, process)

    @asynccontextmanager
    async def otherwise(self, name: str, order: str = "", through: str | None = None, **environment: str) -> AsyncIterator[Process]:
        """Run a process with other settings for the length of the body: sabotaged if there is an order, or through a module."""
        self._held.add(name)
        await asyncio.to_thread(stop, [self.process(name)])
        more = environment | ({sabotage.VARIABLE: order} if order else {})
        process = await asyncio.to_thread(restart, self.stack, name, more, "testkit.sabotage" if order else through)
        try:
            with contextlib.suppress(TimeoutError) if order.startswith("die") else contextlib.nullcontext():
                await world.until(lambda: self._serves_or_died(process), f"{name} to serve", READY_WITHIN_S)
            yield process
        finally:
            await asyncio.to_thread(stop, [self.process(name)])
            self._held.discard(name)
            await self.gone_and_back(name, process)

    async def _serves_or_died(self, process: Process) -> bool:
        return not process.alive() or await asyncio.to_thread(serving, self.stack, process.name)

    @asynccontextmanager
    async def behind_proxies(self, name: str) -> AsyncIterator[None]:
        """Run a process that reaches broker and database only through `kafka` and `postgres`."""
        environment = {"SIGHTLINE_KAFKA_BOOTSTRAP": f"127.0.0.1:{self.kafka.port}"}
        url = self.process(name).environment.get("SIGHTLINE_DATABASE_URL")
        if url:
            environment["SIGHTLINE_DATABASE_URL"] = make_conninfo(url, port=self.postgres.port)
        async with self.kafka, self.postgres, self.otherwise(name, **environment):
            yield


async def until(attempt: Callable[[], bool], what: str, within_s: float = READY_WITHIN_S) -> None:
    """Wait for a condition."""

    async def tried() -> bool:
        return attempt()

    await world.until(tried, what, within_s)
