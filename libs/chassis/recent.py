"""What a process keeps in mind: what it has seen lately, so that it need not ask the database again, and what waits."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from datetime import datetime, timedelta
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A map of the newest entries; the oldest gives way. Put in only what has been committed."""

    def __init__(self, at_most: int = 100_000) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._at_most = at_most

    def get(self, key: K) -> V | None:
        """The entry, or None if it is not known any more."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep an entry."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._at_most:
            self._entries.popitem(last=False)

    def warm(self, entries: Iterable[tuple[K, V]]) -> None:
        """Keep what the database knows already, oldest first."""
        for key, value in entries:
            self.put(key, value)

    def __contains__(self, key: K) -> bool:
        return key in self._entries


class Waiting(Generic[K, V]):
    """Values by name, each with the time since when it waits. Only so many: the oldest gives way, and must be found again otherwise."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._entries: OrderedDict[K, tuple[V, datetime]] = OrderedDict()

    @property
    def is_full(self) -> bool:
        """Whether the next one would push out the oldest."""
        return len(self._entries) >= self._at_most

    def put(self, key: K, value: V, now: datetime) -> None:
        """Let a value wait; under a name that waits already it keeps its place."""
        _, since = self._entries.get(key, (value, now))
        self._entries[key] = value, since
        if len(self._entries) > self._at_most:
            self._entries.popitem(last=False)

    def get(self, key: K) -> V | None:
        """The value that waits under a name."""
        found = self._entries.get(key)
        return found[0] if found else None

    def remove(self, key: K) -> None:
        """It has been dealt with."""
        self._entries.pop(key, None)

    def since(self, before: datetime) -> list[V]:
        """Those that have waited since before a time, the longest first."""
        return [value for value, at in self._entries.values() if at <= before]

    def all(self) -> list[V]:
        """All that wait."""
        return [value for value, _ in self._entries.values()]


class Tally(Generic[K]):
    """Counts what an outsider can repeat as often as it likes: told at once is the first of a minute, of the others their number.

    Only so many keys are told apart; the number of what came on top of them is under None.
    """

    def __init__(self, at_most: int = 10_000) -> None:
        self._at_most = at_most
        self._counts: dict[K | None, tuple[datetime, int]] = {}

    def count(self, key: K, number: int, now: datetime) -> bool:
        """Count; True if this is the first of its minute, which the caller tells of."""
        name = key if key in self._counts or len(self._counts) < self._at_most else None
        is_first = name not in self._counts
        since, counted = self._counts.get(name, (now, 0))
        self._counts[name] = since, counted if is_first else counted + number
        return is_first

    def take(self, now: datetime) -> list[tuple[K | None, int]]:
        """Minutes that are over, with how much came after what was told at once; each is told once."""
        over = [key for key, (since, _) in self._counts.items() if now - since >= _MINUTE]
        return [(key, counted) for key, (_, counted) in ((key, self._counts.pop(key)) for key in over) if counted]


_MINUTE = timedelta(minutes=1)
