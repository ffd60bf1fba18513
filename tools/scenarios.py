"""What can happen when a button is pressed, each with what must come of it. The demo shows them, the tests assert them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import grpc
from chassis.rpc import reason_of
from sightline.activation.v1.activation_pb2 import NoCameraReason, RefusalReason
from sightline.emergency.v1.emergency_pb2 import EMERGENCY_STATE_OPEN, SubjectState

from tools.roster import Member, radio
from tools.simulator.camera import Camera
from tools.world import World

_STORM = 100


@dataclass(frozen=True)
class Outcome:
    """What was expected and what was found."""

    expected: Mapping[str, Any]
    found: Mapping[str, Any]
    emergency_id: str = ""
    command_ms: float | None = None

    @property
    def ok(self) -> bool:
        """Whether they are the same."""
        return dict(self.expected) == dict(self.found)

    def difference(self) -> str:
        """What differs, for people."""
        keys = [k for k in {**self.expected, **self.found} if self.expected.get(k) != self.found.get(k)]
        return "; ".join(f"{k}: expected {self.expected.get(k)}, found {self.found.get(k)}" for k in keys)


@dataclass(frozen=True)
class Scenario:
    """A named story; `run` gets the world and a member on shift."""

    name: str
    expects: str
    run: Callable[[World, Member], Awaitable[Outcome]]
    cameras: int = 1
    linked: bool = True
    on_shift: bool = field(default=True)


def _camera(world: World, member: Member) -> Camera:
    return world.cameras[member.camera_ids[0]]


async def _look(world: World, member: Member, emergency_id: str, states: Mapping[str, str]) -> dict[str, Any]:
    """The facts that most scenarios compare."""
    emergency = await world.pinned(emergency_id)
    return {
        "open": emergency.state == EMERGENCY_STATE_OPEN,
        "officer": emergency.subject.officer_id,
        "repeats": emergency.repeat_count,
        "cameras": dict(states),
        "starts": sum(len(world.cameras[camera_id].starts) for camera_id in member.camera_ids),
    }


def _facts(member: Member, state: str = "RECORDING", *, repeats: int = 0, starts: int = 1) -> dict[str, Any]:
    cameras = dict.fromkeys(member.camera_ids, state)
    return {"open": True, "officer": member.officer_id, "repeats": repeats, "cameras": cameras, "starts": starts}


async def _command_ms(world: World, emergency_id: str) -> float | None:
    """Milliseconds from the press to the camera's confirmation, on the platform's clock."""
    answer = await world.get(emergency_id)
    answered = [a.answered_at.ToNanoseconds() for a in answer.activations if a.HasField("answered_at")]
    return (min(answered) - answer.emergency.clocks.press_time.ToNanoseconds()) / 1e6 if answered else None


async def _end(world: World, member: Member, emergency_id: str, expected: dict[str, Any], states: Mapping[str, str]) -> Outcome:
    found = await _look(world, member, emergency_id, states)
    return Outcome(expected, found, emergency_id, await _command_ms(world, emergency_id))


async def single(world: World, member: Member) -> Outcome:
    """One press, one camera."""
    pressed = await world.press(member.radio)
    states = await world.states(pressed.emergency_id)
    return await _end(world, member, pressed.emergency_id, _facts(member), states)


async def double_press(world: World, member: Member) -> Outcome:
    """A second press folds into the open emergency and starts nothing again."""
    first, second = await world.press(member.radio), await world.press(member.radio)
    states = await world.states(first.emergency_id)
    outcome = await _end(world, member, first.emergency_id, _facts(member, repeats=1) | {"same emergency": True}, states)
    return replace(outcome, found={**outcome.found, "same emergency": first.emergency_id == second.emergency_id})


async def retry_storm(world: World, member: Member) -> Outcome:
    """A radio retries, a gateway repeats: the same press a hundred times at once."""
    press = world.gateway.press(member.radio)
    copies = [type(press).FromString(press.SerializeToString()) for _ in range(_STORM)]
    answers = await asyncio.gather(*map(world.gateway.send, copies))
    states = await world.states(answers[0].emergency_id)
    outcome = await _end(world, member, answers[0].emergency_id, _facts(member) | {"different answers": 1}, states)
    return replace(outcome, found={**outcome.found, "different answers": len({a.SerializeToString() for a in answers})})


async def wrong_cancel(world: World, member: Member) -> Outcome:
    """Another radio cancels: refused. The wearer cancels: a fact for dispatch; the camera goes on."""
    press = world.gateway.press(member.radio)
    pressed = await world.gateway.send(press)
    refused = ""
    try:
        await world.gateway.cancel(press, radio(member.radio.unit_id + 5000))
    except grpc.aio.AioRpcError as error:
        refused = reason_of(error)
    unchanged = not (await world.get(pressed.emergency_id)).emergency.HasField("cancel_requested")
    await world.gateway.cancel(press)
    states = await world.states(pressed.emergency_id)
    noted = (await world.get(pressed.emergency_id)).emergency.HasField("cancel_requested")
    expected = _facts(member) | {"refused": "CANCEL_FROM_OTHER_RADIO", "unchanged by it": True, "own cancel noted": True}
    outcome = await _end(world, member, pressed.emergency_id, expected, states)
    extra = {"refused": refused, "unchanged by it": unchanged, "own cancel noted": noted}
    return replace(outcome, found={**outcome.found, **extra})


async def unassigned_radio(world: World, member: Member) -> Outcome:
    """A registered radio that nobody holds: visible, without a subject, and no camera is guessed."""
    pressed = await world.press(member.radio)
    results = await world.outcome(pressed.emergency_id)
    emergency = await world.pinned(pressed.emergency_id)
    found = {
        "open": emergency.state == EMERGENCY_STATE_OPEN,
        "subject": SubjectState.Name(emergency.subject.state),
        "agency": emergency.agency_id,
        "reasons": [NoCameraReason.Name(r.no_camera_reason).removeprefix("NO_CAMERA_REASON_") for r in results.values()],
        "starts": len(_camera(world, member).starts),
    }
    expected = {
        "open": True,
        "subject": "SUBJECT_STATE_NOBODY",
        "agency": world.agency_id,
        "reasons": ["NOBODY_HELD_RADIO"],
        "starts": 0,
    }
    return Outcome(expected, found, pressed.emergency_id)


async def two_cameras(world: World, member: Member) -> Outcome:
    """Both cameras start, each on its own account."""
    pressed = await world.press(member.radio)
    states = await world.states(pressed.emergency_id)
    return await _end(world, member, pressed.emergency_id, _facts(member, starts=2), states)


async def refusing(world: World, member: Member, reason: str) -> Outcome:
    """A camera that cannot record says why."""
    pressed = await world.press(member.radio)
    results = await world.outcome(pressed.emergency_id)
    states = {camera_id: RefusalReason.Name(r.refusal_reason).removeprefix("REFUSAL_REASON_") for camera_id, r in results.items()}
    return await _end(world, member, pressed.emergency_id, _facts(member, reason, starts=0), states)


async def camera_asleep(world: World, member: Member) -> Outcome:
    """A camera in sleep mode refuses by name."""
    _camera(world, member).faults.asleep = True
    return await refusing(world, member, "ASLEEP")


async def camera_docked(world: World, member: Member) -> Outcome:
    """A camera in its dock refuses by name."""
    _camera(world, member).faults.docked = True
    return await refusing(world, member, "DOCKED")


async def storage_full(world: World, member: Member) -> Outcome:
    """A camera without storage refuses by name; evidence is never overwritten."""
    _camera(world, member).faults.storage_full = True
    return await refusing(world, member, "STORAGE_FULL")


async def already_recording(world: World, member: Member) -> Outcome:
    """A camera that records already records for the emergency too."""
    _camera(world, member).recording = True
    pressed = await world.press(member.radio)
    states = await world.states(pressed.emergency_id)
    return await _end(world, member, pressed.emergency_id, _facts(member, "ALREADY_RECORDING", starts=0), states)


async def offline_then_back(world: World, member: Member) -> Outcome:
    """Unreachable within seconds; back within the age gate it starts after all."""
    pressed = await world.press(member.radio)
    first = await world.states(pressed.emergency_id)
    await world.link(member)
    states = await world.states(pressed.emergency_id, without=("REQUESTED", "UNREACHABLE"))
    outcome = await _end(world, member, pressed.emergency_id, _facts(member) | {"first": ["UNREACHABLE"]}, states)
    return replace(outcome, found={**outcome.found, "first": list(first.values())})


async def stale_press(world: World, member: Member) -> Outcome:
    """An alarm that lay at the gateway for 25 minutes is shown and starts no camera."""
    press = world.gateway.press(member.radio, late=timedelta(minutes=25))
    pressed = await world.gateway.send(press)
    results = await world.outcome(pressed.emergency_id)
    emergency = (await world.get(pressed.emergency_id)).emergency
    reasons = [NoCameraReason.Name(r.no_camera_reason).removeprefix("NO_CAMERA_REASON_") for r in results.values()]
    found = {"stale": emergency.stale_on_arrival, "reasons": reasons, "starts": len(_camera(world, member).starts)}
    return Outcome({"stale": True, "reasons": ["STALE_ON_ARRIVAL"], "starts": 0}, found, pressed.emergency_id)


SCENARIOS = (
    Scenario("single press", "the officer's camera records", single),
    Scenario("double press", "one emergency, counted twice, one start", double_press),
    Scenario("retry storm", f"{_STORM} equal requests, one answer, one start", retry_storm),
    Scenario("wrong cancel", "another radio's cancel is refused; the wearer's is noted; it records", wrong_cancel),
    Scenario("unassigned radio", "an emergency without subject, no camera", unassigned_radio, on_shift=False),
    Scenario("two cameras", "both record", two_cameras, cameras=2),
    Scenario("camera asleep", "refused: asleep", camera_asleep),
    Scenario("camera docked", "refused: docked", camera_docked),
    Scenario("storage full", "refused: storage full", storage_full),
    Scenario("already recording", "already recording, goes on", already_recording),
    Scenario("camera offline, then back", "unreachable, then records", offline_then_back, linked=False),
    Scenario("stale press", "shown, starts no camera", stale_press),
)
