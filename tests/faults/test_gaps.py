"""With Kafka or the lanes away a press starts its camera, and nothing happens twice when they come back."""

import asyncio
from collections.abc import Callable
from itertools import count

import grpc
import pytest
from chassis.bus import client_config
from chassis.settings import KafkaSettings
from confluent_kafka.admin import AdminClient
from contracts.topics import ACTIVATION_DECISION, ACTIVATION_RESULT, EMERGENCY_EVENT, REGISTRY_DUTY
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.emergency.v1.emergency_pb2 import EMERGENCY_STATE_CLEARED, SubjectState
from sightline.streams.v1 import stream_service_pb2 as streams_pb
from testkit.trial.rig import KAFKA, Rig, until

from tools.local.stack import ails, serving
from tools.roster import Member, member
from tools.topics import create_topics
from tools.world import World

# Ten times the two seconds that it may take; how long it takes is printed by `make bench`.
_WITHIN_S = 20.0
_numbers = count(5000)
Someone = Callable[[], Member]


def someone() -> Member:
    return member("gap", next(_numbers))


async def _watched(world: World, emergency_id: str) -> None:
    """Until a supervisor who begins to watch now sees the emergency."""
    desk = world.supervisor
    async with asyncio.timeout(_WITHIN_S):
        async for change in desk.emergency.WatchEmergencies(pb.WatchEmergenciesRequest(), metadata=desk.metadata()):
            if change.emergency.emergency_id == emergency_id:
                return


async def _starts(world: World, officer: Member, times: int = 1) -> None:
    camera = world.cameras[officer.camera_ids[0]]
    await until(lambda: len(camera.starts) >= times, f"camera of {officer.officer_id}", _WITHIN_S)


async def _decided_by(world: World, emergency_id: str) -> tuple[str, int]:
    desk = world.supervisor
    answer = await desk.call(desk.streams.GetActivation, streams_pb.GetActivationRequest(emergency_id=emergency_id))
    return answer.decided_by, answer.rejected_decisions


async def test_without_lanes_a_press_starts_its_camera_and_once(rig: Rig, world: World) -> None:
    officer = await world.duty(someone())
    async with rig.down("joiner-a", "joiner-b"):
        pressed = await world.press(officer.radio)
        await _starts(world, officer)
        await _watched(world, pressed.emergency_id)
        assert await _decided_by(world, pressed.emergency_id) == ("reconcile", 0)
    # The lanes read the event now, and decide the same: nothing is to be done about it.
    other = await world.duty(someone())
    second = await world.press(other.radio)
    await _starts(world, other)
    assert await _decided_by(world, pressed.emergency_id) == ("reconcile", 0)
    assert await world.states(second.emergency_id) == {other.camera_ids[0]: "RECORDING"}
    assert len(world.cameras[officer.camera_ids[0]].starts) == 1


async def test_without_kafka_a_press_starts_its_camera_and_a_clear_ends_its_order(rig: Rig, world: World) -> None:
    officer = await world.duty(someone())
    camera = world.cameras[officer.camera_ids[0]]
    async with rig.frozen(KAFKA):
        pressed = await world.press(officer.radio)
        await _starts(world, officer)
        await _watched(world, pressed.emergency_id)
        assert await _decided_by(world, pressed.emergency_id) == ("reconcile", 0)
        await world.clear(pressed.emergency_id)
        await until(lambda: camera.orders is not None and not camera.orders.record_for, "the end of the order", _WITHIN_S)
    assert await world.states(pressed.emergency_id) == {officer.camera_ids[0]: "RECORDING"}
    assert (await world.get(pressed.emergency_id)).emergency.state == EMERGENCY_STATE_CLEARED
    assert (await _decided_by(world, pressed.emergency_id))[1] == 0
    assert len(camera.starts) == 1


