"""A lane that takes its events from Faust by the hundred: `python -m bench.batched services.joiner`. What batches would bring."""

import runpy
import sys
from typing import Any

from services.joiner.agents import Lane

_TAKE, _WITHIN_S = 100, 0.02


async def _read_emergencies(self: Lane, stream: Any) -> None:
    async for events in stream.take_events(_TAKE, within=_WITHIN_S):
        for event in events:
            await self._guard(event, self._take_emergency)


if __name__ == "__main__":
    Lane._read_emergencies = _read_emergencies  # type: ignore[method-assign]
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
