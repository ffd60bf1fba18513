"""Rules of an emergency."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from chassis.errors import Changed, WrongState

from services.emergency.model import (
    Disposition,
    Emergency,
    Fact,
    Press,
    RadioId,
    Status,
    Subject,
    SubjectState,
    Who,
    open_emergency,
    press_keys,
    read_clocks,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
GATE = timedelta(seconds=120)
RADIO = RadioId(0xBEE00, 0x1A4, 7)
SUPERVISOR, OTHER = Who(1, "supervisor", "pd"), Who(1, "other", "pd")
ANNA = Subject(SubjectState.HELD, "anna", duty_version=3, home_agency_id="pd")


def press(late: timedelta = timedelta(0), now: datetime = NOW, key: str = "k") -> Press:
    clocks = read_clocks(now - late, now, None, now, GATE)
    return Press(key, key, key, RADIO, clocks, Status.ACTUAL, Who(2, "gateway/g", "pd"))


def emergency(late: timedelta = timedelta(0)) -> Emergency:
    return open_emergency("id", press(late), ANNA, GATE, None, None)


@pytest.mark.parametrize("skew", [timedelta(0), timedelta(hours=-9), timedelta(days=400)])
def test_only_how_long_the_gateway_kept_a_press_counts(skew: timedelta) -> None:
    sent = NOW + skew
    clocks = read_clocks(sent - timedelta(seconds=8), sent, None, NOW, GATE)
    assert clocks.press_time == NOW - timedelta(seconds=8)
    assert clocks.clock_suspect == (abs(skew) > timedelta(seconds=5))


def test_a_gateway_that_sent_before_it_received_counts_as_now_and_suspect() -> None:
    clocks = read_clocks(NOW + timedelta(seconds=9), NOW, None, NOW, GATE)
    assert (clocks.press_time, clocks.clock_suspect) == (NOW, True)


def test_a_wrong_source_clock_is_taken_and_marked() -> None:
    assert read_clocks(NOW, NOW, NOW + timedelta(days=1), NOW, GATE).clock_suspect
    assert read_clocks(NOW, NOW, NOW - timedelta(days=1), NOW, GATE).clock_suspect
    assert not read_clocks(NOW, NOW, NOW - timedelta(seconds=2), NOW, GATE).clock_suspect


@pytest.mark.parametrize(("late", "stale"), [(119.9, False), (120, True), (1500, True)])
def test_a_press_as_old_as_the_age_gate_is_stale(late: float, stale: bool) -> None:
    e = emergency(timedelta(seconds=late))
    assert e.stale_on_arrival == stale
    assert e.activation_expires_at == e.clocks.press_time + GATE


def test_a_later_press_takes_back_a_cancel_and_an_older_one_does_not() -> None:
    cancelled = emergency().request_cancel(Fact(SUPERVISOR, NOW), "k")
    assert cancelled.cancel_requested is not None
    assert cancelled.fold(press(now=NOW - timedelta(seconds=4)), ANNA, GATE).cancel_requested is not None
    assert cancelled.fold(press(now=NOW + timedelta(seconds=6)), ANNA, GATE).cancel_requested is None


def test_only_the_newest_press_can_be_taken_back() -> None:
    again = emergency().fold(press(now=NOW + timedelta(seconds=1), key="k2"), ANNA, GATE)
    assert again.request_cancel(Fact(SUPERVISOR, NOW), "k") is again
    assert again.request_cancel(Fact(SUPERVISOR, NOW), "k2").cancel_requested is not None


def test_a_repeat_within_the_gate_starts_nothing_again() -> None:
    assert emergency().fold(press(now=NOW + timedelta(seconds=119)), ANNA, GATE).epoch == 1


@pytest.mark.parametrize("late", [timedelta(minutes=25), timedelta(0)])
def test_a_fresh_press_on_what_can_start_no_camera_any_more_is_a_new_epoch(late: timedelta) -> None:
    later = NOW + timedelta(seconds=120)
    e = emergency(late).fold(press(now=later), ANNA, GATE)
    assert (e.epoch, e.stale_on_arrival, e.activation_expires_at, e.version) == (2, False, later + GATE, 2)
    assert e.fold(press(timedelta(minutes=25), later), ANNA, GATE).epoch == 2


def test_whoever_presses_gets_a_camera_also_while_anothers_emergency_is_open() -> None:
    bert = replace(ANNA, officer_id="bert")
    e = emergency().fold(press(now=NOW + timedelta(seconds=9)), bert, GATE)
    assert (e.epoch, e.subject.officer_id) == (2, "bert")
    bound = emergency().bind(replace(ANNA, state=SubjectState.BOUND), NOW, GATE)
    assert bound.fold(press(now=NOW + timedelta(seconds=9)), bert, GATE).subject == bound.subject


@pytest.mark.parametrize(
    ("received", "sent"),
    [(None, NOW), (NOW, None), (NOW - timedelta(days=20_000), NOW), (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))],
)
def test_a_time_that_cannot_be_right_counts_as_now_and_suspect(received: datetime | None, sent: datetime | None) -> None:
    clocks = read_clocks(received, sent, None, NOW, GATE)
    assert (clocks.press_time, clocks.clock_suspect) == (NOW, True)


def test_every_change_is_the_next_version() -> None:
    fact = Fact(SUPERVISOR, NOW)
    e = emergency()
    steps = [
        e,
        e.fold(press(), ANNA, GATE),
        e.request_cancel(fact, "k"),
        e.acknowledge(fact),
        e.bind(ANNA, NOW, GATE),
        e.clear(fact, Disposition.RESOLVED),
    ]
    assert [s.version for s in steps] == [1, 2, 2, 2, 2, 2]


def test_the_first_acknowledgement_stays() -> None:
    e = emergency().acknowledge(Fact(SUPERVISOR, NOW))
    assert e.acknowledge(Fact(OTHER, NOW)) is e


def test_a_clear_is_final_and_its_repeat_harmless() -> None:
    e = emergency().clear(Fact(SUPERVISOR, NOW), Disposition.RESOLVED)
    assert e.clear(Fact(SUPERVISOR, NOW + timedelta(seconds=1)), Disposition.RESOLVED) is e
    with pytest.raises(WrongState):
        e.clear(Fact(OTHER, NOW), Disposition.RESOLVED)
    with pytest.raises(WrongState):
        e.fold(press(), ANNA, GATE)
    with pytest.raises(WrongState):
        e.bind(ANNA, NOW, GATE)
    assert e.request_cancel(Fact(OTHER, NOW), "k") is e


def test_an_expected_version_is_checked() -> None:
    with pytest.raises(Changed):
        emergency().clear(Fact(SUPERVISOR, NOW), Disposition.RESOLVED, expected_version=7)


def test_a_bind_starts_a_new_epoch_with_a_gate_of_its_own() -> None:
    later = NOW + timedelta(minutes=30)
    e = emergency(timedelta(minutes=25)).bind(replace(ANNA, state=SubjectState.BOUND), later, GATE)
    assert (e.epoch, e.epoch_started_at, e.activation_expires_at) == (2, later, later + GATE)


def test_a_late_pin_fills_an_unpinned_subject_and_nothing_else() -> None:
    unpinned = replace(emergency(), subject=Subject(SubjectState.UNPINNED))
    filled = unpinned.fill(ANNA, NOW)
    assert (filled.subject.officer_id, filled.subject.filled_at, filled.epoch) == ("anna", NOW, 1)
    assert filled.fill(replace(ANNA, officer_id="bert"), NOW) is filled


@pytest.mark.parametrize(("hours", "related"), [(1, "first"), (5, "")])
def test_a_press_soon_after_a_clear_is_related(hours: int, related: str) -> None:
    first = replace(emergency(), emergency_id="first").clear(Fact(SUPERVISOR, NOW), Disposition.RESOLVED)
    again = open_emergency("second", press(now=NOW + timedelta(hours=hours)), ANNA, GATE, first, None)
    assert again.related_to == related


def test_a_restarted_counter_repeats_no_key_and_a_counter_of_zeros_is_none() -> None:
    def key(request: str, counter: tuple[int, int] | None, agency: str = "pd") -> str:
        return press_keys(agency, RADIO, request, counter)[0]

    assert len({key("r1", (1, 100)), key("r1", (1, 101)), key("r1", None), key("r2", None), key("r1", (1, 100), "other")}) == 5
    assert key("r1", (1, 100)) == key("r2", (1, 100))
    assert key("r1", (0, 100)) == key("r1", (7, 0)) == key("R1", None)
