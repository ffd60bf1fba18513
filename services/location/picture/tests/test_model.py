"""What the map shows, to whom, and what of it changes."""

from collections.abc import Callable
from itertools import count

import h3.api.basic_int as h3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sightline.location.v1 import map_service_pb2 as pb
from sightline.location.v1.position_pb2 import Source, UnitKind
from sightline.registry.v1.device_pb2 import FixedCamera
from sightline.streams.v1.camera_link_service_pb2 import CAMERA_STATE_RECORDING, CameraReport
from sightline.streams.v1.stream_service_pb2 import CameraStatus

from services.location.model import Directory, Fix, Holder, Interval, KnownEmergency, Name, Privacy, Taken, Vehicle
from services.location.picture.model import CELL_RESOLUTION, Newest, Picture, Place, Unit, cells_of, encoded, is_plausible

NOW, FOREVER = 1_800_000_000.0, float("inf")
RADIO, CAMERA, VEHICLE = Source.SOURCE_RADIO, Source.SOURCE_CAMERA, Source.SOURCE_VEHICLE
HERE, OFFICER = (48.1, 11.5), UnitKind.UNIT_KIND_OFFICER
ANNA: Name = ("pd", OFFICER, "anna")
_versions = count(1)
EXACT = Privacy(idle_resolution=15)


def newest(at: float = NOW, north_m: float = 0.0, source: Source.ValueType = RADIO, accuracy: float | None = 5.0) -> Newest:
    return Newest(source, "d", Fix(HERE[0] + north_m / 111_200, HERE[1], accuracy, None, None, at), at, at, "")


def on_duty(directory: Directory, officer: str, visible_to: str = "", end: float = FOREVER, since: float = NOW - 3600) -> set[Name]:
    interval = Interval(since, end, officer, "unit-1", (f"cam-{officer}",), visible_to)
    return directory.learn_duty(f"radio-{officer}", "pd", next(_versions), [interval], NOW)


def taken(
    officer: str, latitude: float = HERE[0], longitude: float = HERE[1], at: float = NOW, *, suspect: bool = False, visible_to: str = ""
) -> Taken:  # fmt: skip
    fix = Fix(latitude, longitude, 5.0, None, None, at)
    return Taken("pd", RADIO, f"radio-{officer}", Holder((officer,), "unit-1", visible_to, ""), fix, at, at, suspect)


def car(directory: Directory, *officers: str, at: float = NOW) -> Taken:
    """A fix of the car of all of them, as the intake would take it."""
    directory.learn_vehicle(Vehicle("pd", "car-1", 1, "unit-1"))
    holder = directory.settle(VEHICLE, "pd", "car-1", at)
    assert isinstance(holder, Holder)
    assert set(holder.officer_ids) == set(officers)
    return Taken("pd", VEHICLE, "car-1", holder, Fix(*HERE, 5.0, None, None, at), at, at, False)


def seen(picture: Picture, *groups: str) -> set[str]:
    """Who is on the map of an audience."""
    places = picture.places("pd", groups, None)
    cells = [cell for place in places for cell in pb.WatchAreaResponse.FromString(picture.whole(place)).cells]
    return {unit.id for cell in cells for unit in cell.units}


@pytest.fixture
def directory() -> Directory:
    directory = Directory(7200)
    for officer in ("anna", "bert"):
        on_duty(directory, officer)
    return directory


@pytest.fixture
def picture(directory: Directory) -> Picture:
    return Picture(directory, lambda _: EXACT)


def turn(picture: Picture, now: float = NOW) -> dict[Place, pb.CellUpdate]:
    updates: dict[Place, pb.CellUpdate] = {}
    picture.turn(list(picture.changed()), now, updates)
    return updates


def test_late_fixes_and_impossible_ones_are_not_the_newest_but_two_that_agree_are_believed() -> None:
    unit = Unit("pd", OFFICER, "anna")
    assert unit.offer(newest())
    assert not unit.offer(newest(NOW - 1))
    assert not unit.offer(newest(NOW))
    assert not unit.offer(newest(NOW + 10, 50_000))
    assert unit.offer(newest(NOW + 11, 20))
    assert not unit.offer(newest(NOW + 20, 50_000))
    assert not unit.offer(newest(NOW + 20, 50_000))  # the same again confirms nothing
    assert not unit.offer(newest(NOW + 21, -50_000))
    assert not unit.offer(newest(NOW + 20.5, -50_000))
    assert unit.offer(newest(NOW + 22, -50_010))
    assert unit.sources == {RADIO: newest(NOW + 22, -50_010)}


