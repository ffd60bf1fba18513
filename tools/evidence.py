"""`sightline evidence verify`: the chain of recorded segments, from nothing but the files."""

import glob
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from media.chain import Verdict
from media.files import verify_file
from rich.progress import Progress

_SEPARATORS = {os.sep, "."}


class Unreadable(Exception):
    """There is nothing to check."""


@dataclass(frozen=True)
class Checked:
    """One segment and what its check has seen."""

    index: Path
    verdict: Verdict

    @property
    def result(self) -> str:
        """In words."""
        finding = self.verdict.finding
        if finding:
            return f"piece {finding.n}: {finding.what}"
        return "whole" if self.verdict.end else "whole so far; it has no end, so it is still written or was cut off"

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        verdict = self.verdict
        times = [datetime.fromtimestamp(entry.received_ms / 1000, UTC) for entry in (verdict.entries[:1] + verdict.entries[-1:])]
        span = f"{times[0]:%Y-%m-%d %H:%M:%S} to {times[-1]:%H:%M:%S} UTC" if times else ""
        name = str(verdict.name or self.index.name)
        return name, str(verdict.pieces), f"{verdict.bytes:,}", span, verdict.end or "–", self.result

    def summary(self) -> dict[str, object]:
        """For JSON."""
        verdict, finding = self.verdict, self.verdict.finding
        return {
            "file": str(self.index),
            "segment": str(verdict.name) if verdict.name else None,
            "pieces": verdict.pieces,
            "bytes": verdict.bytes,
            "chain": verdict.chain,
            "end": verdict.end or None,
            "whole": finding is None,
            "first_bad_piece": finding.n if finding else None,
            "result": self.result,
        }


def check(what: str, data: Path, anchors: Path | None, bar: Progress) -> list[Checked]:
    """Check a segment, all in a folder, or all of a session that the local stack has kept.

    Unreadable if there is none, or if the anchors are none.
    """
    known = _anchors(anchors) if anchors else {}
    path = Path(what)
    if path.exists() or _SEPARATORS & set(what):
        indexes = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path.with_suffix(".jsonl")]
    else:
        # Relays each have a folder; a session that moved has segments in several.
        indexes = sorted(data.glob(f"relay-*/{glob.escape(what)}/*.jsonl"), key=lambda index: index.name)
    if not indexes or not indexes[0].exists():
        raise Unreadable(
            f"{what}: no segment here. Name a segment (a .mp4 with its index, a .jsonl of the same name, beside it), a folder of them,"
            f" or a session that the stack in {data} has kept"
        )

    def read(media: Path) -> BinaryIO:
        return bar.open(media, "rb", description=media.stem)

    return [Checked(index, verify_file(index, known.get((index.parent.name, index.stem)), read)) for index in indexes]


def _anchors(path: Path) -> dict[tuple[str, str], dict[int, str]]:
    found: dict[tuple[str, str], dict[int, str]] = {}
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            content = json.loads(text)
            found.setdefault((content["recording_id"], content["segment_id"]), {})[int(content["n"])] = str(content["chain"])
        except (ValueError, KeyError, TypeError) as error:
            raise Unreadable(f"{path} line {number}: not an anchor: {error!r}") from error
    return found