async def test_without_the_registry_a_press_starts_the_camera_that_the_lanes_know(rig: Rig, world: World) -> None:
    officer = await world.duty(someone())
    async with rig.frozen("registry-a", "registry-b"):
        pressed = await world.press(officer.radio)
        assert (await world.get(pressed.emergency_id)).emergency.subject.state == SubjectState.SUBJECT_STATE_UNPINNED
        await _starts(world, officer)
        assert (await _decided_by(world, pressed.emergency_id))[0].startswith("joiner")
    assert (await world.pinned(pressed.emergency_id)).subject.officer_id == officer.officer_id
    assert len(world.cameras[officer.camera_ids[0]].starts) == 1


async def test_a_bind_without_kafka_starts_the_bound_officers_camera(rig: Rig, world: World) -> None:
    presser, officer = await world.duty(someone()), await world.duty(someone())
    async with rig.frozen(KAFKA):
        pressed = await world.press(presser.radio)
        await _starts(world, presser)
        desk = world.supervisor
        request = pb.BindSubjectRequest(emergency_id=pressed.emergency_id, officer_id=officer.officer_id, note="not her voice")
        await desk.call(desk.emergency.BindSubject, request)
        await _starts(world, officer)


async def test_streams_become_ready_without_kafka(rig: Rig, world: World) -> None:
    officer = await world.duty(someone())
    async with rig.frozen(KAFKA):
        await rig.kill("streams-a")
        await rig.kill("streams-b")
        await world.press(officer.radio)
        await _starts(world, officer)


@pytest.mark.parametrize("replica", ["streams-a", "streams-b"])
async def test_a_link_moves_to_the_other_replica(rig: Rig, world: World, replica: str) -> None:
    officers = [await world.duty(someone()) for _ in range(4)]
    async with rig.down(replica):
        for officer in officers:
            await world.press(officer.radio)
        for officer in officers:
            await _starts(world, officer)
    assert [len(world.cameras[officer.camera_ids[0]].starts) for officer in officers] == [1, 1, 1, 1]


async def test_a_storm_of_one_press_over_both_replicas_is_one_press(rig: Rig, world: World) -> None:
    """F2: over several connections, to both replicas."""
    officer = await world.duty(someone())
    gateways = [world.new_gateway(f"gw-storm-{n}") for n in range(4)]
    press = gateways[0].press(officer.radio)
    copies = [type(press).FromString(press.SerializeToString()) for _ in range(100)]
    answers = await asyncio.gather(*(gateways[n % 4].send(copy) for n, copy in enumerate(copies)))
    await _starts(world, officer)
    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert (await world.get(answers[0].emergency_id)).emergency.repeat_count == 0
    assert await world.states(answers[0].emergency_id) == {officer.camera_ids[0]: "RECORDING"}
    assert len(world.cameras[officer.camera_ids[0]].starts) == 1


async def test_many_presses_of_one_radio_at_once_are_one_emergency(rig: Rig, world: World) -> None:
    """F28: they wait for each other in the database, and none is lost."""
    officer = await world.duty(someone())
    answers = await asyncio.gather(*(world.press(officer.radio) for _ in range(40)))
    assert len({answer.emergency_id for answer in answers}) == 1
    assert (await world.get(answers[0].emergency_id)).emergency.repeat_count == 39
    assert sorted(answer.version for answer in answers) == sorted({answer.version for answer in answers})


async def test_a_lane_that_stands_still_ends_itself(rig: Rig, world: World) -> None:
    async with rig.otherwise("joiner-a", "stuck:1", SIGHTLINE_STALL_S="2") as lane:
        officer = await world.duty(someone())
        await world.press(officer.radio)
        await _starts(world, officer)
        other = await world.duty(someone())
        await world.press(other.radio)
        await until(lambda: not lane.alive(), "end of the stuck lane")
        assert "no progress" in lane.tail()


