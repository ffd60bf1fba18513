"""The whole path as one state machine over the pure parts: presses, shifts, cancels, binds, lanes that hear late, twice or
in the wrong order, cameras that report late or twice. After every step the invariants of the system hold."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from activation import join
from chassis.errors import SightlineError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sightline.activation.v1.activation_pb2 import ActivationDecision
from sightline.emergency.v1 import emergency_pb2
from sightline.registry.v1.duty_pb2 import DutyRecord

from services.emergency.events import to_emergency
from services.emergency.model import (
    Disposition,
    Emergency,
    Fact,
    Press,
    Status,
    Subject,
    SubjectState,
    Who,
    open_emergency,
    read_clocks,
)
from services.emergency.model import RadioId as PressedRadio
from services.registry.events import to_duty
from services.registry.model import Duty, Hold, RadioId, Span, intervals
from services.streams.events import to_decision, to_known
from services.streams.model import FINAL, Activation, KnownEmergency, State, activations, is_early, refusal_of_decision

GATE = timedelta(seconds=120)
RADIO = PressedRadio(1, 2, 3)
OFFICERS = ("anna", "bert")
HEARD = st.sampled_from([[], [0], [1], [0, 1]])
GATEWAY, SUPERVISOR = Who(2, "gateway/g", "pd"), Who(1, "supervisor", "pd")


def _recent(data: st.DataObject, wire: list[bytes]) -> bytes:
    """Any of the last records; brokers repeat and reorder, but not without end."""
    return data.draw(st.sampled_from(wire[:-8:-1]))


class Path(RuleBasedStateMachine):
    """One radio, two officers with a camera each, two lanes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 11, 21, 12, tzinfo=UTC)
        # registry
        self.radio_holds = [Hold("", "anna", Span(self.now - timedelta(hours=1), None))]
        self.camera_holds = [Hold(f"cam-{o}", o, Span(self.now - timedelta(days=1), None)) for o in OFFICERS]
        self.duty_version = 1
        self.duty_wire: list[bytes] = []
        # emergency
        self.emergencies: dict[str, Emergency] = {}
        self.presses: dict[str, tuple[Press, str]] = {}
        self.cancels: dict[str, Fact] = {}
        self.event_wire: list[bytes] = []
        self.ever_unpinned = False
        self.holder_at_press: dict[tuple[str, int], str] = {}
        # lanes: newest duty record each, parked event each
        self.duty_seen: list[DutyRecord] = []
        self.decision_wire: list[bytes] = []
        # streams
        self.known: dict[str, KnownEmergency] = {}
        self.accepted: dict[tuple[str, int], bytes] = {}
        self.activations: dict[tuple[str, int, str], Activation] = {}
        # cameras
        self.started: list[tuple[str, str, int]] = []
        self._announce_duty()
        self.duty_seen = [DutyRecord.FromString(self.duty_wire[0])] * 2

    # --- registry ---

    def _duty(self) -> Duty:
        found = intervals(self.radio_holds, self.camera_holds, [])
        return Duty(RadioId(1, 2, 3), "pd", self.duty_version, found)

    def _announce_duty(self) -> None:
        self.duty_wire.append(to_duty(self._duty(), self.now).SerializeToString())

    @rule(takes=st.sampled_from([*OFFICERS, ""]), heard=HEARD)
    def hand_over(self, takes: str, heard: list[int]) -> None:
        """Whoever holds the radio gives it back, and somebody or nobody takes it at the same instant."""
        moment = timedelta(microseconds=1)
        self.now += moment  # a press at the very instant of the change is the next holder's
        self.radio_holds = [
            h if h.span.end else replace(h, span=Span(h.span.start, max(self.now, h.span.start + moment))) for h in self.radio_holds
        ]
        if takes:
            start = max([self.now, *(h.span.end for h in self.radio_holds if h.span.end)])
            self.radio_holds.append(Hold("", takes, Span(start, None)))
        self._change_duty(heard)

    @precondition(lambda self: not self.ever_unpinned)  # such a press has no pin that a changed past could contradict
    @rule(was=st.sampled_from(OFFICERS), heard=HEARD)
    def correct_the_past(self, was: str, heard: list[int]) -> None:
        """The registry finds out that somebody else held the radio all the time."""
        self.radio_holds = [replace(h, officer_id=was) for h in self.radio_holds]
        self._change_duty(heard)

    def _change_duty(self, heard: list[int]) -> None:
        """A new version, which some lanes hear of at once and others later or never."""
        self.duty_version += 1
        self._announce_duty()
        for lane in heard:
            self.duty_seen[lane] = DutyRecord.FromString(self.duty_wire[-1])

    @rule(seconds=st.integers(1, 200))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    # --- presses ---

    def _pin(self, at: datetime) -> Subject:
        held = self._duty().at(at)
        if held is None:
            return Subject(SubjectState.NOBODY, duty_version=self.duty_version, home_agency_id="pd")
        return Subject(SubjectState.HELD, held.officer_id, "", self.duty_version, held.span.start, held.span.end, "pd")

    def _open(self) -> Emergency | None:
        return next((e for e in self.emergencies.values() if e.is_open), None)

    def _keep(self, emergency: Emergency, heard: Iterable[int] = ()) -> None:
        """The next version, which some lanes hear of at once."""
        self.emergencies[emergency.emergency_id] = emergency
        self.event_wire.append(emergency_pb2.EmergencyEvent(emergency=to_emergency(emergency)).SerializeToString())
        for lane in heard:
            self._hear(lane, self.event_wire[-1], at_once=True)

    @rule(late=st.sampled_from([0, 1, 30, 119, 120, 1500]), registry_answers=st.booleans(), heard=HEARD)
    def press(self, late: int, registry_answers: bool, heard: list[int]) -> None:
        clocks = read_clocks(self.now - timedelta(seconds=late), self.now, None, self.now, GATE)
        key = f"press-{len(self.presses)}"
        press = Press(key, key, key, RADIO, clocks, Status.ACTUAL, GATEWAY)
        self.ever_unpinned = self.ever_unpinned or not registry_answers
        subject = self._pin(clocks.press_time) if registry_answers else Subject(SubjectState.UNPINNED)
        held = self._duty().at(clocks.press_time)
        cancel = self.cancels.pop(key, None)
        if there := self._open():
            folded = there.fold(press, subject, GATE, cancel)
            if folded.epoch > there.epoch:
                bound = folded.subject.state == SubjectState.BOUND
                self.holder_at_press[folded.emergency_id, folded.epoch] = (
                    folded.subject.officer_id if bound else held.officer_id if held else ""
                )
            self.presses[key] = press, there.emergency_id
            self._keep(folded, heard)
            return
        opened = open_emergency(f"e-{len(self.emergencies)}", press, subject, GATE, None, cancel)
        self.holder_at_press[opened.emergency_id, 1] = held.officer_id if held else ""
        self.presses[key] = press, opened.emergency_id
        self._keep(opened, heard)

    @precondition(lambda self: self._open())
    @rule()
    def fill_pin(self) -> None:
        there = self._open()
        assert there is not None
        filled = there.fill(self._pin(there.epoch_started_at), self.now)
        if filled is not there:
            self._keep(filled)

    @precondition(lambda self: self._open())
    @rule(officer=st.sampled_from(OFFICERS), heard=HEARD)
    def bind(self, officer: str, heard: list[int]) -> None:
        there = self._open()
        assert there is not None
        bound = there.bind(Subject(SubjectState.BOUND, officer, camera_ids=(f"cam-{officer}",)), self.now, GATE)
        self.holder_at_press[bound.emergency_id, bound.epoch] = officer
        self._keep(bound, heard)

    @precondition(lambda self: self._open())
    @rule()
    def cancel(self) -> None:
        there = self._open()
        assert there is not None
        cancelled = there.request_cancel(Fact(GATEWAY, self.now), there.last_press_key)
        assert cancelled.is_open
        self._keep(cancelled)

    @rule()
    def cancel_before_its_press(self) -> None:
        self.cancels[f"press-{len(self.presses)}"] = Fact(GATEWAY, self.now)

    @precondition(lambda self: self._open())
    @rule()
    def clear(self) -> None:
        there = self._open()
        assert there is not None
        self._keep(there.clear(Fact(SUPERVISOR, self.now), Disposition.RESOLVED))
        try:
            self.emergencies[there.emergency_id].fold(next(iter(self.presses.values()))[0], Subject(SubjectState.NOBODY), GATE)
            raise AssertionError("a cleared emergency took a press")
        except SightlineError:
            pass

    # --- lanes: hear any record, in any order, any number of times ---

    @rule(lane=st.integers(0, 1), data=st.data())
    def lane_hears_duty(self, lane: int, data: st.DataObject) -> None:
        record = DutyRecord.FromString(_recent(data, self.duty_wire))
        if record.version > self.duty_seen[lane].version:
            self.duty_seen[lane] = record

    @precondition(lambda self: self.event_wire)
    @rule(lane=st.integers(0, 1), data=st.data(), at_once=st.booleans())
    def lane_hears_emergency(self, lane: int, data: st.DataObject, at_once: bool) -> None:
        self._hear(lane, _recent(data, self.event_wire), at_once)

    def _hear(self, lane: int, content: bytes, at_once: bool) -> None:
        """`at_once` lets the decision go through to the cameras before anything else happens."""
        event = emergency_pb2.EmergencyEvent.FromString(content)
        duty = self.duty_seen[lane]
        decision = join(event.emergency, duty, duty_is_fresh=duty.version == self.duty_version)
        e = event.emergency
        if e.state == emergency_pb2.EMERGENCY_STATE_OPEN and e.subject.state == emergency_pb2.SUBJECT_STATE_HELD and not e.stale_on_arrival:
            # The very record that the pin rests on is always an answer, and never any other.
            if duty.version == e.subject.duty_version:
                assert decision is not None
                assert list(decision.camera_ids) == [f"cam-{e.subject.officer_id}"]
            assert duty.version >= e.subject.duty_version or decision is None
        if decision is not None:
            self.decision_wire.append(decision.SerializeToString(deterministic=True))
            if at_once:
                self._decide(self.decision_wire[-1])
                for name in [n for n in self.activations if n[:2] == (decision.emergency_id, decision.epoch)]:
                    self._order(name, refuses=False)

    # --- streams ---

    @precondition(lambda self: self.event_wire)
    @rule(data=st.data())
    def streams_hears_emergency(self, data: st.DataObject) -> None:
        e = emergency_pb2.EmergencyEvent.FromString(_recent(data, self.event_wire)).emergency
        self._know(to_known(e))

    def _know(self, fact: KnownEmergency) -> None:
        known = self.known.get(fact.emergency_id)
        if known is not None and known.version >= fact.version:
            return
        self.known[fact.emergency_id] = fact
        for name, a in self.activations.items():
            if name[0] == fact.emergency_id and (not fact.is_open or name[1] < fact.epoch):
                self.activations[name] = a.withdrawn()

    @precondition(lambda self: self.decision_wire)
    @rule(data=st.data())
    def streams_hears_decision(self, data: st.DataObject) -> None:
        self._decide(_recent(data, self.decision_wire))

    def _decide(self, content: bytes) -> None:
        decision = to_decision(ActivationDecision.FromString(content), "lane")
        if is_early(decision, self.known.get(decision.emergency_id)):
            self._know(to_known(to_emergency(self.emergencies[decision.emergency_id])))
        known = self.known[decision.emergency_id]
        name = (decision.emergency_id, decision.epoch)
        if not refusal_of_decision(decision, known) and name not in self.accepted:
            self.accepted[name] = decision.content
            for a in activations(decision, emergency_is_open=known.is_open, now=self.now, traceparent=""):
                assert (*name, a.camera_id) not in self.activations
                self.activations[*name, a.camera_id] = a

    @precondition(lambda self: self._open())
    @rule()
    def streams_reconciles(self) -> None:
        """Whatever was lost on the way, the owner's and the registry's own word decide."""
        there = self._open()
        assert there is not None
        emergency = to_emergency(there)
        self._know(to_known(emergency))
        decision = join(emergency, DutyRecord.FromString(self.duty_wire[-1]), duty_is_fresh=True)
        assert decision is not None
        self._decide(decision.SerializeToString(deterministic=True))
        assert (there.emergency_id, there.epoch) in self.accepted

    @precondition(lambda self: self.activations)
    @rule(data=st.data(), refuses=st.booleans())
    def camera_gets_its_orders(self, data: st.DataObject, refuses: bool) -> None:
        self._order(data.draw(st.sampled_from(sorted(self.activations))), refuses)

    def _order(self, name: tuple[str, int, str], refuses: bool) -> None:
        """Orders name open, unexpired emergencies of the present epoch; the camera acts once on each name."""
        a, known = self.activations[name], self.known[name[0]]
        if not name[2] or not known.is_open or known.epoch != name[1] or self.now >= a.expires_at:
            return
        if (name[2], name[0], name[1]) not in self.started and not refuses:
            self.started.append((name[2], name[0], name[1]))
        self.activations[name] = a.answered(State.REFUSED if refuses else State.RECORDING, "", self.now, self.now)

    @precondition(lambda self: self.activations)
    @rule(linked=st.booleans())
    def nobody_says_anything(self, linked: bool) -> None:
        self.activations = {n: a.overdue(linked=linked, now=self.now) for n, a in self.activations.items()}

    # --- what must hold ---

    @invariant()
    def one_open_emergency_a_radio(self) -> None:
        assert sum(e.is_open for e in self.emergencies.values()) <= 1

    @invariant()
    def every_press_belongs_to_one_emergency(self) -> None:
        assert all(emergency_id in self.emergencies for _, emergency_id in self.presses.values())
        assert sum(1 + e.repeat_count for e in self.emergencies.values()) == len(self.presses)

    @invariant()
    def only_cameras_of_who_held_the_radio_start_and_once(self) -> None:
        assert len(self.started) == len(set(self.started))
        for camera_id, emergency_id, epoch in self.started:
            assert camera_id == f"cam-{self.holder_at_press[emergency_id, epoch]}"

    @invariant()
    def a_final_word_has_a_camera_or_a_reason(self) -> None:
        for (_, _, camera_id), a in self.activations.items():
            assert (a.state == State.NO_CAMERA) == (camera_id == "")
            assert a.state in FINAL or a.state in (State.REQUESTED, State.WITHDRAWN, State.UNREACHABLE, State.TIMED_OUT)
            assert a.state != State.NO_CAMERA or a.no_camera_reason


Path.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestPath = Path.TestCase
