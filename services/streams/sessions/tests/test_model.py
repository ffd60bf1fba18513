"""Sessions only end for a reason, grants only once, and silence is never an end."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.streams.sessions.model import (
    GRACE,
    GRANT_LASTS,
    LEASE,
    TOKEN_LASTS,
    Grant,
    GrantEnd,
    Session,
    SessionEnd,
    SessionState,
    Use,
    Wanted,
    cameras_of,
    choose,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
WANTED = Wanted("pd", "cam-1", "officer-1", "01a1ffd2-2e2d-779c-919b-5890aa3aed7f", 1, "")
NEW = Session.begin("01a1ffd2-2e94-72ac-84c2-06579057fd9a", WANTED, "a", "token", NOW)
GRANT = Grant(
    "g", 1, NEW.session_id, "cam-1", WANTED.emergency_id, "pd", "supervisor", "a", b"hash", NOW + TOKEN_LASTS, NOW, NOW + GRANT_LASTS
)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def live(seconds: float = 1) -> Session:
    return NEW.admitted().heard(after(seconds), stopped=False, now=after(seconds))


def test_a_session_comes_to_life_with_its_first_media() -> None:
    assert NEW.state == SessionState.GRANTED
    assert NEW.admitted().state == SessionState.CONNECTING
    assert NEW.admitted().admitted() == NEW.admitted()
    assert (live().state, live().live_at, live().version) == (SessionState.LIVE, after(1), 3)


def test_silence_first_degrades_then_interrupts_and_media_makes_a_gap_of_it() -> None:
    session = live(1)
    assert session.silent(after(3.9)) is session
    degraded = session.silent(after(4))
    assert (degraded.state, degraded.degraded) == (SessionState.LIVE, True)
    interrupted = degraded.silent(after(16))
    assert (interrupted.state, interrupted.degraded) == (SessionState.INTERRUPTED, False)
    assert interrupted.silent(after(100_000)) is interrupted
    assert interrupted.silent(after(8 * 86_400)).end_cause == "CAMERA_LOST"
    back = interrupted.heard(after(60), stopped=False, now=after(60))
    assert (back.state, back.gaps) == (SessionState.LIVE, ((after(1), after(60)),))
    assert degraded.heard(after(5), stopped=False, now=after(5)).degraded is False


def test_old_news_changes_nothing() -> None:
    session = live(10)
    assert session.heard(after(9), stopped=False, now=after(10)) is session
    interrupted = session.silent(after(40))
    assert interrupted.heard(after(10), stopped=False, now=after(41)) is interrupted


def test_an_end_is_final_and_has_its_first_cause() -> None:
    ended = live().heard(after(2), stopped=True, now=after(2))
    assert (ended.state, ended.end_cause, ended.ended_at) == (SessionState.ENDED, "CAMERA_STOPPED", after(2))
    assert ended.ended(SessionEnd.HOLDER_CHANGED, after(3)) is ended
    assert ended.heard(after(4), stopped=False, now=after(4)) is ended
    assert ended.silent(after(100)) is ended


def test_what_is_stored_of_live_media_is_no_new_version() -> None:
    assert live(1).heard(after(2), stopped=False, now=after(2)).version == live(1).version


def test_a_full_relay_is_better_than_none() -> None:
    assert choose({"a": 0, "b": 9}, 3, {"a"}) == ["b", "b", "b"]
    assert choose({"a": 1, "b": 0}, 2, {"a", "b"}) == ["b", "a"]


def test_what_is_muted_or_not_kept_is_told_but_not_again_and_again() -> None:
    muted = NEW.muted(is_muted=True)
    assert (muted.audio_muted, muted.version) == (True, 2)
    assert muted.muted(is_muted=True) is muted
    lost = muted.not_kept(after(1))
    assert (lost.not_kept_at, lost.version) == (after(1), 3)
    assert lost.not_kept(after(10)) is lost
    assert lost.not_kept(after(60)).version == 4


def test_a_grant_is_redeemed_once_in_time_and_not_after_its_end() -> None:
    redeemed = GRANT.redeemed("a", after(5))
    assert (redeemed.redeemed_at, redeemed.lease_until) == (after(5), after(5) + LEASE)
    assert redeemed.redeemed("a", after(6)) is redeemed
    assert GRANT.redeemed("a", NOW + TOKEN_LASTS) is GRANT
    revoked = GRANT.revoked(GrantEnd.REVOKED, after(1))
    assert revoked.redeemed("a", after(2)) is revoked
    assert revoked.ended_at == after(1)  # nobody has come with it


def test_the_end_is_the_relays_word() -> None:
    revoked = GRANT.redeemed("a", after(1)).revoked(GrantEnd.EMERGENCY_CLEARED, after(2))
    assert revoked.ended_at is None
    ended = revoked.used(Use("g", 100, 0, after(2), after(3)), after(4))
    assert (ended.end_cause, ended.ended_at, ended.bytes) == ("EMERGENCY_CLEARED", after(3), 100)
    assert ended.used(Use("g", 5, 0, None, after(9)), after(9)) is ended
    left = GRANT.redeemed("a", after(1)).used(Use("g", 7, 1, after(2), after(3)), after(4))
    assert (left.end_cause, left.revoked_at) == ("VIEWER_LEFT", after(4))


def test_time_alone_ends_what_nobody_uses_prolongs_or_renews() -> None:
    assert GRANT.lapsed(after(59)) is GRANT
    assert GRANT.lapsed(after(60)).end_cause == "NOT_USED"
    watching = replace(GRANT.redeemed("a", NOW), lease_until=NOW + GRANT_LASTS)
    assert watching.lapsed(NOW + GRANT_LASTS).end_cause == "EXPIRED"
    assert watching.lapsed(NOW + GRANT_LASTS).ended_at is None
    assert watching.extended(after(300)).lapsed(NOW + GRANT_LASTS).revoked_at is None
    lost = GRANT.redeemed("a", NOW).lapsed(NOW + LEASE + GRACE)
    assert (lost.end_cause, lost.ended_at) == ("RELAY_LOST", NOW + LEASE + GRACE)
    assert lost.lapsed(NOW + GRANT_LASTS) is lost
    assert lost.extended(after(1)) is lost


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 50), max_size=4), st.integers(0, 60))
def test_sessions_go_where_there_is_most_room(loads: dict[str, int], count: int) -> None:
    chosen = choose(loads, count)
    assert len(chosen) == count
    assert set(chosen) <= (set(loads) or {""})
    filled = {relay: load + chosen.count(relay) for relay, load in loads.items()}
    used = [filled[relay] for relay in set(chosen) if relay]
    # Who got something is not fuller than the emptiest afterwards, by more than one.
    assert all(load <= min(filled.values()) + 1 for load in used)


@given(st.lists(st.tuples(st.sampled_from(["pd", "fd"]), st.sampled_from(["c1", "c2", "c3"])), max_size=8))
def test_cameras_are_named_once_and_in_order(names: list[tuple[str, str]]) -> None:
    found = cameras_of([replace(NEW, agency_id=agency, camera_id=camera) for agency, camera in names])
    flat = [(agency, camera) for agency, cameras in found.items() for camera in cameras]
    assert set(flat) == set(names)
    assert all(before < later for before, later in pairwise(flat))
