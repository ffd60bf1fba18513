"""Merkle trees as in RFC 6962 and RFC 9162, section 2.1: roots, inclusion and consistency proofs, and their checks. Pure.

A tree of n leaves is known by the hashes of its complete subtrees: the one at (level, index) covers the leaves from
index * 2^level on, 2^level of them. Whoever keeps those for all levels can prove anything in O(log n).
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

# The hash of the complete subtree at (level, index).
Node = Callable[[int, int], bytes]

EMPTY_ROOT = hashlib.sha256().digest()


class ProofError(ValueError):
    """A proof does not prove what it should; the text says what is wrong."""


def leaf_hash(leaf: bytes) -> bytes:
    """Hash of a leaf's bytes, 32 bytes."""
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of two subtrees, 32 bytes."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: all that appending needs. `edge` are the complete subtrees, the largest first."""

    def __init__(self, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        if len(edge) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} subtrees at its edge, not {len(edge)}")
        self.size, self.edge = size, list(edge)

    @classmethod
    def of(cls, node: Node, size: int) -> "Frontier":
        """The edge of a stored tree."""
        return cls(size, [node(level, index) for level, index in cls.names(size)])

    @staticmethod
    def names(size: int) -> list[tuple[int, int]]:
        """The subtrees at the edge of a tree, as (level, index)."""
        return list(_cover(0, size))

    def append(self, hashed: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Add a leaf's hash; returns what is complete now, leaf first, as (level, index, hash)."""
        index, level = self.size, 0
        self.size += 1
        yield level, index, hashed
        while index & 1:
            hashed = node_hash(self.edge.pop(), hashed)
            index, level = index >> 1, level + 1
            yield level, index, hashed
        self.edge.append(hashed)

    def root(self) -> bytes:
        """Root of the tree as it is."""
        return _fold(self.edge)


def root_of(node: Node, size: int) -> bytes:
    """Root of the first `size` leaves."""
    return _span(node, 0, size)


def inclusion(node: Node, index: int, size: int) -> list[bytes]:
    """The path that proves leaf `index` in the tree of `size` leaves, from the leaf up."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    path, since, until = [], 0, size
    while until - since > 1:
        middle = since + _split(until - since)
        if index < middle:
            path.append(_span(node, middle, until))
            until = middle
        else:
            path.append(_span(node, since, middle))
            since = middle
    return path[::-1]


def consistency(node: Node, old: int, new: int) -> list[bytes]:
    """The path that proves that the tree of `new` leaves begins with the tree of `old` ones."""
    if not 0 < old <= new:
        raise ValueError(f"no proof from {old} to {new} leaves")
    path, since, until, whole = [], 0, new, True
    while old - since != until - since:
        middle = since + _split(until - since)
        if old <= middle:
            path.append(_span(node, middle, until))
            until = middle
        else:
            path.append(_span(node, since, middle))
            since, whole = middle, False
    if not whole:
        path.append(_span(node, since, until))
    return path[::-1]


def check_inclusion(hashed: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """ProofError unless the leaf with this hash is number `index` of the tree (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        raise ProofError(f"there is no leaf {index} in a tree of {size}")
    place, last, found = index, size - 1, hashed
    for step in path:
        if last == 0:
            raise ProofError("the path is too long")
        if place & 1 or place == last:
            found = node_hash(step, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, step)
        place, last = place >> 1, last >> 1
    if last:
        raise ProofError("the path is too short")
    if found != root:
        raise ProofError(f"leaf {index} is not in the tree of {size} leaves with this root")


def check_consistency(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """ProofError unless the new tree begins with the old one (RFC 9162, 2.1.4.2). Any tree begins with the empty one."""
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} leaves cannot begin with one of {old}")
    if old in (0, new):
        if path or (old == new and old_root != new_root) or (old == 0 and old_root != EMPTY_ROOT):
            raise ProofError(f"two different trees of {old} leaves" if not path else "the path is too long")
        return
    steps = [old_root, *path] if old & (old - 1) == 0 else list(path)
    if not steps:
        raise ProofError("the path is too short")
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    first = second = steps[0]
    for step in steps[1:]:
        if last == 0:
            raise ProofError("the path is too long")
        if place & 1 or place == last:
            first, second = node_hash(step, first), node_hash(step, second)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            second = node_hash(second, step)
        place, last = place >> 1, last >> 1
    if last:
        raise ProofError("the path is too short")
    if first != old_root or second != new_root:
        raise ProofError(f"the tree of {new} leaves does not begin with that of {old}")


def _split(size: int) -> int:
    """The largest power of two below a size of at least two."""
    return 1 << (size - 1).bit_length() - 1


def _cover(since: int, until: int) -> Iterator[tuple[int, int]]:
    """The complete subtrees that make up the leaves of a subtree, the largest first."""
    while since < until:
        level = (until - since).bit_length() - 1
        yield level, since >> level
        since += 1 << level


def _fold(edge: Sequence[bytes]) -> bytes:
    if not edge:
        return EMPTY_ROOT
    *rest, found = edge
    for left in reversed(rest):
        found = node_hash(left, found)
    return found


def _span(node: Node, since: int, until: int) -> bytes:
    return _fold([node(level, index) for level, index in _cover(since, until)])
