"""Whose a fix is, and what of it is kept."""

import math
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sightline.location.v1.position_pb2 import Refusal, Source, UnitKind

from services.location.model import (
    Directory,
    Fix,
    Holder,
    Interval,
    KnownEmergency,
    Name,
    Privacy,
    Taken,
    Vehicle,
    coarsened,
    distance_m,
    flaw,
    judge,
    points,
)

NOW, LATE_S, FOREVER = 1_800_000_000.0, 7200.0, float("inf")
RADIO, CAMERA, VEHICLE = Source.SOURCE_RADIO, Source.SOURCE_CAMERA, Source.SOURCE_VEHICLE
OFFICER_KIND, VEHICLE_KIND, RADIO_KIND = UnitKind.UNIT_KIND_OFFICER, UnitKind.UNIT_KIND_VEHICLE, UnitKind.UNIT_KIND_RADIO
ANNA, BERT, CARL = [("pd", OFFICER_KIND, name) for name in ("anna", "bert", "carl")]
CAR: Name = ("pd", VEHICLE_KIND, "car-1")
places = st.tuples(st.floats(-89, 89), st.floats(-179.9, 179.9))


def fix(latitude: float = 48.1, longitude: float = 11.5, at: float = NOW, accuracy: float | None = None) -> Fix:
    return Fix(latitude, longitude, accuracy, None, None, at)


def interval(officer: str, start: float = NOW - 3600, end: float = FOREVER, visible_to: str = "") -> Interval:
    return Interval(start, end, officer, "unit-1", (f"cam-{officer}",), visible_to)


def emergency(version: int, *, radio: str = "r1", officer: str = "", is_open: bool = True, since: float = NOW) -> KnownEmergency:
    return KnownEmergency("e1", version, "pd", radio, officer, is_open, since)


@pytest.fixture
def directory() -> Directory:
    """Anna holds r1, Bert held r1 before her and holds r2; nobody holds r3. Car 1 is their unit's."""
    directory = Directory(LATE_S)
    directory.learn_duty("r1", "pd", 1, [interval("bert", NOW - 7000, NOW - 3600), interval("anna")], NOW)
    directory.learn_duty("r2", "pd", 1, [interval("bert")], NOW)
    directory.learn_duty("r3", "pd", 1, [], NOW)
    directory.learn_vehicle(Vehicle("pd", "car-1", 1, "unit-1"))
    return directory


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (fix(math.nan), Refusal.REFUSAL_BAD_COORDINATES),
        (fix(longitude=180.1), Refusal.REFUSAL_BAD_COORDINATES),
        (fix(0.0, 0.0), Refusal.REFUSAL_NO_FIX),
        (fix(accuracy=math.nan), Refusal.REFUSAL_BAD_COORDINATES),
        (fix(accuracy=-1.0), Refusal.REFUSAL_BAD_COORDINATES),
        (fix()._replace(speed_mps=900.0), Refusal.REFUSAL_BAD_COORDINATES),
        (fix()._replace(course_deg=361.0), Refusal.REFUSAL_BAD_COORDINATES),
        (fix(-90.0, 180.0, accuracy=0.0), Refusal.REFUSAL_UNSPECIFIED),
    ],
)
def test_a_fix_is_refused_for_what_is_wrong_with_it(wrong: Fix, why: int) -> None:
    assert flaw(wrong) == why


def test_a_fix_belongs_to_whoever_had_the_device_then(directory: Directory) -> None:
    assert directory.settle(RADIO, "pd", "r1", NOW) == Holder(("anna",), "unit-1", "", "")
    assert directory.settle(RADIO, "pd", "r1", NOW - 5000) == Holder(("bert",), "unit-1", "", "")
    assert directory.settle(CAMERA, "pd", "cam-bert", NOW) == Holder(("bert",), "unit-1", "", "")
    found = directory.settle(VEHICLE, "pd", "car-1", NOW)
    assert isinstance(found, Holder)
    assert set(found.officer_ids) == {"anna", "bert"}


