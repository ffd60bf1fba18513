"""A stack of its own, whose broker and database may be broken too."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from chassis import telemetry
from chassis.settings import TelemetrySettings
from testkit.trial.rig import Rig

from tools.local import stack as local
from tools.local.stack import Stack
from tools.world import World

_LINES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LINES] = []
    telemetry.setup("faults", "test", TelemetrySettings(log_level="error"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The numbers that the claim rests on."""
    for line in config.stash[_LINES]:
        terminalreporter.write_line(line)


@pytest.fixture
def last_words(request: pytest.FixtureRequest) -> list[str]:
    """Lines that the session shall end with."""
    return request.config.stash[_LINES]


@pytest.fixture(scope="session", name="broken_stack")
def _broken_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    data = tmp_path_factory.mktemp("stack")
    yield local.up(data, lambda text: None, extra=local.QUICK_PERIODS, proxied=True, traced=False)
    local.down(data, lambda text: None)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def rig(broken_stack: Stack) -> AsyncIterator[Rig]:
    """The stack, with somebody who starts again what dies."""
    async with Rig(broken_stack) as rig:
        yield rig


@pytest_asyncio.fixture(loop_scope="session")
async def world(rig: Rig, tmp_path: Path) -> AsyncIterator[World]:
    """A police force of the test's own, once everything serves."""
    for name in rig.services:
        await rig.serves(name)
    async with World(rig.stack, f"pd-{tmp_path.name.replace('_', '-')[:40]}".rstrip("-").lower()) as world:
        yield world
