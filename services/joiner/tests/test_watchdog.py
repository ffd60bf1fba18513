"""When a lane counts as stuck, and what waits in its memory."""

from datetime import UTC, datetime, timedelta

from sightline.emergency.v1.emergency_pb2 import SUBJECT_STATE_UNPINNED, Emergency, Subject

from services.joiner.tables import _PARKED_AT_MOST, _PARKED_OF_RADIO, Parked
from services.joiner.watchdog import Progress

PLACE = ("events", 3)
NOW, SECOND = datetime(2026, 11, 20, tzinfo=UTC), timedelta(seconds=1)


def test_a_lane_that_reads_is_not_stuck() -> None:
    progress = Progress()
    progress.begin({PLACE: 10})
    for second in range(100):
        progress.passed("events", 3, 10 + second)
        assert progress.stalled_s({PLACE: 12 + second}, float(second)) == 0


def test_a_partition_with_news_that_nobody_reads_is_counted() -> None:
    progress = Progress()
    progress.begin({PLACE: 10, ("events", 4): 5})
    assert progress.stalled_s({PLACE: 11, ("events", 4): 5}, 100.0) == 0
    assert progress.stalled_s({PLACE: 15, ("events", 4): 5}, 107.0) == 7
    progress.passed("events", 3, 10)
    assert progress.stalled_s({PLACE: 15, ("events", 4): 5}, 108.0) == 0


def test_what_lay_there_before_the_first_look_is_not_judged() -> None:
    progress = Progress()
    assert progress.stalled_s({PLACE: 1000}, 0.0) == progress.stalled_s({PLACE: 1000}, 60.0) == 0


def test_time_without_brokers_does_not_count() -> None:
    progress = Progress()
    progress.begin({PLACE: 10})
    progress.stalled_s({PLACE: 11}, 0.0)
    progress.forgive()
    assert progress.stalled_s({PLACE: 11}, 50.0) == 0


def parked(parked: Parked, radio: bytes, emergency_id: str, version: int = 1) -> None:
    parked.put(radio, 3, Emergency(emergency_id=emergency_id, version=version), None, NOW)


def test_the_newest_event_of_an_emergency_waits_and_goes_when_it_is_decided() -> None:
    waiting = Parked()
    parked(waiting, b"r", "e", 2)
    parked(waiting, b"r", "e", 1)
    assert [(e.emergency_id, e.version) for e, _ in waiting.of(b"r")] == [("e", 2)]
    waiting.remove(b"r", Emergency(emergency_id="e"))
    assert waiting.of(b"r") == []


def test_unpinned_presses_are_found_again_until_they_are_decided() -> None:
    waiting = Parked()
    unpinned = Emergency(emergency_id="u", version=1, epoch=1, subject=Subject(state=SUBJECT_STATE_UNPINNED))
    waiting.put(b"r", 3, unpinned, "trace", NOW)
    parked(waiting, b"r", "held")
    assert waiting.unpinned(NOW) == []
    assert waiting.unpinned(NOW + SECOND) == [(b"r", 3, unpinned, "trace")]
    waiting.remove(b"r", unpinned)
    assert waiting.unpinned(NOW + SECOND) == []


def test_an_unpinned_press_waits_from_its_first_event_and_anew_in_a_new_epoch() -> None:
    waiting = Parked()
    event = Emergency(emergency_id="u", version=1, epoch=1, subject=Subject(state=SUBJECT_STATE_UNPINNED))
    waiting.put(b"r", 3, event, None, NOW)
    event.version = 2
    waiting.put(b"r", 3, event, None, NOW + SECOND)
    assert len(waiting.unpinned(NOW + SECOND)) == 1
    again = Emergency(emergency_id="u", version=3, epoch=2, subject=Subject(state=SUBJECT_STATE_UNPINNED))
    waiting.put(b"r", 3, again, None, NOW + 2 * SECOND)
    assert waiting.unpinned(NOW + 2 * SECOND) == []


def test_what_waits_is_bounded_for_a_radio_and_in_all() -> None:
    waiting = Parked()
    for n in range(_PARKED_OF_RADIO + 3):
        parked(waiting, b"r", f"e{n}")
    assert [e.emergency_id for e, _ in waiting.of(b"r")] == [f"e{n}" for n in range(3, _PARKED_OF_RADIO + 3)]
    for n in range(_PARKED_AT_MOST):
        parked(waiting, f"r{n}".encode(), "e")
    assert len(waiting.of(b"r")) == 0
    assert waiting.of(f"r{_PARKED_AT_MOST - 1}".encode())


def test_a_partition_is_current_when_all_that_was_there_has_been_read() -> None:
    progress = Progress()
    assert not progress.is_current(*PLACE)  # nobody has looked
    progress.stalled_s({PLACE: 12}, 0.0)
    progress.passed("events", 3, 10)
    assert not progress.is_current(*PLACE)
    progress.passed("events", 3, 11)
    assert progress.is_current(*PLACE)
    progress.forgive()
    assert not progress.is_current(*PLACE)  # the brokers are away: there may be more
