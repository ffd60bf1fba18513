"""What the outside world saw, one line a fact, on disk before the next step is taken."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# What a gateway knows of a press that got no answer: nothing. It may exist or not.
OK, ERROR, UNKNOWN = "ok", "error", "unknown"


class Journal:
    """An append-only file of JSON lines, each flushed to the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")
        self._writer = ThreadPoolExecutor(1, f"journal-{path.stem}")

    async def write(self, what: str, **facts: Any) -> None:
        """Return once the line is durable."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self._append, what, facts)

    def note(self, what: str, **facts: Any) -> None:
        """The same without waiting, in order with all else."""
        self._writer.submit(self._append, what, facts)

    def _append(self, what: str, facts: dict[str, Any]) -> None:
        self._file.write(json.dumps({"at": time.time(), "what": what, **facts}).encode() + b"\n")
        self._file.flush()
        os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """Write what is left."""
        self._writer.shutdown(wait=True)
        self._file.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal; one that a crash cut short is left out."""
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
