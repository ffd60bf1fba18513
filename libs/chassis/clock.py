"""Time as a dependency."""

from datetime import UTC, datetime
from typing import Protocol

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
