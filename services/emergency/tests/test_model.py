"""Rules of an emergency."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from chassis.errors import Changed, InvalidRequest, NotFound, WrongState

from services.emergency.model import (
    Disposition,
    Emergency,
    Fact,
    Holder,
    Names,
    Outcome,
    Place,
    Press,
    RadioId,
    Status,
    Subject,
    SubjectState,
    Superseded,
    Who,
    open_emergency,
    outcome_of,
    press_names,
    read_clocks,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
GATE = timedelta(seconds=120)
RADIO = RadioId(0xBEE00, 0x1A4, 7)
SUPERVISOR, OTHER = Who(1, "supervisor", "pd"), Who(1, "other", "pd")
ANNA = Subject(SubjectState.HELD, "anna", duty_version=3, home_agency_id="pd", held_from=NOW - timedelta(hours=1))
BERT = replace(ANNA, officer_id="bert")
BOUND = Subject(SubjectState.BOUND, "anna", home_agency_id="pd", camera_ids=("cam-7",))
NOBODY = Holder(Subject(SubjectState.NOBODY))
NO_WORD = Holder(Subject(SubjectState.UNPINNED))


def press(late: timedelta = timedelta(0), now: datetime = NOW, key: str = "k", position: Place | None = None) -> Press:
    clocks = read_clocks(now - late, now, None, now, GATE, waited=late)
    return Press(Names(key, True, key, key), key, RADIO, clocks, Status.ACTUAL, Who(2, "gateway/g", "pd"), position=position)


def held(subject: Subject, *cameras: str) -> Holder:
    return Holder(subject, camera_ids=cameras)


def after(seconds: float, key: str = "k2") -> Press:
    return press(now=NOW + timedelta(seconds=seconds), key=key)


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
    assert cancelled.fold(press(now=NOW - timedelta(seconds=4)), held(ANNA), GATE).cancel_requested is not None
    assert cancelled.fold(press(now=NOW + timedelta(seconds=6)), held(ANNA), GATE).cancel_requested is None


def test_only_the_newest_press_can_be_taken_back() -> None:
    again = emergency().fold(press(now=NOW + timedelta(seconds=1), key="k2"), held(ANNA), GATE)
    assert again.request_cancel(Fact(SUPERVISOR, NOW), "k") is again
    assert again.request_cancel(Fact(SUPERVISOR, NOW), "k2").cancel_requested is not None


def test_a_repeat_within_the_gate_starts_nothing_again() -> None:
    assert emergency().fold(press(now=NOW + timedelta(seconds=119)), held(ANNA), GATE).epoch == 1


@pytest.mark.parametrize("late", [timedelta(minutes=25), timedelta(0)])
def test_a_fresh_press_on_what_can_start_no_camera_any_more_is_a_new_epoch(late: timedelta) -> None:
    later = NOW + timedelta(seconds=120)
    e = emergency(late).fold(press(now=later), held(ANNA), GATE)
    assert (e.epoch, e.stale_on_arrival, e.activation_expires_at, e.version) == (2, False, later + GATE, 2)
    assert e.fold(press(timedelta(minutes=25), later), held(ANNA), GATE).epoch == 2


def test_whoever_presses_gets_a_camera_also_while_anothers_emergency_is_open() -> None:
    e = emergency().fold(after(9), held(BERT), GATE)
    assert (e.epoch, e.subject.officer_id) == (2, "bert")
    # Who held the radio before an operator said otherwise is not believed again.
    bound = emergency().bind(BOUND, NOW, GATE)
    assert bound.fold(after(9), held(BERT), GATE).subject == bound.subject


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
        e.fold(press(), held(ANNA), GATE),
        e.request_cancel(fact, "k"),
        e.acknowledge(fact),
        e.bind(BOUND, NOW, GATE),
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
        e.fold(press(), held(ANNA), GATE)
    with pytest.raises(WrongState):
        e.bind(BOUND, NOW, GATE)
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


def test_any_difference_makes_a_press_another_one() -> None:
    def names(request: str, counter: tuple[int, int] | None = None, at: datetime | None = None, agency: str = "pd") -> Names:
        return press_names(agency, RADIO, request, counter, at)

    later = NOW + timedelta(seconds=1)
    different = [
        names("r1", (1, 100)), names("r1", (2, 100)), names("r1", (1, 101)), names("r2", (1, 100)), names("r1", (1, 100), agency="other"),
        names("r1", None, NOW), names("r1", None, later), names("r1"), names("r2"), names("", (1, 100)), names("", None, NOW),
    ]  # fmt: skip
    assert len({each.identity for each in different}) == len(different)
    # With a counter a gateway's clock says nothing; zeros are no counter, and no time.
    assert names("r1", (1, 100), NOW) == names("R1", (1, 100), later)
    assert names("r1", (0, 100), NOW) == names("r1", (7, 0), NOW) == names("r1", None, NOW)
    assert names("r1", None, datetime(1970, 1, 1, tzinfo=UTC)) == names("r1")
    # What begins again with a battery says nothing after a while; what nothing tells apart is never a repeat.
    assert [each.lasts for each in (names("r1", (1, 100)), names("r1", None, NOW), names("r1"), names("", (1, 100)))] == [
        True,
        True,
        False,
        False,
    ]
    assert names("").identity == ""


def test_a_cancel_finds_a_press_by_its_counter_or_by_its_request() -> None:
    named = press_names("pd", RADIO, "r1", (1, 100), NOW)
    assert named.key == press_names("pd", RADIO, "", (1, 100)).key
    assert named.request_key == press_names("pd", RADIO, "R1").key


# --- another epoch -----------------------------------------------------------------------------------------------------


def test_who_took_the_radio_after_a_bind_wins_and_the_conflict_is_shown() -> None:
    """P1: hours after the bind somebody else holds the radio."""
    bound = emergency().bind(BOUND, NOW, GATE)
    since = replace(BERT, held_from=NOW + timedelta(hours=1))
    for seconds in (7200, 3700):
        e = bound.fold(after(seconds), held(since, "cam-8"), GATE)
        assert (e.epoch, e.subject, e.subject_conflict) == (bound.epoch + 1, since, True)
        assert [(each.officer_id, each.superseded, each.epoch) for each in e.earlier] == [("anna", Superseded.BY_HOLDER, bound.epoch)]


def test_the_bound_officers_own_later_hold_is_no_conflict() -> None:
    bound = emergency().bind(BOUND, NOW, GATE)
    later = replace(ANNA, held_from=NOW + timedelta(minutes=1))
    assert bound.fold(after(60), held(later, "cam-7"), GATE).epoch == bound.epoch
    over = bound.fold(after(120), held(later, "cam-9"), GATE)
    assert (over.epoch, over.subject, over.subject_conflict) == (bound.epoch + 1, later, False)


def test_a_bound_officers_cameras_are_looked_up_for_each_epoch() -> None:
    """P1: until the registry has said what he or she carries now, no epoch begins; then with those cameras."""
    bound = emergency().bind(BOUND, NOW, GATE)
    waits = bound.fold(after(200), NOBODY, GATE)
    assert (waits.epoch, waits.unsettled_press_at) == (bound.epoch, NOW + timedelta(seconds=200))
    settled = waits.settle_late(NOBODY, replace(BOUND, camera_ids=("cam-9",)), GATE, Outcome.STARTED)
    assert (settled.epoch, settled.subject.camera_ids, settled.unsettled_press_at) == (bound.epoch + 1, ("cam-9",), None)
    assert (settled.epoch_started_at, settled.subject.bound_at) == (NOW + timedelta(seconds=200), NOW)
    assert settled.version == waits.version + 1


def test_a_press_that_nobody_could_pin_is_settled_when_the_registry_answers() -> None:
    waits = emergency().fold(after(9), NO_WORD, GATE)
    assert (waits.epoch, waits.unsettled_press_at) == (1, NOW + timedelta(seconds=9))
    assert waits.settle_late(NO_WORD, None, GATE, Outcome.PENDING) is waits
    assert waits.settle_late(held(ANNA), None, GATE, Outcome.PENDING).epoch == 1
    bert = waits.settle_late(held(BERT), None, GATE, Outcome.PENDING)
    assert (bert.epoch, bert.subject.officer_id, bert.unsettled_press_at) == (2, "bert", None)


def test_a_press_on_what_has_no_pin_yet_waits_for_it() -> None:
    """Else the press of who took the radio in between would be swallowed."""
    unpinned = replace(emergency(), subject=NO_WORD.subject)
    waits = unpinned.fold(after(9), held(BERT), GATE)
    assert (waits.epoch, waits.unsettled_press_at) == (1, NOW + timedelta(seconds=9))
    filled = waits.fill(ANNA, NOW)
    assert filled.settle_late(held(BERT), None, GATE, Outcome.STARTED).subject.officer_id == "bert"


@pytest.mark.parametrize(
    ("states", "outcome"),
    [
        ([], Outcome.PENDING), (["REQUESTED"], Outcome.PENDING), (["REFUSED", "REQUESTED"], Outcome.PENDING),
        (["WITHDRAWN"], Outcome.PENDING),
        (["REFUSED", "TELEPORTED"], Outcome.PENDING), (["REFUSED", "UNREACHABLE", "TIMED_OUT"], Outcome.NOT_STARTED),
        (["REFUSED", "RECORDING"], Outcome.STARTED), (["ALREADY_RECORDING"], Outcome.STARTED), (["NO_CAMERA"], Outcome.NO_CAMERA),
    ],
)  # fmt: skip
def test_an_epoch_is_over_when_all_its_cameras_have_said_so(states: list[str], outcome: Outcome) -> None:
    assert outcome_of(states) == outcome


@pytest.mark.parametrize(
    ("seconds", "outcome", "epoch"),
    [
        (60, Outcome.NOT_STARTED, 2), (5, Outcome.NOT_STARTED, 2), (4.9, Outcome.NOT_STARTED, 1), (60, Outcome.PENDING, 1),
        (60, Outcome.STARTED, 1), (60, Outcome.NO_CAMERA, 2),
    ],
)  # fmt: skip
def test_a_press_after_the_start_was_refused_is_another_try(seconds: float, outcome: Outcome, epoch: int) -> None:
    """P3: never while an outcome is pending, at most one in five seconds."""
    assert emergency().fold(after(seconds), held(ANNA, "cam-7"), GATE, None, outcome).epoch == epoch


def test_no_camera_is_no_reason_for_another_try_while_its_reason_stands() -> None:
    e = emergency()
    assert e.fold(after(60), held(ANNA), GATE, None, Outcome.NO_CAMERA).epoch == 1
    foreign = held(replace(ANNA, home_agency_id="other-pd"), "cam-7")
    assert e.fold(after(60), foreign, GATE, None, Outcome.NO_CAMERA).epoch == 1
    assert e.fold(after(60), NOBODY, GATE, None, Outcome.NOT_STARTED).epoch == 1  # nobody's camera could start
    bound = e.bind(BOUND, NOW, GATE)
    waits = bound.fold(after(60), NOBODY, GATE, None, Outcome.NO_CAMERA)
    assert waits.settle_late(NOBODY, replace(BOUND, camera_ids=()), GATE, Outcome.NO_CAMERA).epoch == bound.epoch
    assert waits.settle_late(NOBODY, BOUND, GATE, Outcome.NO_CAMERA).epoch == bound.epoch + 1


def test_an_acknowledgement_answers_presses() -> None:
    """I13: it falls with a press of another officer, and with one after the age gate; never with a bind or a retry."""
    fact = Fact(SUPERVISOR, NOW)
    e = emergency().acknowledge(fact)
    assert e.fold(after(60), held(ANNA, "cam-7"), GATE).acknowledged == fact
    assert e.fold(after(60), held(ANNA, "cam-7"), GATE, None, Outcome.NOT_STARTED).acknowledged == fact
    assert e.bind(replace(BOUND, officer_id="bert"), NOW, GATE, note="heard his voice").acknowledged == fact
    for fallen in (e.fold(after(60), held(BERT), GATE), e.fold(after(2400), held(ANNA), GATE), e.fold(after(2400), held(BERT), GATE)):
        assert fallen.acknowledged is None
        assert fallen.acknowledge(Fact(OTHER, NOW)).acknowledged == Fact(OTHER, NOW)
    bound = replace(e, subject=Subject(SubjectState.NOBODY)).bind(BOUND, NOW, GATE)
    assert bound.fold(after(60), held(replace(BERT, held_from=NOW + timedelta(seconds=9))), GATE).acknowledged is None


def test_only_a_newer_presss_place_takes_the_place_of_another() -> None:
    """I12: two gateways, one of them slow."""
    old, new = Place(52.0, 4.0), Place(52.1, 4.3)
    e = open_emergency("id", press(position=new), ANNA, GATE, None, None)
    late = press(timedelta(seconds=30), position=old, key="k1")
    assert e.fold(late, held(ANNA), GATE).position == new
    assert e.fold(after(9), held(ANNA), GATE).position == new
    assert e.fold(replace(after(9), position=old), held(ANNA), GATE).position == old
    # A place that is newer than the known one replaces it, also behind a press that had none.
    behind = e.fold(after(60), held(ANNA), GATE).fold(replace(after(30), position=old), held(ANNA), GATE)
    assert (behind.position, behind.position_at) == (old, NOW + timedelta(seconds=30))


# --- who may say whose it is -------------------------------------------------------------------------------------------

BERTS = replace(BOUND, officer_id="bert", camera_ids=("cam-8",))


@pytest.mark.parametrize(
    ("subject", "outcome"),
    [
        (Subject(SubjectState.NOBODY), Outcome.PENDING), (Subject(SubjectState.RADIO_UNKNOWN), Outcome.PENDING),
        (Subject(SubjectState.UNPINNED), Outcome.STARTED), (replace(ANNA, home_agency_id="other-pd"), Outcome.PENDING),
        (ANNA, Outcome.NO_CAMERA), (BOUND, Outcome.NO_CAMERA),
    ],
)  # fmt: skip
def test_anybody_who_may_bind_settles_what_is_unsettled(subject: Subject, outcome: Outcome) -> None:
    e = replace(emergency(), subject=subject).bind(BERTS, NOW, GATE, outcome=outcome, may_change=False)
    assert (e.epoch, e.subject.officer_id, e.subject.bound_at) == (2, "bert", NOW)


@pytest.mark.parametrize(
    ("subject", "outcome", "late"),
    [
        (ANNA, Outcome.STARTED, 0), (ANNA, Outcome.PENDING, 0), (ANNA, Outcome.NOT_STARTED, 0), (BOUND, Outcome.STARTED, 0),
        (ANNA, Outcome.NO_CAMERA, 1500),
    ],
)  # fmt: skip
def test_a_settled_subject_takes_a_supervisor_and_a_reason(subject: Subject, outcome: Outcome, late: int) -> None:
    """A5: an analyst cannot start another officer's camera, nor hide the presser's."""
    e = replace(emergency(timedelta(seconds=late)), subject=subject)
    with pytest.raises(WrongState):
        e.bind(BERTS, NOW, GATE, outcome=outcome, may_change=False, note="because")
    with pytest.raises(InvalidRequest):
        e.bind(BERTS, NOW, GATE, outcome=outcome, note=" ")
    changed = e.bind(BERTS, NOW, GATE, outcome=outcome, note="the voice is Bert's")
    assert [(each.officer_id, each.superseded) for each in changed.earlier] == [("anna", Superseded.BY_OPERATOR)]
    # To start the same officer's cameras again changes nothing about whose it is.
    assert e.bind(BOUND, NOW, GATE, outcome=outcome, may_change=False).epoch == 2


def test_an_earlier_officer_stays_until_he_or_she_is_not_involved() -> None:
    fact = Fact(SUPERVISOR, NOW, "went home")
    e = emergency().bind(BERTS, NOW, GATE, note="the voice is Bert's")
    with pytest.raises(WrongState):
        e.mark_not_involved("bert", fact)
    with pytest.raises(NotFound):
        e.mark_not_involved("carl", fact)
    marked = e.mark_not_involved("anna", fact)
    assert (marked.earlier[0].not_involved, marked.version) == (fact, e.version + 1)
    assert marked.mark_not_involved("anna", fact) is marked
    # A press of hers counts anew.
    pressed = marked.fold(after(9), held(replace(ANNA, held_from=NOW + timedelta(seconds=5))), GATE)
    assert (pressed.subject.officer_id, [each.officer_id for each in pressed.earlier]) == ("anna", ["bert"])
    with pytest.raises(WrongState):
        e.clear(fact, Disposition.RESOLVED).mark_not_involved("anna", fact)


# --- clocks ------------------------------------------------------------------------------------------------------------


def test_only_waited_makes_a_press_too_old() -> None:
    """C1: a gateway that booted with yesterday's clock, received the press, had its clock set, and sent it."""
    yesterday = NOW - timedelta(hours=23)
    clocks = read_clocks(yesterday, NOW, None, NOW, GATE)
    assert (clocks.press_time, clocks.clock_suspect, clocks.may_be_older_by) == (NOW, True, timedelta(hours=23))
    told = read_clocks(yesterday, NOW, None, NOW, GATE, waited=timedelta(seconds=3))
    assert (told.press_time, told.may_be_older_by) == (NOW - timedelta(seconds=3), None)
    old = read_clocks(NOW, NOW, None, NOW, GATE, waited=timedelta(minutes=25))
    assert old.press_time == NOW - timedelta(minutes=25)
    assert read_clocks(NOW, NOW, None, NOW, GATE, waited=timedelta.max).press_time < NOW - timedelta(days=29)


