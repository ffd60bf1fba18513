"""A tree that is recomputed says what is not as it was, and one change is one finding."""

import random

import pytest
from tlog.merkle import Frontier, leaf_hash
from tlog.verify import Finding, Recomputed


def grown(size: int) -> tuple[list[bytes], dict[tuple[int, int], bytes], dict[int, bytes]]:
    """Hashes of leaves, all nodes, and the root of each size."""
    hashes, frontier = [leaf_hash(b"%d" % n) for n in range(size)], Frontier()
    nodes: dict[tuple[int, int], bytes] = {}
    roots: dict[int, bytes] = {}
    for hashed in hashes:
        nodes |= {(level, index): each for level, index, each in frontier.append(hashed)}
        roots[frontier.size] = frontier.root()
    return hashes, nodes, roots


def findings(hashes: list[bytes | None], nodes: dict[tuple[int, int], bytes] | None, roots: dict[int, bytes]) -> list[Finding]:
    tree = Recomputed()
    found: list[Finding] = []
    for hashed in hashes:
        found += tree.add(hashed, nodes)
        if wrong := tree.anchor(roots[tree.size]) if tree.size in roots else None:
            found.append(wrong)
    return found


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 33])
def test_what_is_whole_has_no_findings(size: int) -> None:
    hashes, nodes, roots = grown(size)
    assert findings(list(hashes), nodes, roots) == []
    assert findings(list(hashes), None, roots) == []


def test_one_change_is_one_finding_at_its_place() -> None:
    dice = random.Random(6)
    hashes, nodes, roots = grown(100)
    for _ in range(200):
        at = dice.randrange(100)
        changed: list[bytes | None] = list(hashes)
        changed[at] = dice.choice([dice.randbytes(32), None])
        [found] = findings(changed, nodes, roots)
        assert (found.since, found.until) == (at, at + 1)
        level, index = dice.choice([name for name in nodes if name[0] > 0])
        for there in ({(level, index): dice.randbytes(32)}, {}):
            others = {name: each for name, each in nodes.items() if name != (level, index)} | there
            [found] = findings(list(hashes), others, roots)
            assert (found.since, found.until) == (index << level, index + 1 << level)
        [found] = findings(list(hashes), nodes | {(0, at): dice.randbytes(32)}, roots)
        assert (found.since, found.until) == (at, at + 1)


def test_without_the_tree_a_change_lies_between_two_checkpoints() -> None:
    hashes, _, roots = grown(100)
    changed: list[bytes | None] = list(hashes)
    changed[57] = bytes(32)
    assert findings(changed, None, {size: roots[size] for size in (10, 50, 60, 100)}) == [
        Finding(50, 60, "the tree of 60 leaves is not the one that was signed")
    ]
    assert str(Finding(50, 60, "x")) == "leaves 50 to 59: x"
    changed[57] = None
    assert [str(each) for each in findings(changed, None, roots)] == ["leaf 57: it is missing"]
