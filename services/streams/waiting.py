"""What waits in a replica's memory; topics and `reconcile` bring back what is lost with it."""

from collections import OrderedDict
from datetime import datetime
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Waiting(Generic[K, V]):
    """Values by name, each with the time since when it waits. Only so many: the oldest gives way."""

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