def test_whose_cameras_lanes_started_before_the_registry_had_a_word_are_earlier_officers() -> None:
    """A bind, a late pin or another officer's press must not end the picture of whoever pressed."""
    unpinned = replace(emergency(), subject=NO_WORD.subject)
    known = unpinned.recall(["anna"])
    assert [each.officer_id for each in known.earlier] == ["anna"]
    assert known.recall(["anna"]) is known
    bound = known.bind(Subject(SubjectState.BOUND, "bert", home_agency_id="pd"), NOW, GATE, outcome=Outcome.STARTED)
    assert [each.officer_id for each in bound.earlier] == ["anna"]
    assert [each.officer_id for each in known.fill(BERT, NOW).earlier] == ["anna"]
    assert known.fill(ANNA, NOW).earlier == ()
    assert bound.recall(["carl"]) is bound


def test_an_acknowledgement_outlives_a_retry_that_nobody_can_name_yet() -> None:
    """I13: it falls when the registry says that it was another officer's."""
    first = emergency().acknowledge(Fact(SUPERVISOR, NOW))
    at = first.epoch_started_at + timedelta(seconds=60)
    retried = first.settle(at, NO_WORD, None, GATE, Outcome.NOT_STARTED)
    assert (retried.epoch, retried.subject.state) == (2, SubjectState.UNPINNED)
    assert retried.acknowledged
    assert retried.fill(ANNA, at).acknowledged == first.acknowledged
    assert retried.fill(BERT, at).acknowledged is None


def test_a_refused_start_is_tried_again_also_while_the_registry_says_nothing() -> None:
    first = replace(emergency(), subject=NO_WORD.subject)
    at = first.epoch_started_at + timedelta(seconds=60)
    assert first.settle(at, NO_WORD, None, GATE, Outcome.PENDING).epoch == 1
    assert first.settle(at, NO_WORD, None, GATE, Outcome.NOT_STARTED).epoch == 2


def test_after_a_stale_opening_the_epoch_of_now_says_what_is_settled() -> None:
    stale = replace(emergency(), stale_on_arrival=True)
    assert stale.is_settled(Outcome.NO_CAMERA)
    assert not replace(stale, epoch=2).is_settled(Outcome.NO_CAMERA)
