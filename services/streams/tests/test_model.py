"""Rules of an activation."""

from datetime import UTC, datetime, timedelta

import pytest

from services.streams.model import FINAL, Activation, Decision, KnownEmergency, State, activations, refusal_of_decision

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DECISION = Decision("e", 1, "pd", "anna", ("cam-a", "cam-b"), "", NOW + timedelta(minutes=2), "joiner/a", b"", b"")


def one(state: State = State.REQUESTED, ordered_at: datetime | None = None) -> Activation:
    return Activation("e", 1, "cam-a", 1, "pd", "anna", state, NOW, NOW + timedelta(minutes=2), ordered_at=ordered_at)


@pytest.mark.parametrize("before", list(State))
def test_the_cameras_first_word_is_final_whatever_came_before(before: State) -> None:
    after = one(before).answered(State.RECORDING, "", NOW, NOW)
    if before in FINAL:
        assert after.state == before
    else:
        assert (after.state, after.version) == (State.RECORDING, 2)
        assert after.answered(State.REFUSED, "DOCKED", NOW, NOW) is after


@pytest.mark.parametrize(
    ("ordered", "linked", "seconds", "state"),
    [
        (None, False, 1.9, State.REQUESTED),
        (None, False, 2, State.UNREACHABLE),
        (None, True, 4.9, State.REQUESTED),
        (None, True, 5, State.TIMED_OUT),
        (1, True, 5.9, State.REQUESTED),
        (1, True, 6, State.TIMED_OUT),
        (1, False, 6, State.TIMED_OUT),
    ],
)
def test_silence_has_an_outcome(ordered: int | None, linked: bool, seconds: float, state: State) -> None:
    waiting = one(ordered_at=None if ordered is None else NOW + timedelta(seconds=ordered))
    assert waiting.overdue(linked=linked, now=NOW + timedelta(seconds=seconds)).state == state


@pytest.mark.parametrize("state", [s for s in State if s != State.REQUESTED])
def test_only_a_request_can_be_overdue(state: State) -> None:
    assert one(state).overdue(linked=False, now=NOW + timedelta(hours=1)).state == state


def test_a_decision_gives_one_activation_a_camera_or_one_with_the_reason() -> None:
    both = activations(DECISION, emergency_is_open=True, now=NOW, traceparent="")
    assert [(a.camera_id, a.state) for a in both] == [("cam-a", State.REQUESTED), ("cam-b", State.REQUESTED)]
    closed = activations(DECISION, emergency_is_open=False, now=NOW, traceparent="")
    assert {a.state for a in closed} == {State.WITHDRAWN}
    none = Decision("e", 1, "pd", "", (), "RADIO_UNKNOWN", NOW, "joiner/a", b"", b"")
    assert [(a.camera_id, a.state, a.no_camera_reason) for a in activations(none, emergency_is_open=True, now=NOW, traceparent="")] == [
        ("", State.NO_CAMERA, "RADIO_UNKNOWN")
    ]


@pytest.mark.parametrize(
    ("known", "executed"),
    [
        (KnownEmergency("e", 1, 1, "pd", True, False), True),
        (None, False),
        (KnownEmergency("e", 2, 2, "pd", True, False), False),
        (KnownEmergency("e", 1, 1, "other", True, False), False),
        (KnownEmergency("e", 1, 1, "pd", True, False, "anna"), True),
        (KnownEmergency("e", 1, 1, "pd", True, False, "bert"), False),
        (KnownEmergency("e", 1, 1, "pd", True, False, ""), False),
    ],
)
def test_a_decision_counts_only_for_a_known_emergency_and_its_epoch(known: KnownEmergency | None, executed: bool) -> None:
    assert (refusal_of_decision(DECISION, known) == "") == executed
