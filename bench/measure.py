"""Numbers of one measured distance, and of processor time."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Line:
    """Milliseconds of one distance: quantiles and the longest."""

    name: str
    count: int
    p50: float
    p95: float
    p99: float
    max: float


def line(name: str, milliseconds: Sequence[float]) -> Line:
    """Sum up; all zero if there is nothing."""
    ordered = sorted(milliseconds)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0

    return Line(name, len(ordered), at(0.5), at(0.95), at(0.99), at(1.0))


def seconds_used(pid: int) -> float:
    """Processor time of a process and of those that it has started."""
    total = 0.0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total


# The distances that both the floor and the real path report, all from when the press was due.
ACCEPTED, DECIDED, COMMANDED = "press → OK (committed)", "press → decision committed", "press → command at the camera"
