"""The whole path as one state machine over the pure parts: presses, repeats, shifts, cameras that change hands, cancels, binds, lanes that
hear late, twice or in the wrong order, cameras that report late or twice. After every step the invariants of the system hold.

What is right is worked out here from who held what when, never from what the code made of it; `test_mutants.py` puts old faults back."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from activation import join
from chassis.errors import SightlineError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sightline.activation.v1.activation_pb2 import ActivationDecision
from sightline.emergency.v1 import emergency_pb2
from sightline.registry.v1.duty_pb2 import DutyRecord

from services.emergency import model
from services.emergency.events import to_emergency
from services.emergency.model import (
    Disposition,
    Emergency,
    Fact,
    Holder,
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
CAMERAS = ("cam-1", "cam-2")
HEARD = st.sampled_from([[], [0], [1], [0, 1]])
GATEWAY, SUPERVISOR = Who(2, "gateway/g", "pd"), Who(1, "supervisor", "pd")


def _recent(data: st.DataObject, wire: list[bytes]) -> bytes:
    """Any of the last records; brokers repeat and reorder, but not without end."""
    return data.draw(st.sampled_from(wire[:-8:-1]))


@dataclass(frozen=True)
class Sent:
    """A press as it left the gateway."""

    request: str
    counter: int
    at: datetime


class Path(RuleBasedStateMachine):
    """One radio, two officers, two cameras, two lanes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 11, 21, 12, tzinfo=UTC)
        # registry
        self.radio_holds = [Hold("", "anna", Span(self.now - timedelta(hours=1), None))]
        self.camera_holds = [
            Hold(camera, officer, Span(self.now - timedelta(days=1), None)) for camera, officer in zip(CAMERAS, OFFICERS, strict=True)
        ]
        self.duty_version = 1
        self.duty_wire: list[bytes] = []
        # emergency
        self.emergencies: dict[str, Emergency] = {}
        self.presses: dict[str, tuple[Press, str]] = {}
        self.sent: list[Sent] = []
        self.answered: dict[str, tuple[str, datetime]] = {}  # emergency of a press's identity
        self.bound: dict[str, tuple[str, datetime]] = {}  # emergency → whom an operator bound, and when
        self.heard_states: dict[tuple[str, int], list[str]] = {}
        self.acknowledged_for: dict[str, str] = {}  # emergency → whom an acknowledgement was for, until the registry names the next
        self.cancels: dict[str, Fact] = {}
        self.event_wire: list[bytes] = []
        self.ever_unpinned = False
        self.right_cameras: dict[tuple[str, int], tuple[str, ...]] = {}
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

    @rule(heard=HEARD)
    def cameras_change_hands(self, heard: list[int]) -> None:
        """Each takes the other's camera, as at a shift's end."""
        self.now += timedelta(microseconds=1)
        started = max(hold.span.start for hold in self.camera_holds)
        at = max(self.now, started + timedelta(microseconds=1))
        ended = [h if h.span.end else replace(h, span=Span(h.span.start, at)) for h in self.camera_holds]
        taken = [Hold(h.item, next(o for o in OFFICERS if o != h.officer_id), Span(at, None)) for h in self.camera_holds if not h.span.end]
        self.camera_holds = [*ended, *taken]
        self._change_duty(heard)

    @rule(seconds=st.sampled_from([1, 4, 6, 60, 130, 3000]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    def _carried(self, officer: str, at: datetime) -> tuple[str, ...]:
        return tuple(h.item for h in self.camera_holds if h.officer_id == officer and h.span.holds(at))

    # --- presses ---

    def _holder(self, at: datetime) -> Holder:
        """What the registry says of the radio."""
        held = self._duty().at(at)
        if held is None:
            return Holder(Subject(SubjectState.NOBODY, duty_version=self.duty_version, home_agency_id="pd"))
        subject = Subject(SubjectState.HELD, held.officer_id, "", self.duty_version, held.held_since, held.span.end, "pd")
        return Holder(subject, camera_ids=held.camera_ids)

    def _hold(self, at: datetime) -> Hold | None:
        """Who held the radio, by the registry's own rows."""
        return next((hold for hold in self.radio_holds if hold.span.holds(at)), None)

    def _right_officer(self, emergency_id: str, at: datetime) -> str:
        """Whose a press is: who held the radio, unless an operator bound somebody after that hold began."""
        hold, bound = self._hold(at), self.bound.get(emergency_id)
        if bound is None or (hold is not None and hold.span.start > bound[1]):
            return hold.officer_id if hold else ""
        return bound[0]

    def _begun(self, there: Emergency, folded: Emergency, at: datetime) -> None:
        """An epoch has begun with a press: only with cameras of whoever is right, and with an acknowledgement only if it is theirs."""
        name, officer = (folded.emergency_id, folded.epoch), self._right_officer(folded.emergency_id, at)
        self.right_cameras[name] = self._carried(officer, at) if officer else ()
        over = at >= there.activation_expires_at or there.stale_on_arrival
        settled, answered = there.subject.state != SubjectState.UNPINNED, folded.subject.state != SubjectState.UNPINNED
        self.acknowledged_for.pop(there.emergency_id, None)
        if over or (settled and answered and officer != there.subject.officer_id):
            assert folded.acknowledged is None, "an acknowledgement outlived what it answered"
        elif settled and answered:
            assert folded.acknowledged == there.acknowledged, "an acknowledgement fell for a retry of the same officer"
        elif settled:
            self.acknowledged_for[there.emergency_id] = there.subject.officer_id  # whose press this is, the registry says later
        hold = self._hold(at)
        if hold is not None and hold.officer_id == officer:
            self.bound.pop(there.emergency_id, None)  # the registry says so itself: from here on it is the registry's word

    def _should_begin(self, there: Emergency, at: datetime) -> bool | None:
        """Whether a press that the registry answered begins an epoch; None where that depends on what is not known yet."""
        if there.subject.state == SubjectState.UNPINNED or there.emergency_id in self.bound:
            return None
        hold, states = self._hold(at), self.heard_states.get((there.emergency_id, there.epoch), [])
        if at >= there.activation_expires_at or there.stale_on_arrival:
            return True
        if hold is not None and hold.officer_id != there.subject.officer_id:
            return True
        if at < there.epoch_started_at + timedelta(seconds=5) or not states or hold is None:
            return False
        if all(state in ("REFUSED", "UNREACHABLE", "TIMED_OUT") for state in states):
            return True
        return states == ["NO_CAMERA"] and bool(self._carried(hold.officer_id, at))

    def _open(self) -> Emergency | None:
        return next((e for e in self.emergencies.values() if e.is_open), None)

    def _keep(self, emergency: Emergency, heard: Iterable[int] = ()) -> None:
        """The next version, which some lanes hear of at once."""
        self.emergencies[emergency.emergency_id] = emergency
        self.event_wire.append(emergency_pb2.EmergencyEvent(emergency=to_emergency(emergency)).SerializeToString())
        for lane in heard:
            self._hear(lane, self.event_wire[-1], at_once=True)

    @rule(late=st.sampled_from([0, 0, 0, 1, 30, 119, 120, 1500]), registry_answers=st.booleans(), heard=HEARD)
    def press(self, late: int, registry_answers: bool, heard: list[int]) -> None:
        number = len(self.sent)
        self._send(
            Sent(f"request-{number}", number + 1, self.now - timedelta(seconds=late)), registry_answers=registry_answers, heard=heard
        )

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), heard=HEARD)
    def the_gateway_repeats_a_press(self, data: st.DataObject, heard: list[int]) -> None:
        """However late, it is answered as before."""
        old = data.draw(st.sampled_from(self.sent[-3:]))
        count, (_, emergency_id) = len(self.presses), self.presses[f"{old.request}/{old.counter}"]
        assert self._send(old, registry_answers=True, heard=heard) == emergency_id
        assert len(self.presses) == count

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), heard=HEARD)
    def a_request_id_comes_with_another_press(self, data: st.DataObject, heard: list[int]) -> None:
        """A gateway that derives its ids badly, or counts anew: another press all the same."""
        old = data.draw(st.sampled_from(self.sent[-3:]))
        self._send(Sent(old.request, 1000 + len(self.sent), self.now), registry_answers=True, heard=heard)

    def _send(self, sent: Sent, *, registry_answers: bool, heard: list[int]) -> str:
        waited = self.now - sent.at
        clocks = read_clocks(sent.at, self.now, None, self.now, GATE, waited=waited)
        names = model.press_names("pd", RADIO, sent.request, (sent.counter, 7), sent.at)
        is_new = sent not in self.sent
        if known := self.answered.get(names.identity):
            assert not is_new, "a press was taken for the repeat of another"
            if names.lasts or self.now - known[1] < model.KEY_LIFE:
                return known[0]
        assert is_new, "a repeat was taken for another press"
        self.sent.append(sent)
        press = Press(names, sent.request, RADIO, clocks, Status.ACTUAL, GATEWAY)
        self.ever_unpinned = self.ever_unpinned or not registry_answers
        holder = self._holder(clocks.press_time) if registry_answers else model.NO_WORD
        emergency_id = self._take(press, holder, heard)
        self.presses[f"{sent.request}/{sent.counter}"] = press, emergency_id
        self.answered[names.identity] = emergency_id, self.now
        return emergency_id

    def _take(self, press: Press, holder: Holder, heard: list[int]) -> str:
        at, cancel = press.clocks.press_time, self.cancels.pop(press.names.key, None)
        if there := self._open():
            outcome = model.outcome_of(self.heard_states.get((there.emergency_id, there.epoch), []))
            should = self._should_begin(there, at) if holder is not model.NO_WORD and not press.is_stale(GATE) else None
            folded = there.fold(press, holder, GATE, cancel, outcome)
            if should is not None:
                assert (folded.epoch > there.epoch) == should, f"epoch {there.epoch}, {outcome}: should begin another: {should}"
            if folded.epoch > there.epoch:
                self._begun(there, folded, at)
            self._keep(folded, heard)
            return there.emergency_id
        opened = open_emergency(f"e-{len(self.emergencies)}", press, holder.subject, GATE, None, cancel)
        hold = self._hold(at)
        self.right_cameras[opened.emergency_id, 1] = self._carried(hold.officer_id, at) if hold else ()
        self._keep(opened, heard)
        return opened.emergency_id

    @precondition(lambda self: self._open())
    @rule()
    def the_registry_answers_late(self) -> None:
        there = self._open()
        assert there is not None
        if there.subject.state == SubjectState.UNPINNED:
            filled = there.fill(self._holder(there.epoch_started_at).subject, self.now)
            if (before := self.acknowledged_for.pop(there.emergency_id, None)) is not None:
                officer = filled.subject.officer_id
                assert filled.acknowledged == (there.acknowledged if officer == before else None), "an acknowledgement of another's press"
            self._keep(filled)
            return
        if (at := there.unsettled_press_at) is None:
            return
        officer = there.subject.officer_id
        is_bound = there.subject.state == SubjectState.BOUND
        bound = Subject(SubjectState.BOUND, officer, home_agency_id="pd", camera_ids=self._carried(officer, at)) if is_bound else None
        outcome = model.outcome_of(self.heard_states.get((there.emergency_id, there.epoch), []))
        settled = there.settle_late(self._holder(at), bound, GATE, outcome)
        assert settled.unsettled_press_at is None, "a press stays unsettled though the registry has answered"
        if settled.epoch > there.epoch:
            self._begun(there, settled, at)
        self._keep(settled)

    @precondition(lambda self: self._open())
    @rule(officer=st.sampled_from(OFFICERS), heard=HEARD)
    def bind(self, officer: str, heard: list[int]) -> None:
        there = self._open()
        assert there is not None
        cameras = self._carried(officer, self.now)
        bound = there.bind(Subject(SubjectState.BOUND, officer, home_agency_id="pd", camera_ids=cameras), self.now, GATE, note="heard")
        assert bound.acknowledged == there.acknowledged, "a bind is no press"
        self.acknowledged_for.pop(bound.emergency_id, None)
        self.bound[bound.emergency_id] = officer, self.now
        self.right_cameras[bound.emergency_id, bound.epoch] = cameras
        self._keep(bound, heard)

    @precondition(lambda self: self._open())
    @rule(
        officer=st.sampled_from(OFFICERS), takes=st.sampled_from([*OFFICERS, "", "keeps"]), seconds=st.sampled_from([1, 130]), heard=HEARD
    )
    def after_a_bind_things_change_hands_and_somebody_presses(self, officer: str, takes: str, seconds: int, heard: list[int]) -> None:
        """Nobody held the radio, an operator bound somebody; hours later all is different."""
        self.bind(officer, heard)
        self.cameras_change_hands(heard)
        if takes != "keeps":
            self.hand_over(takes, heard)
        self.now += timedelta(seconds=seconds)
        self.press(0, True, heard)
        self.the_registry_answers_late()
        self.streams_reconciles()
        for name in list(self.activations):
            self._order(name, refuses=False)

    @precondition(lambda self: self._open())
    @rule()
    def acknowledge(self) -> None:
        there = self._open()
        assert there is not None
        acknowledged = there.acknowledge(Fact(SUPERVISOR, self.now))
        assert acknowledged.acknowledged is not None
        if acknowledged is not there:
            self._keep(acknowledged)

    @precondition(lambda self: self.activations)
    @rule()
    def outcomes_are_heard_of(self) -> None:
        """Results come by Kafka: later, or never."""
        self.heard_states = {}
        for (emergency_id, epoch, _), a in self.activations.items():
            self.heard_states.setdefault((emergency_id, epoch), []).append(a.state.value)

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
        number = len(self.sent)
        names = model.press_names("pd", RADIO, f"request-{number}", (number + 1, 7))
        self.cancels[names.key] = Fact(GATEWAY, self.now)

    @precondition(lambda self: self._open())
    @rule()
    def clear(self) -> None:
        there = self._open()
        assert there is not None
        self._keep(there.clear(Fact(SUPERVISOR, self.now), Disposition.RESOLVED))
        try:
            self.emergencies[there.emergency_id].fold(next(iter(self.presses.values()))[0], model.NO_WORD, GATE)
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
                assert tuple(decision.camera_ids) == self.right_cameras[e.emergency_id, e.epoch]
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

    @precondition(lambda self: self._open())
    @rule(seconds=st.sampled_from([1, 6]), heard=HEARD)
    def every_camera_refuses_and_the_wearer_presses_again(self, seconds: int, heard: list[int]) -> None:
        """Asleep, docked, storage full: all hear of it, and time passes."""
        self.streams_reconciles()
        there = self._open()
        assert there is not None
        for name in [n for n in self.activations if n[:2] == (there.emergency_id, there.epoch)]:
            self._order(name, refuses=True)
        self.outcomes_are_heard_of()
        self.now += timedelta(seconds=seconds)
        self.press(0, True, heard)

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
            assert camera_id in self.right_cameras[emergency_id, epoch], f"{camera_id} of the wrong officer"

    @invariant()
    def a_final_word_has_a_camera_or_a_reason(self) -> None:
        for (_, _, camera_id), a in self.activations.items():
            assert (a.state == State.NO_CAMERA) == (camera_id == "")
            assert a.state in FINAL or a.state in (State.REQUESTED, State.WITHDRAWN, State.UNREACHABLE, State.TIMED_OUT)
            assert a.state != State.NO_CAMERA or a.no_camera_reason


Path.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestPath = Path.TestCase
