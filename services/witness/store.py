"""The newest checkpoint of each log, as a file."""

import hashlib
from pathlib import Path

from chassis.files import write_surely


class Seen:
    """What the witness has signed last, by log. What is written survives a power cut before anybody hears of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self, origin: str) -> str | None:
        """The log's newest checkpoint, a signed note; None if none was seen."""
        file = self._file(origin)
        return file.read_text() if file.exists() else None

    def keep(self, origin: str, note: str) -> None:
        """Write it, whole or not at all."""
        write_surely(self._file(origin), note)

    def _file(self, origin: str) -> Path:
        return self._folder / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.txt"
