"""Roots and proofs are those of RFC 6962, also by an implementation that is not ours; what was touched proves nothing."""

import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree, verify_consistency, verify_inclusion
from tlog.merkle import (
    EMPTY_ROOT,
    Frontier,
    ProofError,
    check_consistency,
    check_inclusion,
    consistency,
    inclusion,
    leaf_hash,
    node_hash,
    root_of,
)

# The test vectors of the Certificate Transparency project.
LEAVES = [bytes.fromhex(each) for each in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


class Stored:
    """A tree that keeps all its complete subtrees."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.hashes: dict[tuple[int, int], bytes] = {}
        self.roots = [EMPTY_ROOT]
        self.frontier = Frontier()
        for leaf in leaves:
            for level, index, hashed in self.frontier.append(leaf_hash(leaf)):
                self.hashes[level, index] = hashed
            self.roots.append(self.frontier.root())

    def node(self, level: int, index: int) -> bytes:
        return self.hashes[level, index]


def stored(size: int, seed: int = 1) -> tuple[Stored, list[bytes]]:
    leaves = [random.Random(seed * 1000 + n).randbytes(n % 40) for n in range(size)]
    return Stored(leaves), leaves


def test_the_known_roots() -> None:
    tree = Stored(LEAVES)
    assert [root.hex() for root in tree.roots[1:]] == list(ROOTS)
    assert [root_of(tree.node, size).hex() for size in range(1, 9)] == list(ROOTS)
    assert root_of(tree.node, 0) == EMPTY_ROOT


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 31, 33, 100])
def test_another_implementation_has_the_same_roots_and_takes_our_proofs(size: int) -> None:
    tree, leaves = stored(size)
    other = InmemoryTree(algorithm="sha256")
    for n, leaf in enumerate(leaves, 1):
        other.append_entry(leaf)
        assert other.get_root(n) == tree.roots[n]
    for index in range(size):
        ours = inclusion(tree.node, index, size)
        proof = other.prove_inclusion(index + 1, size)
        # Its path begins with the leaf itself.
        assert proof.path[1:] == ours
        verify_inclusion(leaf_hash(leaves[index]), tree.roots[size], proof)
    for old in range(1, size):
        proof = other.prove_consistency(old, size)
        verify_consistency(tree.roots[old], tree.roots[size], proof)


@given(st.integers(1, 200), st.data())
def test_every_leaf_is_proved_and_nothing_else(size: int, data: st.DataObject) -> None:
    tree, leaves = stored(size)
    index = data.draw(st.integers(0, size - 1))
    hashed, path, root = leaf_hash(leaves[index]), inclusion(tree.node, index, size), tree.roots[size]
    check_inclusion(hashed, index, size, path, root)
    assert len(path) <= max(1, size - 1).bit_length()
    check = partial(check_inclusion, hashed, index, size)
    wrong = [
        partial(check_inclusion, leaf_hash(b"another leaf"), index, size, path, root),
        partial(check, path, leaf_hash(b"another root")),
        partial(check, [*path, root], root),
        *([partial(check, path[:-1], root), partial(check, [*path[:-1], bytes(32)], root)] if path else []),
        partial(check_inclusion, hashed, size, size, path, root),
    ]
    if size > 1:
        wrong.append(partial(check_inclusion, hashed, (index + 1) % size, size, path, root))
    for each in wrong:
        with pytest.raises(ProofError):
            each()


@given(st.integers(1, 200), st.data())
def test_every_tree_begins_with_every_earlier_one_and_with_no_other(size: int, data: st.DataObject) -> None:
    tree, _ = stored(size)
    fork, _ = stored(size, seed=2)
    old = data.draw(st.integers(1, size))
    path = consistency(tree.node, old, size)
    check_consistency(old, tree.roots[old], size, tree.roots[size], path)
    wrong = [
        partial(check_consistency, old, fork.roots[old], size, tree.roots[size], path),
        partial(check_consistency, old, tree.roots[old], size, fork.roots[size], path),
        partial(check_consistency, old, tree.roots[old], size, tree.roots[size], [*path, bytes(32)]),
        partial(check_consistency, size + 1, tree.roots[old], size, tree.roots[size], path),
    ]
    if path:
        wrong.append(partial(check_consistency, old, tree.roots[old], size, tree.roots[size], path[:-1]))
    for each in wrong:
        if each.args[1] == tree.roots[old] and each.args[3] == tree.roots[size] and each.args[0] == old and each.args[4] == path:
            continue  # the first leaf is empty in both forks
        with pytest.raises(ProofError):
            each()


def test_any_tree_begins_with_the_empty_one() -> None:
    tree, _ = stored(5)
    check_consistency(0, EMPTY_ROOT, 5, tree.roots[5], [])
    for new, root in ((5, tree.roots[5]), (0, bytes(32))):
        with pytest.raises(ProofError):
            check_consistency(0, bytes(32), new, root, [])
    for old in (0, 6):
        with pytest.raises(ValueError, match="no proof"):
            consistency(tree.node, old, 5)
    with pytest.raises(ValueError, match="no leaf"):
        inclusion(tree.node, 5, 5)


@given(st.integers(0, 300))
def test_a_tree_grows_on_from_what_is_stored(size: int) -> None:
    tree, leaves = stored(size + 3)
    half = Stored(leaves[:size])
    again = Frontier.of(half.node, size)
    assert again.root() == tree.roots[size]
    for leaf in leaves[size:]:
        list(again.append(leaf_hash(leaf)))
    assert again.root() == tree.roots[size + 3]
    with pytest.raises(ValueError, match="subtrees"):
        Frontier(size + 1, again.edge[:0] if size else [b"", b""])


def test_a_leaf_cannot_stand_for_two_subtrees() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)
