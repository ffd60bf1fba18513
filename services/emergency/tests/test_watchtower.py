"""Watchers hear of every change, whoever else comes to watch."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

from services.emergency.api import Watchtower
from services.emergency.service import EmergencyService, Seen, Viewed


class Board:
    """Stands for what the database shows: emergency → how often it has changed."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.shown: dict[str, int] = {}

    async def seen(self, lately: timedelta, *, and_open: bool, also: Sequence[str] = ()) -> list[Seen]:
        return [Seen(key, "pd", shown) for key, shown in self.shown.items()]

    async def viewed(self, ids: Sequence[str]) -> list[Viewed]:
        return [(cast(Any, SimpleNamespace(emergency_id=key, is_open=True)), []) for key in ids]


async def _next(watch: Any) -> list[str]:
    async with asyncio.timeout(10):
        return [view[0].emergency_id for view in await anext(watch)]


async def test_a_newcomer_hides_no_change_from_those_who_watch() -> None:
    board = Board()
    tower = Watchtower(cast(EmergencyService, board))
    first = tower.changes("pd")
    assert await _next(first) == []
    waiting = asyncio.create_task(_next(first))
    await asyncio.sleep(0)  # it waits now
    board.shown["e"] = 1
    assert await _next(tower.changes("pd")) == ["e"]
    assert await waiting == ["e"]


async def test_a_change_while_a_watcher_is_busy_is_not_missed() -> None:
    board = Board()
    tower = Watchtower(cast(EmergencyService, board))
    watch = tower.changes("pd")
    assert await _next(watch) == []
    looking = asyncio.create_task(tower.look())
    board.shown["e"] = 1
    board.changed.set()
    newcomer = tower.changes("pd")
    assert await _next(newcomer) == ["e"]  # so the tower has seen it, while the first watcher was elsewhere
    assert await _next(watch) == ["e"]
    looking.cancel()