def test_a_fix_that_may_be_anywhere_is_no_reason_to_believe_a_leap() -> None:
    unit = Unit("pd", OFFICER, "anna")
    unit.offer(newest())
    assert not unit.offer(newest(NOW + 10, 50_000, accuracy=99_000.0))


def test_the_shown_fix_is_the_one_that_tells_most_of_where_the_officer_is_now(picture: Picture, directory: Directory) -> None:
    directory.learn_vehicle(Vehicle("pd", "car-1", 1, "unit-1"))

    def shown_after(source: Source.ValueType, device: str, at: float, accuracy: float) -> int:
        fix = Fix(*HERE, accuracy, None, None, at)
        picture.take(Taken("pd", source, device, Holder(("anna",), "unit-1", "", ""), fix, at, at, False))
        turn(picture, at)
        shown = picture.units["pd", OFFICER, "anna"].shown
        assert shown is not None
        return shown.source

    assert shown_after(RADIO, "radio-anna", NOW, 30.0) == RADIO
    assert shown_after(CAMERA, "cam-anna", NOW, 4.0) == CAMERA
    assert shown_after(RADIO, "radio-anna", NOW + 60, 30.0) == RADIO
    # A vehicle's receiver is good, but the officer may have left the vehicle.
    assert shown_after(VEHICLE, "car-1", NOW + 60, 1.0) == RADIO


@given(st.floats(0, 100_000), st.floats(0.0, 100.0))
def test_nobody_goes_faster_than_a_helicopter(way_m: float, seconds: float) -> None:
    assert (
        is_plausible(newest(), newest(NOW + seconds, way_m)) == (way_m - 10 <= 90.0 * max(seconds, 1.0))
        or abs(way_m - 10 - 90.0 * max(seconds, 1.0)) < way_m / 100 + 1
    )


def test_what_moves_leaves_one_cell_and_is_in_another(picture: Picture) -> None:
    picture.take(taken("anna"))
    [(place, update)] = turn(picture).items()
    assert [unit.id for unit in update.units] == ["anna"]
    assert turn(picture) == {}  # looked at again, it is as it was
    picture.take(taken("anna", HERE[0] + 0.3, at=NOW + 600))
    updates = turn(picture, NOW + 600)
    assert len(updates) == 2
    assert list(updates.pop(place).gone) == [f"{OFFICER}/anna"]
    [arrived] = updates.values()
    assert [unit.id for unit in arrived.units] == ["anna"]


def test_who_goes_off_duty_goes_off_the_map_though_nothing_is_heard(picture: Picture, directory: Directory) -> None:
    on_duty(directory, "anna", end=NOW + 100)
    picture.take(taken("anna"))
    turn(picture)
    forgotten: list[tuple[Unit, Newest]] = []
    for _ in range(110):  # every unit is looked at within so many turns
        forgotten += picture.turn(list(picture.changed()), NOW + 101, {})
    assert [(unit.id, newest.device_id) for unit, newest in forgotten] == [("anna", "radio-anna")]
    assert picture.places("pd", (), None) == []


def test_a_press_makes_the_place_exact_at_once_and_a_clear_coarse_again(directory: Directory) -> None:
    picture = Picture(directory, lambda _: Privacy())
    picture.take(taken("anna"))

    def shown() -> tuple[bool, str]:
        [update] = turn(picture).values()
        return update.units[0].coarse, update.units[0].emergency_id

    assert shown() == (True, "")
    picture.look_at(directory.learn_emergency(KnownEmergency("e1", 1, "pd", "radio-anna", "anna", True, NOW)))
    assert shown() == (False, "e1")
    picture.look_at(directory.learn_emergency(KnownEmergency("e1", 2, "pd", "radio-anna", "anna", False, NOW)))
    assert shown() == (True, "")


