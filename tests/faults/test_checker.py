"""The checker finds what a careless change would break: a bench that cannot fail proves nothing (F53)."""

from pathlib import Path

import pytest
from testkit.trial.rig import Rig
from testkit.trial.trial import trial

from tools.world import World


@pytest.mark.parametrize(
    ("seed", "bug", "service", "presses", "found"),
    [
        (11, "answer_before_commit:10", "emergency", 40, {"I1"}),
        (12, "ok_on_error:10", "emergency", 40, {"I1"}),
        (13, "skip_audit:15", "emergency", 40, {"I6"}),
        (14, "skip_audit:15", "streams", 40, {"I6"}),
        (15, "drop_record:1000", "emergency", 300, {"I6", "I9"}),
    ],
)
async def test_a_seeded_bug_is_found(rig: Rig, tmp_path: Path, seed: int, bug: str, service: str, presses: int, found: set[str]) -> None:
    # With one replica: or half of the work would go past the bug.
    async with rig.down(f"{service}-b"), rig.otherwise(f"{service}-a", f"bug:{bug}"):
        report = await trial(rig, tmp_path, seed=seed, presses=presses, rate=12, officers=30, patience_s=5, settled_within_s=20)
    assert {v.invariant for v in report.violations} & found, "\n".join(report.lines())


async def test_a_camera_that_starts_twice_is_found(rig: Rig, tmp_path: Path) -> None:
    def stutter(world: World) -> None:
        for camera in world.cameras.values():
            camera.faults.stutters = True

    report = await trial(rig, tmp_path, seed=2, presses=20, rate=10, officers=20, prepare=stutter)
    assert {v.invariant for v in report.violations} == {"I2"}, "\n".join(report.lines())


async def test_without_a_bug_nothing_is_found(rig: Rig, tmp_path: Path) -> None:
    report = await trial(rig, tmp_path, seed=3, presses=60, rate=10, officers=30)
    assert not report.violations, "\n".join(report.lines())
    assert report.starts >= report.presses * 0.8
    assert report.delivered_again