@pytest.mark.parametrize(
    ("source", "agency", "device", "at", "why"),
    [
        (RADIO, "pd", "r3", NOW, Refusal.REFUSAL_OFF_DUTY),
        (RADIO, "pd", "r9", NOW, Refusal.REFUSAL_UNKNOWN_DEVICE),
        (RADIO, "other", "r1", NOW, Refusal.REFUSAL_NOT_YOURS),
        (RADIO, "pd", "r2", NOW - 3700, Refusal.REFUSAL_OFF_DUTY),
        (CAMERA, "other", "cam-anna", NOW, Refusal.REFUSAL_UNKNOWN_DEVICE),
        (CAMERA, "pd", "cam-bert", NOW - 7100, Refusal.REFUSAL_OFF_DUTY),
        (VEHICLE, "pd", "car-9", NOW, Refusal.REFUSAL_UNKNOWN_DEVICE),
        (VEHICLE, "pd", "car-1", NOW - 7100, Refusal.REFUSAL_OFF_DUTY),
    ],
)
def test_what_nobody_has_is_refused_by_name(directory: Directory, source: int, agency: str, device: str, at: float, why: int) -> None:
    assert directory.settle(source, agency, device, at) == why  # type: ignore[arg-type]


def test_a_radio_that_nobody_holds_counts_from_its_press_to_its_clear(directory: Directory) -> None:
    assert directory.learn_emergency(emergency(1, radio="r3")) == {("pd", RADIO_KIND, "r3")}
    assert directory.settle(RADIO, "pd", "r3", NOW) == Holder((), "", "", "e1")
    assert directory.settle(RADIO, "pd", "r3", NOW - 1) == Refusal.REFUSAL_OFF_DUTY
    directory.learn_emergency(emergency(3, radio="r3", is_open=False))
    directory.learn_emergency(emergency(2, radio="r3"))  # comes late
    assert directory.settle(RADIO, "pd", "r3", NOW) == Refusal.REFUSAL_OFF_DUTY


def test_an_emergency_is_its_officers_also_before_it_is_known_whose_it_is(directory: Directory) -> None:
    r1 = ("pd", RADIO_KIND, "r1")
    assert directory.learn_emergency(emergency(1)) == {r1, ANNA, BERT, CAR}  # a car shows its crew's emergency
    assert directory.emergency_of_officer("anna", NOW) == "e1"
    assert directory.emergency_of_officer("bert", NOW) == ""
    assert directory.learn_emergency(emergency(2, officer="bert")) == {r1, ANNA, BERT, CAR}
    assert directory.emergency_of_officer("anna", NOW) == ""
    assert directory.emergency_of_officer("bert", NOW) == "e1"
    found = directory.settle(CAMERA, "pd", "cam-bert", NOW)
    assert isinstance(found, Holder)
    assert found.emergency_id == "e1"


def test_a_late_fix_finds_who_had_the_radio_though_newer_records_do_not_say(directory: Directory) -> None:
    assert directory.learn_duty("r1", "pd", 2, [interval("anna")], NOW) == set()  # the same, but for what has long ended
    touched = directory.learn_duty("r1", "pd", 3, [interval("carl", NOW)], NOW)
    assert touched == {ANNA, BERT, CARL, CAR, ("pd", RADIO_KIND, "r1")}
    found = directory.settle(RADIO, "pd", "r1", NOW - 5000)
    assert isinstance(found, Holder)
    assert found.officer_ids == ("bert",)
    assert directory.learn_duty("r1", "pd", 2, [], NOW) == set()  # comes late


def test_a_covert_shift_that_is_still_told_of_takes_nothing_from_those_that_are_not(directory: Directory) -> None:
    covert, since = interval("carl", NOW - 20_000, NOW - 10_000, "narcotics"), [interval("anna", NOW - 3600)]
    directory.learn_duty("r1", "pd", 2, [covert, interval("bert", NOW - 7200, NOW - 3600), *since], NOW)
    directory.learn_duty("r1", "pd", 3, [covert, *since], NOW)
    assert [directory.settle(RADIO, "pd", "r1", NOW - ago) for ago in (5000, 0)] == [
        Holder(("bert",), "unit-1", "", ""), Holder(("anna",), "unit-1", "", ""),
    ]  # fmt: skip


def test_a_start_long_after_a_covert_shift_still_hides_whose_emergency_outlasts_it() -> None:
    directory = Directory(LATE_S)
    directory.learn_emergency(emergency(1, officer="carl", since=NOW - 12_000))
    directory.learn_duty("r1", "pd", 2, [interval("carl", NOW - 20_000, NOW - 10_000, "narcotics")], NOW)
    assert directory.settle(RADIO, "pd", "r1", NOW) == Holder(("carl",), "", "narcotics", "e1")