def test_a_covert_assignment_takes_an_officer_out_of_everybodys_sight_but_a_groups(picture: Picture, directory: Directory) -> None:
    picture.take(taken("anna"))
    [place] = turn(picture)
    on_duty(directory, "anna", visible_to="narcotics")
    picture.look_at({ANNA})
    updates = turn(picture)
    assert list(updates[place].gone) == [f"{OFFICER}/anna"]
    assert picture.places("pd", {"other"}, None) == []
    assert picture.places("pd", {"narcotics"}, None) == [Place("pd", "narcotics", place.cell)]
    assert picture.places("other-pd", {"narcotics"}, None) == []


def test_a_covert_officers_emergency_that_outlasts_the_shift_is_the_groups_only(picture: Picture, directory: Directory) -> None:
    on_duty(directory, "anna", visible_to="narcotics", end=NOW + 10)
    directory.learn_emergency(KnownEmergency("e1", 1, "pd", "radio-anna", "anna", True, NOW))
    picture.take(taken("anna"))
    [place] = turn(picture, NOW + 20)
    assert place.visible_to == "narcotics"


def test_who_becomes_covert_between_two_looks_is_not_seen_in_a_place_of_since_then(picture: Picture, directory: Directory) -> None:
    begins = NOW + 100
    shifts = [Interval(NOW - 3600, begins, "anna", "unit-1", (), ""), Interval(begins, FOREVER, "anna", "unit-1", (), "narcotics")]
    directory.learn_duty("radio-anna", "pd", next(_versions), shifts, NOW)
    picture.take(taken("anna", at=begins - 1))
    turn(picture, begins - 1)
    assert seen(picture) == {"anna"}
    picture.take(taken("anna", HERE[0] + 0.0005, at=begins + 1, visible_to="narcotics"))
    turn(picture, begins + 1)
    assert (seen(picture), seen(picture, "narcotics")) == (set(), {"anna"})


def test_a_clock_that_was_put_back_keeps_nobody_on_the_map(picture: Picture, directory: Directory) -> None:
    on_duty(directory, "anna", end=NOW + 1)
    picture.take(taken("anna"))
    turn(picture, NOW + 0.5)
    unit = picture.units[ANNA]
    unit.look_again = NOW + 100
    turn(picture, NOW + 2)
    assert seen(picture) == set()


def test_a_fix_that_overtakes_the_duty_record_waits_for_it_hidden_and_not_for_long(picture: Picture, directory: Directory) -> None:
    for officer in ("carl", "dora"):
        picture.take(taken(officer))
    turn(picture)
    assert seen(picture) == set()
    picture.look_at(on_duty(directory, "carl"))
    turn(picture)
    assert seen(picture) == {"carl"}
    for _ in range(3):
        turn(picture, NOW + 11)
    assert ("pd", OFFICER, "dora") not in picture.units


def test_a_fix_of_a_new_radio_that_overtakes_its_duty_record_waits_for_it_too(picture: Picture, directory: Directory) -> None:
    picture.take(taken("anna", at=NOW - 1))
    turn(picture)
    picture.take(taken("anna")._replace(device_id="radio-2"))
    turn(picture)
    assert seen(picture) == set()
    interval = Interval(NOW - 1, FOREVER, "anna", "unit-1", (), "")
    picture.look_at(directory.learn_duty("radio-2", "pd", next(_versions), [interval], NOW))
    turn(picture)
    assert seen(picture) == {"anna"}


def test_an_emergency_of_nobody_known_is_hidden_like_who_last_held_its_radio(picture: Picture, directory: Directory) -> None:
    on_duty(directory, "carl", visible_to="narcotics", end=NOW + 10)
    picture.look_at(directory.learn_emergency(KnownEmergency("e1", 1, "pd", "radio-carl", "", True, NOW)))
    for at, expected in ((NOW + 1, "carl"), (NOW + 11, "radio-carl")):
        holder = directory.settle(RADIO, "pd", "radio-carl", at)
        assert isinstance(holder, Holder)
        picture.take(Taken("pd", RADIO, "radio-carl", holder, Fix(*HERE, 5.0, None, None, at), at, at, False))
        turn(picture, at)
        assert (seen(picture), seen(picture, "narcotics") & {expected}) == (set(), {expected})


