"""What a process has seen lately, so that it need not ask the database again about records that come several times."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
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
