"""What the public is told is what leaves say, whatever their order, and points at nobody."""

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from figures import FEWEST, Tally, WrongFigures, canonical, half_year, recount, statement, suppressed
from hypothesis import given
from hypothesis import strategies as st
from sightline.audit.v1.leaf_pb2 import AuditDetail, AuditLeaf
from sightline.audit.v1.record_pb2 import AuditOutcome

SINCE, UNTIL = datetime(2026, 7, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)


def leaf(action: str, at: datetime, emergency: str = "", agency: str = "pd", *, refused: bool = False, **facts: str) -> AuditLeaf:
    outcome = AuditOutcome.AUDIT_OUTCOME_REFUSED if refused else AuditOutcome.AUDIT_OUTCOME_DONE
    details = [AuditDetail(key=key, value=value) for key, value in facts.items()]
    found = AuditLeaf(action=action, agency_id=agency, emergency_id=emergency, outcome=outcome, facts=details)
    found.at.FromDatetime(at)
    return found


def emergency(n: int, status: str = "ACTUAL", disposition: str = "RESOLVED") -> list[AuditLeaf]:
    """One with a camera that starts after n tenths of a second, and shows pictures after n seconds."""
    name, at = f"e-{status}-{n}", SINCE + timedelta(days=n)
    return [
        leaf("emergency.raised", at, name, status=status, stale="False"),
        leaf("activation.outcome", at + timedelta(seconds=n / 10), name, state="RECORDING"),
        leaf("session.begun", at, name), leaf("session.live", at + timedelta(seconds=n), name),
        leaf("grant.issued", at, name), leaf("grant.redeemed", at, name),
        leaf("emergency.cleared", at + timedelta(minutes=9), name, status=status, disposition=disposition),
    ]  # fmt: skip


def counted(leaves: list[AuditLeaf]) -> dict[str, Any]:
    tally = Tally("pd", SINCE, UNTIL)
    for each in leaves:
        tally.add(each)
    return tally.figures()


def half_a_year() -> list[AuditLeaf]:
    return [
        *(each for n in range(1, 41) for each in emergency(n, disposition="FALSE_ACTIVATION" if n % 4 == 0 else "RESOLVED")),
        *(each for n in range(7) for each in emergency(n, "EXERCISE", "EXERCISE")),
        *(leaf("call.refused", SINCE, refused=True, reason="CALLER_NOT_ALLOWED") for _ in range(6)),
        *(leaf("activation.outcome", SINCE, f"e-ACTUAL-{n + 1}", state="REFUSED", refusal="DOCKED") for n in range(9)),
        *(leaf("emergency.raised", SINCE, f"x-{n}", "elsewhere-pd", status="ACTUAL") for n in range(9)),
        *(leaf("emergency.raised", SINCE - timedelta(seconds=1), f"y-{n}", status="ACTUAL") for n in range(9)),
        *(leaf("emergency.raised", UNTIL, f"z-{n}", status="ACTUAL") for n in range(9)),
    ]


def test_what_is_told_is_what_happened() -> None:
    figures = counted(half_a_year())
    tables = figures["tables"]
    assert tables["emergencies"] == {"all": 40, "too old to start a camera": 0}
    assert tables["exercises"] == {"all": 7}
    assert tables["how emergencies ended"] == {"FALSE_ACTIVATION": 10, "RESOLVED": 30}
    assert tables["cameras"] == {"started": 40, "did not start": 9}
    assert tables["why cameras did not start"] == {"DOCKED": 9}
    assert tables["reasons for watching"] == {"EMERGENCY": 40}
    assert tables["refusals"] == {"CALLER_NOT_ALLOWED": 6}
    assert figures["times"]["from press to pictures"] == {"count": 40, "median_s": 20.5, "p95_s": 38.05}
    assert figures["times"]["from press to a camera that records"] == {"count": 40, "median_s": 2.05, "p95_s": 3.81}
    assert figures["months"] == {"2026-07": 30, "2026-08": 10}


def test_the_order_of_the_leaves_changes_nothing() -> None:
    leaves = half_a_year()
    before = canonical(counted(leaves))
    for seed in range(5):
        random.Random(seed).shuffle(leaves)
        assert canonical(counted(leaves)) == before


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 60), max_size=8))
def test_no_small_count_is_told_nor_can_be_worked_out_of_a_sum(table: dict[str, int]) -> None:
    shown = suppressed(table)
    assert shown.keys() == table.keys()
    assert all(count is None or (count == table[row] and (count == 0 or count >= FEWEST)) for row, count in shown.items())
    hidden = [row for row, count in shown.items() if count is None]
    assert len(hidden) != 1 or all(count in (0, None) for count in shown.values())


def test_a_part_of_all_that_is_small_hides_itself_alone() -> None:
    leaves = [each for n in range(1, 9) for each in emergency(n)]
    leaves.append(leaf("emergency.raised", SINCE, "old", status="ACTUAL", stale="True"))
    assert counted(leaves)["tables"]["emergencies"] == {"all": 9, "too old to start a camera": None}


def test_few_times_are_not_told() -> None:
    assert counted(emergency(3))["times"]["from press to pictures"] == {"count": None, "median_s": None, "p95_s": None}


def test_whoever_has_the_leaves_finds_a_figure_that_was_touched() -> None:
    leaves = half_a_year()
    written = [b"\x01" + each.SerializeToString() for each in leaves]
    figures = canonical(counted(leaves))
    recount(written, figures)
    touched = json.loads(figures)
    touched["tables"]["how emergencies ended"]["FALSE_ACTIVATION"] = 5
    with pytest.raises(WrongFigures, match="how emergencies ended"):
        recount(written, canonical(touched))
    with pytest.raises(WrongFigures):
        recount(written[7:], figures)
    for nonsense in (b"", b"[]", b'{"agency": 1}'):
        with pytest.raises(WrongFigures, match="no figures"):
            recount(written, nonsense)


def test_a_half_year_is_two_quarters_and_nothing_else() -> None:
    assert half_year("2026H2") == (SINCE, UNTIL)
    assert half_year("2027H1")[0] == UNTIL
    for nonsense in ("2026H3", "2026Q2", "26H1", "", "２026H1"):
        with pytest.raises(ValueError, match="no half year"):
            half_year(nonsense)


def test_a_statement_is_no_checkpoint_and_names_what_it_was_counted_from() -> None:
    lines = statement(canonical(counted(half_a_year())), "log.example/audit", 321, bytes(32)).splitlines()
    assert " " in lines[0]
    assert lines[1:6] == [
        "agency pd", "since 2026-07-01T00:00:00+00:00", "until 2027-01-01T00:00:00+00:00", "log log.example/audit",
        f"checkpoint 321 {'A' * 43}=",
    ]  # fmt: skip