def test_who_is_covert_on_another_radio_hides_the_car_and_its_crew_at_once(picture: Picture, directory: Directory) -> None:
    picture.take(car(directory, "anna", "bert"))
    turn(picture)
    assert seen(picture) == {"anna", "bert", "car-1"}
    covert = Interval(NOW - 1, FOREVER, "anna", "", (), "narcotics")
    picture.look_at(directory.learn_duty("radio-2", "pd", next(_versions), [covert], NOW))
    turn(picture, NOW + 1)
    assert seen(picture) == set()


def test_where_somebody_was_covertly_stays_with_the_group_when_the_assignment_changes(picture: Picture, directory: Directory) -> None:
    on_duty(directory, "anna", visible_to="narcotics")
    picture.take(taken("anna", visible_to="narcotics"))
    turn(picture)
    assert (seen(picture), seen(picture, "narcotics")) == (set(), {"anna"})
    old = Interval(NOW - 3600, NOW + 10, "anna", "unit-1", (), "narcotics")
    new = Interval(NOW + 10, FOREVER, "anna", "unit-1", (), "")
    picture.look_at(directory.learn_duty("radio-anna", "pd", next(_versions), [old, new], NOW + 10))
    turn(picture, NOW + 11)
    assert (seen(picture), seen(picture, "narcotics")) == (set(), set())
    picture.take(taken("anna", at=NOW + 12))
    turn(picture, NOW + 12)
    assert seen(picture) == {"anna"}


def test_a_fix_that_was_taken_before_the_covert_assignment_was_known_is_hidden_with_it(picture: Picture, directory: Directory) -> None:
    picture.take(taken("anna"))  # as public
    picture.look_at(on_duty(directory, "anna", visible_to="narcotics", end=NOW + 10))
    later = Interval(NOW + 10, FOREVER, "anna", "unit-1", (), "")
    covert = Interval(NOW - 3600, NOW + 10, "anna", "unit-1", (), "narcotics")
    picture.look_at(directory.learn_duty("radio-anna", "pd", next(_versions), [covert, later], NOW + 10))
    turn(picture, NOW + 11)
    assert seen(picture) == set()


def test_a_fix_that_was_taken_for_a_group_stays_with_it_whatever_duty_records_say_by_now(picture: Picture) -> None:
    picture.take(taken("anna", visible_to="narcotics"))
    turn(picture)
    assert seen(picture, "narcotics") == set()


def test_a_fix_of_a_radio_that_turns_out_to_have_been_anothers_is_not_shown(picture: Picture, directory: Directory) -> None:
    picture.take(taken("anna"))
    on_duty(directory, "anna", since=NOW + 10)
    directory.learn_duty("radio-bert", "pd", next(_versions), [], NOW)
    theirs = Interval(NOW - 3600, NOW + 10, "bert", "unit-1", (), "")
    hers = Interval(NOW + 10, FOREVER, "anna", "unit-1", (), "")
    picture.look_at(directory.learn_duty("radio-anna", "pd", next(_versions), [theirs, hers], NOW + 10))
    turn(picture, NOW + 11)
    assert seen(picture) == set()


def test_a_covert_crew_is_not_where_its_car_shows_the_others(picture: Picture, directory: Directory) -> None:
    on_duty(directory, "bert", visible_to="narcotics")
    picture.take(car(directory, "anna", "bert"))
    turn(picture)
    assert (seen(picture), seen(picture, "narcotics")) == (set(), {"car-1", "bert"})
    picture.take(taken("anna"))  # her own radio tells where she is
    turn(picture)
    assert seen(picture) == {"anna"}
    source = {each.source for each in picture.sources(picture.units[ANNA], "")}
    assert source == {RADIO}


def test_who_comes_to_a_cars_unit_covertly_hides_it_at_once(picture: Picture, directory: Directory) -> None:
    picture.take(car(directory, "anna", "bert"))
    turn(picture)
    assert seen(picture) == {"car-1", "anna", "bert"}
    picture.look_at(on_duty(directory, "carl", visible_to="narcotics"))
    turn(picture)
    assert seen(picture) == set()


