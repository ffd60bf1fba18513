"""Nothing is deleted that somebody holds, nor before its time and the grace after it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.evidence.model import Recording, RecordingState, Segment, Streamed, gaps, in_order

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
GRACE = timedelta(days=7)
SECOND = timedelta(seconds=1)
STREAMED = Streamed("r", "pd", "cam-1", "officer-1", "e", NOW, NOW, None)
NEW = Recording.begin(STREAMED, NOW + timedelta(days=31))
HEAD = Segment("r", "0001-live", "a", 10, 1000, b"\0" * 32, NOW)


def day(number: float) -> datetime:
    return NOW + timedelta(days=number)


def segment(name: str, since: float, until: float) -> Segment:
    return replace(HEAD, segment_id=name, captured_from=NOW + since * SECOND, captured_until=NOW + until * SECOND)


def test_a_recording_is_marked_after_its_time_and_deleted_after_the_grace() -> None:
    assert NEW.due(day(30.9), GRACE) is NEW
    marked = NEW.due(day(31), GRACE)
    assert (marked.state, marked.delete_after) == (RecordingState.MARKED, day(38))
    assert marked.due(day(37.9), GRACE) is marked
    deleting = marked.due(day(38), GRACE)
    assert deleting.state == RecordingState.DELETING
    assert deleting.confirmed([HEAD], day(38)) is deleting
    deleted = deleting.confirmed([replace(HEAD, deleted_at=day(38))], day(39))
    assert (deleted.state, deleted.deleted_at) == (RecordingState.DELETED, day(39))


def test_a_hold_takes_a_mark_back_and_its_release_begins_anew() -> None:
    held = NEW.due(day(31), GRACE).with_hold(held=True)
    assert (held.state, held.delete_after) == (RecordingState.KEPT, None)
    assert held.due(day(1000), GRACE) is held
    again = held.with_hold(held=False).due(day(1000), GRACE)
    assert (again.state, again.delete_after) == (RecordingState.MARKED, day(1007))


def test_what_may_still_grow_is_never_marked() -> None:
    """A camera that went dark keeps its session, and may come back to it."""
    assert replace(NEW, ended_at=None).due(day(1000), GRACE).state == RecordingState.KEPT
    marked = NEW.due(day(31), GRACE)
    assert replace(marked, ended_at=None).due(day(38), GRACE).state == RecordingState.KEPT


def test_new_media_takes_a_mark_back() -> None:
    marked = NEW.due(day(31), GRACE)
    kept = marked.streamed(None, day(60)).due(day(38), GRACE)
    assert (kept.state, kept.delete_after) == (RecordingState.KEPT, None)


@given(st.lists(st.tuples(st.sampled_from(["due", "hold", "release", "media"]), st.floats(0, 40)), max_size=30))
def test_no_way_leads_to_deletion_but_seven_days_of_mark_without_a_hold(steps: list[tuple[str, float]]) -> None:
    recording, now, marked_at = NEW, NOW, None
    for step, days in steps:
        now += timedelta(days=days)
        before = recording
        if step == "due":
            recording = recording.due(now, GRACE)
        elif step == "media" and recording.can_be_held:
            recording = recording.streamed(None, now + timedelta(days=31))
        elif step in ("hold", "release") and recording.can_be_held:
            recording = recording.with_hold(held=step == "hold")
        if recording.state == RecordingState.MARKED and before.state != RecordingState.MARKED:
            marked_at = now
        if recording.state == RecordingState.DELETING:
            assert not recording.held
            assert recording.retain_until <= now
            assert marked_at is not None
            assert now - marked_at >= GRACE
        assert recording.version >= before.version


def test_gaps_are_what_no_segment_has_also_a_late_one() -> None:
    before, live, again = segment("0000-pre", -30, 0.2), segment("0001-live", 0, 60), segment("0002-live", 80, 100)
    assert gaps([again, live, before]) == [(NOW + 60 * SECOND, NOW + 80 * SECOND)]
    late = segment("0002-late", 59, 70)
    assert gaps([before, live, again, late]) == [(NOW + 70 * SECOND, NOW + 80 * SECOND)]
    assert gaps([before, live, again, late, segment("0003-late", 70.5, 80)]) == []
    assert gaps([HEAD]) == []
    assert [s.segment_id for s in in_order([again, late, live, before])] == ["0000-pre", "0001-live", "0002-late", "0002-live"]
