"""Duty intervals, and the times of a shift."""

from datetime import UTC, datetime, timedelta

import pytest
from chassis.errors import InvalidRequest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.model import Hold, Span, intervals, shift

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def at(minute: float) -> datetime:
    return NOON + timedelta(minutes=minute)


def hold(item: str, officer: str, start: float, end: float | None) -> Hold:
    return Hold(item, officer, Span(at(start), None if end is None else at(end)))


def test_intervals_are_cut_where_cameras_or_unit_change() -> None:
    found = intervals([hold("", "anna", 0, 60)], [hold("c1", "anna", 0, 30), hold("c2", "anna", 20, None)], [hold("u", "anna", -5, 40)])
    assert [(i.span.start, i.span.end, i.camera_ids, i.unit_id) for i in found] == [
        (at(0), at(20), ("c1",), "u"),
        (at(20), at(30), ("c1", "c2"), "u"),
        (at(30), at(40), ("c2",), "u"),
        (at(40), at(60), ("c2",), ""),
    ]


def test_other_officers_cameras_never_enter() -> None:
    found = intervals([hold("", "anna", 0, None)], [hold("c1", "bert", 0, None)], [])
    assert [i.camera_ids for i in found] == [()]


@given(
    st.lists(st.tuples(st.sampled_from(["anna", "bert"]), st.integers(-50, 50), st.integers(1, 40)), max_size=6),
    st.integers(-60, 60),
)
def test_at_every_instant_the_interval_says_what_the_holds_say(cameras: list[tuple[str, int, int]], minute: int) -> None:
    radio = [hold("", "anna", -30, 0), hold("", "bert", 0, 30)]
    held = [hold(f"c{n}", who, start, start + length) for n, (who, start, length) in enumerate(cameras)]
    found = intervals(radio, held, [])
    now = [i for i in found if i.span.holds(at(minute))]
    holder = next((h.officer_id for h in radio if h.span.holds(at(minute))), None)
    assert [i.officer_id for i in now] == ([holder] if holder else [])
    for interval in now:
        assert set(interval.camera_ids) == {h.item for h in held if h.officer_id == holder and h.span.holds(at(minute))}


def test_a_shift_starts_now_and_stays_open_unless_told() -> None:
    assert shift(None, None, NOON) == Span(NOON, None)


@pytest.mark.parametrize(
    ("start", "end"), [(NOON, NOON), (NOON, at(-1)), (NOON - timedelta(days=31), None), (NOON + timedelta(days=31), None)]
)
def test_a_shift_with_impossible_times_is_refused(start: datetime, end: datetime | None) -> None:
    with pytest.raises(InvalidRequest):
        shift(start, end, NOON)
