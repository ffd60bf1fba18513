"""Recomputes a tree from its leaves, in order, and says what is not as it was. Pure, and apart from the code that grows the tree."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice, product

from tlog.merkle import EMPTY_ROOT, node_hash

Stored = Mapping[tuple[int, int], bytes]
_CANDIDATES, _TRIES = 4, 64


@dataclass(frozen=True)
class Finding:
    """Something in the leaves from `since` to before `until` is not what it was."""

    since: int
    until: int
    what: str

    def __str__(self) -> str:
        where = f"leaf {self.since}" if self.until - self.since == 1 else f"leaves {self.since} to {self.until - 1}"
        return f"{where}: {self.what}"


class Recomputed:
    """A tree as its leaves make it, beside what is stored and signed of it.

    Where the two differ, both are candidates until what stands over them says which it was: so one change is one finding, at its place.
    """

    def __init__(self) -> None:
        self.size, self.anchored, self._is_off = 0, 0, False
        # Complete subtrees as (level, index, what their hash may be), the largest first.
        self._edge: list[tuple[int, int, tuple[bytes, ...]]] = []

    def add(self, hashed: bytes | None, stored: Stored | None = None) -> list[Finding]:
        """The next leaf's hash, None if the leaf is gone; with the `stored` hashes of all subtrees that it completes."""
        index, found = self.size, []
        there = stored.get((0, index)) if stored is not None else hashed
        self.size += 1
        if hashed is None:
            found.append(Finding(index, index + 1, "it is missing"))
        elif there is None:
            found.append(Finding(index, index + 1, "its hash is missing in the tree"))
        elif hashed != there:
            found.append(Finding(index, index + 1, "its bytes are not those that the tree was made of"))
        if hashed is None and there is None:
            self._is_off = True  # nothing says what it was
        self._edge.append((0, index, _either(there, hashed) or (bytes(32),)))
        while len(self._edge) > 1 and self._edge[-1][0] == self._edge[-2][0]:
            found += self._join(stored)
        return found

    def _join(self, stored: Stored | None) -> list[Finding]:
        (level, _, right), (_, index, left) = self._edge.pop(), self._edge.pop()
        level, index, found = level + 1, index >> 1, []
        computed = [node_hash(*halves) for halves in product(left, right)]
        there = stored.get((level, index)) if stored is not None else None
        if there in computed:
            may_be: tuple[bytes, ...] = (there,) if there else ()
        else:
            may_be = _either(there, *computed)[:_CANDIDATES]
            if stored is not None and not self._is_off:
                what = f"the tree's hash over them, ({level}, {index}), is {'not that of its halves' if there else 'missing'}"
                found.append(Finding(index << level, index + 1 << level, what))
        self._edge.append((level, index, may_be))
        return found

    def roots(self) -> Iterable[bytes]:
        """What the root of the leaves so far may be: one, unless something is not as it was."""
        if not self._edge:
            yield EMPTY_ROOT
            return
        for parts in islice(product(*(may_be for _, _, may_be in self._edge)), _TRIES):
            *rest, found = parts
            for left in reversed(rest):
                found = node_hash(left, found)
            yield found

    def anchor(self, root: bytes) -> Finding | None:
        """Compare with what was signed of the leaves so far: after a difference all later ones differ, too, and say nothing more."""
        if root in self.roots():
            self.anchored = self.size
            return None
        if self._is_off:
            return None
        self._is_off = True
        return Finding(self.anchored, self.size, f"the tree of {self.size} leaves is not the one that was signed")


def _either(*hashes: bytes | None) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(hashed for hashed in hashes if hashed))
