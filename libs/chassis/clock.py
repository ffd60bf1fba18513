"""Time as a dependency. Clocks of machines are opinions: what decides something is the time of the database, which replicas share."""

import time
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


class Clock(Protocol):
    """Where a service gets the time from."""

    def now(self) -> datetime:
        """The platform's time, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The platform's time, aware, in UTC."""
        return datetime.now(UTC)


# A difference that could be the way to the other clock and back is none; one over the second is somebody's alarm.
CLOCKS_AGREE, SKEW_ALARM = timedelta(milliseconds=100), timedelta(seconds=1)


def wall_time() -> datetime:
    """What this machine's clock says now; somebody may set it at any moment."""
    return datetime.now(UTC)


@cache
def _start() -> tuple[datetime, float]:
    return wall_time(), time.monotonic()


def machine_time() -> datetime:
    """What this machine's clock said at first, and how long ago that was: no step of the clock is in it."""
    at, then = _start()
    return at + timedelta(seconds=time.monotonic() - then)


class Skew:
    """How far another clock is ahead of ours, as far as asking for its time can tell; zero until it was asked, and while they agree."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def measured(self, asked: datetime, theirs: datetime, answered: datetime) -> None:
        """It said `theirs` between our `asked` and `answered`."""
        ahead = theirs - (asked + (answered - asked) / 2)
        if abs(ahead - self.ahead) > max(CLOCKS_AGREE, (answered - asked) / 2):
            self.ahead = ahead if abs(ahead) > CLOCKS_AGREE else timedelta(0)


class PlatformClock:
    """The time of the service's database, by how long ago it was asked for; a step of this machine's clock changes nothing."""

    def __init__(self) -> None:
        self.database = Skew()

    def now(self) -> datetime:
        """The platform's time, aware, in UTC."""
        return machine_time() + self.database.ahead


def read_time(timestamp: Timestamp) -> datetime | None:
    """A stamp as a time; None if it is no time at all."""
    try:
        return timestamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        return None


def read_duration(duration: Duration) -> timedelta | None:
    """A duration as a difference of times; None if it is none."""
    try:
        return duration.ToTimedelta()
    except (ValueError, OverflowError):
        return None


def stamp(at: datetime | None) -> Timestamp | None:
    """A time's wire form; nothing for none."""
    if at is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    return timestamp


def seconds_of(timestamp: Timestamp) -> float:
    """Seconds since 1970, for where times are too many to be objects."""
    return timestamp.seconds + timestamp.nanos * 1e-9


def set_seconds(timestamp: Timestamp, at: float) -> None:
    """The other way round, to the microsecond."""
    microseconds = round(at * 1e6)
    timestamp.seconds, timestamp.nanos = microseconds // 1_000_000, microseconds % 1_000_000 * 1000
