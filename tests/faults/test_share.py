"""CI's share of the faults, with a fixed seed: presses go on, and afterwards everybody's records must agree."""

from pathlib import Path

from testkit.trial.faults import FAULTS
from testkit.trial.rig import Rig
from testkit.trial.trial import trial

# One of each kind that is over within seconds; `make fault-nightly` runs all, again and again.
SHARE = (
    "emergency dies at a point of the path",
    "emergency frozen with what it has claimed",
    "streams cut off from the broker",
    "the broker's answers lost",
    "connections reset in a message",
    "streams killed",
    "a lane frozen for longer than its session",
    "a handler raises",
    "poison on the topics",
    "PostgreSQL killed",
    "a commit's answer lost",
    "streams terminated",
    "both lanes down",
    "Kafka killed",
)


async def test_every_kind_of_fault_breaks_no_promise(rig: Rig, tmp_path: Path, last_words: list[str]) -> None:
    chosen = [fault for fault in FAULTS if fault.name in SHARE]
    report = await trial(rig, tmp_path, seed=4, presses=200, rate=6, officers=40, faults=chosen, pause_s=0.5)
    last_words += [*report.faults, *report.lines()]
    assert len(report.faults) == len(SHARE)
    assert not report.violations, "\n".join(report.lines())
    assert report.delivered_again >= 0.05 * report.delivered