def test_who_presses_long_after_a_covert_shift_is_seen_by_everybody_and_soon_after_it_is_not() -> None:
    covert = interval("carl", NOW - 20_000, NOW - 10_000, "narcotics")
    for since, visible_to in ((NOW - 2000, ""), (NOW - 3000, "narcotics")):
        directory = Directory(LATE_S)
        directory.learn_duty("r1", "pd", 2, [covert], NOW)
        directory.learn_emergency(emergency(1, officer="carl", since=since))
        assert directory.settle(RADIO, "pd", "r1", NOW) == Holder(("carl",), "", visible_to, "e1")


def test_a_planned_covert_shift_hides_nobody_before_it_begins() -> None:
    directory = Directory(LATE_S)
    directory.learn_duty("r1", "pd", 2, [interval("carl", NOW + 3600, NOW + 7200, "narcotics")], NOW)
    directory.learn_emergency(emergency(1, officer="carl", since=NOW - 100))
    assert directory.settle(RADIO, "pd", "r1", NOW) == Holder(("carl",), "", "", "e1")


def test_who_has_gone_on_openly_is_seen_by_everybody_on_every_radio() -> None:
    directory = Directory(LATE_S)
    directory.learn_duty("r1", "pd", 1, [interval("carl", NOW - 3600, NOW - 10, "narcotics")], NOW)
    directory.learn_duty("r2", "pd", 1, [interval("carl", NOW - 10)], NOW)
    directory.learn_emergency(emergency(1, officer="carl", since=NOW - 100))
    for radio in ("r1", "r2"):
        found = directory.settle(RADIO, "pd", radio, NOW)
        assert isinstance(found, Holder)
        assert (found.officer_ids, found.visible_to) == (("carl",), "")


def test_who_rides_with_a_covert_officer_is_as_hidden_as_he_is(directory: Directory) -> None:
    directory.learn_duty("r2", "pd", 2, [interval("bert", visible_to="narcotics")], NOW)
    found = directory.settle(VEHICLE, "pd", "car-1", NOW)
    assert isinstance(found, Holder)
    assert found.visible_to == "narcotics"


@pytest.mark.parametrize("overt", ["r2", "r4"])
def test_who_holds_two_radios_one_of_them_covert_is_hidden_whichever_tells(directory: Directory, overt: str) -> None:
    covert = {"r2": "r4", "r4": "r2"}[overt]
    directory.learn_duty(overt, "pd", 2, [interval("bert")], NOW)
    directory.learn_duty(covert, "pd", 2, [interval("bert", NOW - 1800, visible_to="narcotics")], NOW)
    for device in ((RADIO, overt), (RADIO, covert), (CAMERA, "cam-bert"), (VEHICLE, "car-1")):
        found = directory.settle(device[0], "pd", device[1], NOW)
        assert isinstance(found, Holder)
        assert found.visible_to == "narcotics"
    shift = directory.shift("bert", NOW)
    assert shift is not None
    assert (shift.start, shift.visible_to, shift.camera_ids) == (NOW - 1800, "narcotics", ("cam-bert",))


def test_a_vehicle_that_changes_its_unit_is_looked_at_with_both_crews(directory: Directory) -> None:
    directory.learn_duty("r5", "pd", 1, [interval("carl")._replace(unit_id="unit-2")], NOW)
    assert directory.learn_vehicle(Vehicle("pd", "car-1", 2, "unit-2")) == {CAR, ANNA, BERT, CARL}
    assert directory.learn_vehicle(Vehicle("pd", "car-1", 1, "unit-1")) == set()  # comes late
    assert directory.settle(VEHICLE, "pd", "car-1", NOW) == Holder(("carl",), "unit-2", "", "")


def test_an_emergency_is_not_of_whoever_gets_the_radio_next_nor_of_before_the_press(directory: Directory) -> None:
    directory.learn_emergency(emergency(1, officer="anna", since=NOW))
    directory.learn_duty("r1", "pd", 2, [interval("anna", end=NOW + 10), interval("carl", NOW + 10)], NOW + 10)
    found = [directory.settle(RADIO, "pd", "r1", at) for at in (NOW - 60, NOW, NOW + 20)]
    assert [each.emergency_id for each in found if isinstance(each, Holder)] == ["", "e1", ""]
    assert directory.emergency_of_officer("anna", NOW + 20) == "e1"  # it outlasts the shift