def test_a_radio_that_nobody_held_is_hidden_once_it_is_a_covert_officers_and_goes_when_she_is_shown(
    picture: Picture, directory: Directory
) -> None:  # fmt: skip
    directory.learn_duty("r3", "pd", 1, [], NOW)
    picture.look_at(directory.learn_emergency(KnownEmergency("e1", 1, "pd", "r3", "", True, NOW)))
    fix = Fix(*HERE, 5.0, None, None, NOW)
    picture.take(Taken("pd", RADIO, "r3", Holder((), "", "", "e1"), fix, NOW, NOW, False))
    turn(picture)
    assert seen(picture) == {"r3"}
    on_duty(directory, "anna", visible_to="narcotics")
    picture.look_at(directory.learn_emergency(KnownEmergency("e1", 2, "pd", "r3", "anna", True, NOW)))
    turn(picture)
    assert (seen(picture), seen(picture, "narcotics")) == (set(), {"r3"})  # the last that is known of her
    picture.take(taken("anna", at=NOW + 5, visible_to="narcotics"))
    for _ in range(3):
        turn(picture, NOW + 5)
    assert (seen(picture), seen(picture, "narcotics")) == (set(), {"anna"})


def test_a_replaced_device_is_forgotten(picture: Picture, directory: Directory) -> None:
    picture.take(taken("anna"))
    new = Interval(NOW - 3600, FOREVER, "anna", "unit-1", (), "")
    directory.learn_duty("other", "pd", 1, [new], NOW)
    picture.take(taken("anna", at=NOW + 5)._replace(device_id="other"))
    forgotten = picture.turn(list(picture.changed()), NOW + 5, {})
    assert [(unit.id, newest.device_id) for unit, newest in forgotten] == [("anna", "radio-anna")]
    assert picture.turn(list(picture.changed()), NOW + 5, {}) == []


def test_places_that_everybody_has_left_are_forgotten(picture: Picture) -> None:
    for step in range(20):
        picture.take(taken("anna", HERE[0] + step * 0.05, at=NOW + step * 600))
        for place in turn(picture, NOW + step * 600):
            picture.whole(place)
    assert len(picture._places) == len(picture.places("pd", (), None)) == 1
    assert len(picture._whole) <= 1


def test_a_suspect_clock_shows_nothing(picture: Picture) -> None:
    assert not picture.take(taken("anna", at=NOW + 900, suspect=True))
    assert turn(picture) == {}


def test_what_a_camera_does_is_where_its_officer_is(picture: Picture) -> None:
    picture.take(taken("anna"))
    turn(picture)

    def status(version: int, *, audio_muted: bool = False) -> CameraStatus:
        report = CameraReport(state=CAMERA_STATE_RECORDING, battery_percent=40, audio_muted=audio_muted)
        return CameraStatus(camera_id="cam-anna", agency_id="pd", linked=True, version=version, report=report)

    picture.learn_camera(status(2))
    picture.learn_camera(status(1, audio_muted=True))  # comes late
    picture.learn_session("pd", "cam-anna", "s1", is_live=True)
    [update] = turn(picture).values()
    [camera] = update.units[0].cameras
    assert (camera.online, camera.state, camera.battery_percent) == (True, CAMERA_STATE_RECORDING, 40)
    assert camera.streaming
    assert not camera.audio_muted


