"""The join, case by case."""

from datetime import UTC, datetime, timedelta

import pytest
from activation import join
from hypothesis import given
from hypothesis import strategies as st
from sightline.activation.v1.activation_pb2 import NoCameraReason
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.emergency.v1.emergency_pb2 import EMERGENCY_STATE_CLEARED, EMERGENCY_STATE_OPEN, Emergency, SubjectState
from sightline.registry.v1.duty_pb2 import DutyRecord

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
RADIO = RadioIdentity(wacn=1, system_id=2, unit_id=3)
HELD, NOBODY = SubjectState.SUBJECT_STATE_HELD, SubjectState.SUBJECT_STATE_NOBODY
UNKNOWN, UNPINNED, BOUND = SubjectState.SUBJECT_STATE_RADIO_UNKNOWN, SubjectState.SUBJECT_STATE_UNPINNED, SubjectState.SUBJECT_STATE_BOUND


def emergency(state: SubjectState.ValueType, officer: str = "", version: int = 0, at: datetime = NOON) -> Emergency:
    e = Emergency(emergency_id="e", version=1, epoch=1, agency_id="pd", radio=RADIO, state=EMERGENCY_STATE_OPEN)
    e.subject.state, e.subject.officer_id, e.subject.duty_version = state, officer, version
    e.epoch_started_at.FromDatetime(at)
    e.activation_expires_at.FromDatetime(at + timedelta(minutes=2))
    return e


def duty(version: int, *spans: tuple[int, int | None, str, list[str]], agency: str = "pd") -> DutyRecord:
    """Spans in minutes from noon."""
    record = DutyRecord(radio=RADIO, agency_id=agency, version=version)
    for start, end, officer, cameras in spans:
        interval = record.intervals.add(officer_id=officer, camera_ids=cameras)
        getattr(interval, "from").FromDatetime(NOON + timedelta(minutes=start))
        if end is not None:
            interval.to.FromDatetime(NOON + timedelta(minutes=end))
    return record


ANNA = (-60, None, "anna", ["cam-a", "cam-b"])


def test_all_cameras_of_the_pinned_officer_start() -> None:
    decision = join(emergency(HELD, "anna", 4), duty(4, ANNA))
    assert decision is not None
    assert (decision.officer_id, list(decision.camera_ids), decision.duty_version) == ("anna", ["cam-a", "cam-b"], 4)
    assert decision.expires_at.ToDatetime(UTC) == NOON + timedelta(minutes=2)


@pytest.mark.parametrize(
    ("e", "record", "reason"),
    [
        (emergency(NOBODY, version=4), duty(4), "NOBODY_HELD_RADIO"),
        (emergency(UNKNOWN), None, "RADIO_UNKNOWN"),
        (emergency(HELD, "anna", 4), duty(4, (-60, None, "anna", [])), "NO_CAMERA_ASSIGNED"),
        (emergency(HELD, "anna", 4), duty(5, (-60, None, "bert", ["cam-z"])), "HOLDER_DISPUTED"),
        (emergency(HELD, "anna", 4), duty(5), "HOLDER_DISPUTED"),
        (emergency(NOBODY, version=4), duty(5, ANNA), "HOLDER_DISPUTED"),
        (emergency(UNKNOWN), duty(2, ANNA), "HOLDER_DISPUTED"),
        (emergency(HELD, "anna", 4), duty(4, ANNA, agency="other"), "OTHER_AGENCY"),
    ],
)
def test_no_camera_has_a_named_reason(e: Emergency, record: DutyRecord | None, reason: str) -> None:
    decision = join(e, record)
    assert decision is not None
    assert not decision.camera_ids
    assert NoCameraReason.Name(decision.no_camera_reason) == f"NO_CAMERA_REASON_{reason}"


@pytest.mark.parametrize("record", [None, duty(3, ANNA)])
def test_a_record_that_is_missing_or_older_than_the_pin_is_never_an_answer(record: DutyRecord | None) -> None:
    assert join(emergency(HELD, "anna", 4), record) is None
    assert join(emergency(NOBODY, version=4), record) is None


def test_an_unpinned_press_waits_for_a_fresh_record() -> None:
    assert join(emergency(UNPINNED), duty(4, ANNA)) is None
    decision = join(emergency(UNPINNED), duty(4, ANNA), duty_is_fresh=True)
    assert decision is not None
    assert list(decision.camera_ids) == ["cam-a", "cam-b"]


def test_a_newer_record_that_agrees_decides_which_cameras() -> None:
    decision = join(emergency(HELD, "anna", 4), duty(6, (-60, None, "anna", ["cam-new"])))
    assert decision is not None
    assert list(decision.camera_ids) == ["cam-new"]


def test_a_bound_subject_brings_its_cameras_with_it_even_when_stale() -> None:
    e = emergency(BOUND, "anna")
    e.stale_on_arrival = True
    e.subject.camera_ids.append("cam-q")
    decision = join(e, None)
    assert decision is not None
    assert list(decision.camera_ids) == ["cam-q"]


def test_a_cleared_emergency_has_no_decision() -> None:
    e = emergency(HELD, "anna", 4)
    e.state = EMERGENCY_STATE_CLEARED
    assert join(e, duty(4, ANNA)) is None


@pytest.mark.parametrize(("minute", "officer"), [(-1, "anna"), (0, "bert"), (1, "bert")])
def test_a_shift_change_at_the_press_is_half_open(minute: int, officer: str) -> None:
    record = duty(9, (-60, 0, "anna", ["cam-a"]), (0, 60, "bert", ["cam-z"]))
    decision = join(emergency(HELD, officer, 9, NOON + timedelta(minutes=minute)), record)
    assert decision is not None
    assert decision.officer_id == officer


@given(st.integers(-90, 90), st.sampled_from(["anna", "bert"]), st.integers(1, 9), st.integers(1, 9))
def test_never_a_camera_of_somebody_else(minute: int, pinned: str, pin_version: int, version: int) -> None:
    """Whatever the record says, a camera starts only for the officer who was pinned and who held the radio then."""
    record = duty(version, (-60, 0, "anna", ["cam-anna"]), (0, 60, "bert", ["cam-bert"]))
    decision = join(emergency(HELD, pinned, pin_version, NOON + timedelta(minutes=minute)), record)
    if decision is not None and decision.camera_ids:
        holder = "anna" if -60 <= minute < 0 else "bert"
        assert version >= pin_version
        assert (pinned, list(decision.camera_ids)) == (holder, [f"cam-{holder}"])