def test_the_last_shift_is_remembered_for_as_long_as_an_emergency_is_open(directory: Directory) -> None:
    directory.learn_duty("r2", "pd", 2, [interval("bert", end=NOW, visible_to="narcotics")], NOW)
    directory.learn_emergency(emergency(1, radio="r2", officer="bert", since=NOW - 10))
    directory.learn_duty("r2", "pd", 3, [interval("carl", NOW + 20_000)], NOW + 20_000)
    assert directory.audience("bert", NOW + 20_000) == "narcotics"
    assert directory.audience("anna", NOW) == ""


def test_a_car_with_two_covert_crews_is_seen_by_neither_group(directory: Directory) -> None:
    directory.learn_duty("r1", "pd", 2, [interval("anna", visible_to="vice")], NOW)
    directory.learn_duty("r2", "pd", 2, [interval("bert", visible_to="narcotics")], NOW)
    found = directory.settle(VEHICLE, "pd", "car-1", NOW)
    assert isinstance(found, Holder)
    assert found.visible_to not in ("", "vice", "narcotics")


def test_a_covert_officers_emergency_that_outlasts_the_shift_stays_with_the_group(directory: Directory) -> None:
    directory.learn_duty("r2", "pd", 2, [interval("bert", end=NOW + 10, visible_to="narcotics")], NOW)
    directory.learn_emergency(emergency(1, radio="r2", officer="bert"))
    assert directory.settle(RADIO, "pd", "r2", NOW + 20) == Holder(("bert",), "", "narcotics", "e1")


def test_a_clock_ahead_makes_a_fix_suspect_and_one_too_far_behind_refuses_it(directory: Directory) -> None:
    assert judge(directory, RADIO, "pd", "r1", fix(at=NOW + 3600), NOW, LATE_S) == (Holder(("anna",), "unit-1", "", ""), True)
    assert judge(directory, RADIO, "pd", "r1", fix(at=NOW + 1), NOW, LATE_S) == (Holder(("anna",), "unit-1", "", ""), False)
    assert judge(directory, RADIO, "pd", "r1", fix(at=NOW - LATE_S - 1), NOW, LATE_S) == Refusal.REFUSAL_TOO_OLD


@given(places, st.integers(5, 14))
def test_a_coarse_place_holds_the_true_one_and_says_no_more(at: tuple[float, float], resolution: int) -> None:
    true = fix(*at, accuracy=3.0)._replace(speed_mps=9.0, course_deg=90.0)
    coarse = coarsened(true, resolution)
    assert coarse.accuracy_m is not None
    assert distance_m(true, coarse) <= coarse.accuracy_m * 2
    assert (coarse.speed_mps, coarse.course_deg, coarse.fixed_at) == (None, None, true.fixed_at)
    assert coarsened(coarse._replace(accuracy_m=3.0), resolution) == coarse


def test_a_track_is_exact_in_an_emergency_only_and_lives_as_long_as_its_agency_says() -> None:
    privacy = Privacy(idle_resolution=9, keep_days=31, keep_idle_days=7)
    today = datetime.fromtimestamp(NOW, UTC).date()

    def kept(holder: Holder, source: int = RADIO) -> list[tuple[int, str, bool, date]]:
        taken = Taken("pd", source, "r1", holder, fix(), NOW, NOW, False)  # type: ignore[arg-type]
        return [(point.kind, point.unit_id, point.coarse, point.delete_on) for point in points(taken, privacy)]

    def in_days(days: int) -> date:
        return date.fromordinal(today.toordinal() + days)

    assert kept(Holder(("anna",), "", "", "")) == [(OFFICER_KIND, "anna", True, in_days(8))]
    assert kept(Holder(("anna",), "", "", "e1")) == [(OFFICER_KIND, "anna", False, in_days(32))]
    assert kept(Holder((), "", "", "e1")) == [(RADIO_KIND, "r1", False, in_days(32))]
    crew = kept(Holder(("anna", "bert"), "", "", ""), VEHICLE)
    assert [each[:2] for each in crew] == [(OFFICER_KIND, "anna"), (OFFICER_KIND, "bert"), (VEHICLE_KIND, "r1")]