def test_the_whole_of_a_cell_is_what_the_changes_add_up_to(picture: Picture) -> None:
    picture.take(taken("anna"))
    picture.take(taken("bert"))
    [(place, update)] = turn(picture).items()
    whole = pb.WatchAreaResponse.FromString(picture.whole(place))
    assert whole.cells[0].whole
    assert sorted(unit.id for unit in whole.cells[0].units) == sorted(unit.id for unit in update.units) == ["anna", "bert"]
    assert picture.whole(place) is picture.whole(place)
    both = pb.WatchAreaResponse.FromString(encoded(update) + picture.whole(place))
    assert len(both.cells) == 2


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([HERE, (63.43, 10.4), (38.92, 121.63)]),  # H3's cells are not everywhere of the same size
    st.lists(st.tuples(st.floats(-0.1, 0.3), st.floats(-0.3, 0.4)), min_size=1, max_size=60),
    st.integers(1, 8),
)
def test_the_nearest_are_those_that_measuring_all_of_them_finds(
    middle: tuple[float, float], ways_off: list[tuple[float, float]], wanted: int
) -> None:  # fmt: skip
    picture = Picture(Directory(7200), lambda _: EXACT)
    spots = [(middle[0] + north, middle[1] + east) for north, east in ways_off]
    for number, (latitude, longitude) in enumerate(spots):
        camera = FixedCamera(camera_id=f"c{number}", agency_id="pd", display_name="c", latitude=latitude, longitude=longitude)
        picture.place(1, camera)
    turn(picture)
    found = picture.nearest(middle, 60_000, "pd", (), lambda _: True, wanted)
    ways = sorted(h3.great_circle_distance(middle, spot, unit="m") for spot in spots)
    assert [way for way, _ in found] == pytest.approx(ways[:wanted])


def test_what_is_a_ring_beyond_the_neighbours_is_found_where_cells_are_smallest() -> None:
    middle = h3.latlng_to_cell(63.43, 10.4, CELL_RESOLUTION)
    corners = h3.cell_to_boundary(middle)
    way, at, there = min(
        (h3.great_circle_distance(corner, other, unit="m"), corner, other)
        for cell in h3.grid_ring(middle, 2) for corner in corners for other in h3.cell_to_boundary(cell)
    )  # fmt: skip
    picture = Picture(Directory(7200), lambda _: EXACT)
    further = [there[place] + (there[place] - at[place]) * 0.01 for place in (0, 1)]
    picture.place(1, FixedCamera(camera_id="c", agency_id="pd", latitude=further[0], longitude=further[1]))
    turn(picture)
    nearer = [at[place] - (there[place] - at[place]) * 0.01 for place in (0, 1)]
    assert h3.latlng_to_cell(*nearer, CELL_RESOLUTION) == middle
    assert len(picture.nearest((nearer[0], nearer[1]), way * 1.03, "pd", (), lambda _: True, 1)) == 1


def inside(box: tuple[float, float, float, float]) -> Callable[[tuple[float, float]], tuple[float, float]]:
    south, west, north, east = box
    return lambda share: (south + share[0] * (north - south), (west + share[1] * ((east - west) % 360) + 180) % 360 - 180)


@pytest.mark.parametrize("box", [(48.0, 11.4, 48.1, 11.6), (-17.1, 179.9, -17.0, -179.9), (60.0, -20.0, 60.2, -19.8)])
@given(st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_box_has_every_cell_that_it_touches(box: tuple[float, float, float, float], share: tuple[float, float]) -> None:
    cells = cells_of(box, 1000)
    assert cells is not None
    assert h3.latlng_to_cell(*inside(box)(share), CELL_RESOLUTION) in cells


def test_a_box_without_width_is_the_cell_that_it_lies_in() -> None:
    assert cells_of((*HERE, *HERE), 10) == frozenset({h3.latlng_to_cell(*HERE, CELL_RESOLUTION)})


def test_the_whole_is_never_older_than_what_it_is_asked_after(picture: Picture) -> None:
    picture.take(taken("anna"))
    updates: dict[Place, pb.CellUpdate] = {}
    picture.turn(list(picture.changed()), NOW, updates)
    [place] = updates
    picture.whole(place)  # somebody asks in the middle of a turn
    picture.take(taken("bert"))
    picture.turn(list(picture.changed()), NOW, updates)
    assert len(pb.WatchAreaResponse.FromString(picture.whole(place)).cells[0].units) == 2


def test_a_box_that_is_none_or_half_the_world_has_no_cells() -> None:
    assert cells_of((49.0, 11.0, 48.0, 12.0), 1000) is None
    assert cells_of((-80.0, -170.0, 80.0, 170.0), 1000) is None
    assert cells_of((48.0, -100.0, 48.0, 100.0), 100_000) is None  # H3 would take the other half


def test_equal_boxes_are_one() -> None:
    assert cells_of((48.0, 11.4, 48.1, 11.6), 1000) is cells_of((48.0, 11.4, 48.1, 11.6), 1000)
