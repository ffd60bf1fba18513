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