async def test_a_lane_whose_table_does_not_recover_starts_over(rig: Rig, world: World) -> None:
    generation = rig.stack.data / "joiner" / "b" / "generation"
    before = int(generation.read_text()) if generation.exists() else 0
    async with rig.otherwise("joiner-b", "unrecovered:1", SIGHTLINE_RECOVERY_S="0.001") as lane:
        await until(lambda: not lane.alive(), "end of the lane")
    assert int(generation.read_text()) == before + 1
    # The next process takes the new name, fills its table from the source, and decides.
    async with rig.down("joiner-a"):
        decided = ""
        while decided != "joiner/b":
            officer = await world.duty(someone())
            pressed = await world.press(officer.radio)
            await _starts(world, officer)
            decided, _ = await _decided_by(world, pressed.emergency_id)


async def test_a_press_that_cannot_be_made_durable_is_refused_at_once(rig: Rig, world: World) -> None:
    """F26, I10: an explicit answer, never silence and never a false OK."""
    officer = await world.duty(someone())
    press = world.gateway.press(officer.radio)
    async with rig.frozen("postgres"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.gateway.stub.RaiseAlarm(_sent_now(press), timeout=_WITHIN_S)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    answer = await world.gateway.send(press)
    await _starts(world, officer)
    assert (await world.get(answer.emergency_id)).emergency.repeat_count == 0


def _sent_now(press: pb.RaiseAlarmRequest) -> pb.RaiseAlarmRequest:
    press.sent_at.GetCurrentTime()
    return press


@pytest.mark.parametrize(
    ("service", "seconds"),
    [
        ("emergency", 120), ("streams", 120),
        pytest.param("emergency", -120, marks=pytest.mark.slow), pytest.param("streams", -120, marks=pytest.mark.slow),
    ],
)  # fmt: skip
async def test_a_hosts_wrong_clock_keeps_no_camera_waiting(rig: Rig, world: World, service: str, seconds: int) -> None:
    """P15: two minutes are an age gate; what has to be told is how much time is left, and by whose clock."""
    officer = await world.duty(someone())
    async with rig.down(f"{service}-b"), rig.otherwise(f"{service}-a", f"clock:{seconds}:1"):
        pressed = await world.press(officer.radio)
        await _starts(world, officer)
        assert await world.states(pressed.emergency_id) == {officer.camera_ids[0]: "RECORDING"}
        assert await asyncio.to_thread(ails, rig.stack, f"{service}-a") == ["clock"]
        assert await asyncio.to_thread(serving, rig.stack, f"{service}-a")


async def test_presses_are_taken_whatever_topics_are_like(rig: Rig, world: World) -> None:
    """P4: dead-letter topics are missing, and everything starts again: PostgreSQL is all that a press needs."""
    kafka = KafkaSettings(bootstrap=rig.stack.kafka, security="PLAINTEXT")
    admin = AdminClient(client_config(kafka))
    gone = [topic.dlq().name for topic in (ACTIVATION_RESULT, ACTIVATION_DECISION, EMERGENCY_EVENT, REGISTRY_DUTY)]
    for deleted in admin.delete_topics(gone).values():
        await asyncio.to_thread(deleted.result, 30)
    needed = [f"{name}-{replica}" for name in ("emergency", "registry", "streams") for replica in "ab"]
    try:
        for name in needed:
            await rig.kill(name)
        for name in needed:
            await rig.serves(name)
        officer = await world.duty(someone())
        pressed = await world.press(officer.radio)
        await _starts(world, officer)
        assert await _decided_by(world, pressed.emergency_id) == ("reconcile", 0)
        for name in needed:
            assert await asyncio.to_thread(ails, rig.stack, name) == ["topics"]
    finally:
        await asyncio.to_thread(create_topics, kafka, 1)
    await until(lambda: not any(ails(rig.stack, name) for name in needed), "all to be well again", _WITHIN_S)
    assert await world.states(pressed.emergency_id) == {officer.camera_ids[0]: "RECORDING"}
