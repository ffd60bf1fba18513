"""The state machine finds each fault that it is there for when that is put back into the code."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from services.emergency import model
from services.emergency.model import Emergency, Holder, Names, Outcome, Subject
from tests.model.test_machine import Path


def _bound_for_ever(self: Emergency, at: datetime, holder: Holder, bound: Subject | None, gate: timedelta, *rest: Any) -> Emergency:
    """A bound subject is kept for later epochs, with the cameras that were his or hers then."""
    if not self._is_over(at):
        return self
    return replace(self, unsettled_press_at=None)._begin(at, self.subject, gate, "", ack_stays=False)


def _request_for_ever(agency_id: str, radio: model.RadioId, request_id: str, *_: Any) -> Names:
    """A request_id is matched whatever else the press says."""
    key = f"{agency_id}/{radio}/r{request_id}"
    return Names(key, True, key, key)


def _never_again(*_: Any) -> bool:
    """A press is folded into an epoch whose start was refused."""
    return False


def _pending_is_failed(states: list[str]) -> Outcome:
    """A retry makes an epoch while the outcome is pending."""
    return Outcome.STARTED if "RECORDING" in states else Outcome.NOT_STARTED


_begin = Emergency._begin


def _kept_acknowledgement(self: Emergency, *arguments: Any, **named: Any) -> Emergency:
    """An acknowledgement survives another officer's press."""
    return replace(_begin(self, *arguments, **named), acknowledged=self.acknowledged)


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (Emergency, "_settle_bound", _bound_for_ever),
        (model, "press_names", _request_for_ever),
        (Emergency, "_may_retry", _never_again),
        (model, "outcome_of", _pending_is_failed),
        (Emergency, "_begin", _kept_acknowledgement),
    ],
    ids=lambda each: getattr(each, "__doc__", None) and getattr(each, "__name__", "").strip("_"),
)
def test_the_machine_finds_it(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, fault: Any) -> None:
    monkeypatch.setattr(where, name, fault)
    quick = settings(max_examples=2000, stateful_step_count=40, deadline=None, database=None, phases=[Phase.generate], derandomize=True)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Path, settings=quick)
