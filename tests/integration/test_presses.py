"""Stories of a pressed button, through gRPC and Kafka only: the demo's scenarios, and those that need more control."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from chassis.rpc import connect, reason_of
from sightline.activation.v1.activation_pb2 import NoCameraReason
from sightline.common.v1.radio_pb2 import Position
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.emergency.v1.emergency_pb2 import (
    ALARM_STATUS_EXERCISE,
    DISPOSITION_FALSE_ACTIVATION,
    DISPOSITION_RESOLVED,
    EMERGENCY_STATE_CLEARED,
    SubjectState,
)
from sightline.registry.v1 import registry_service_pb2 as registry_pb
from sightline.streams.v1 import camera_link_service_pb2 as link_pb
from sightline.streams.v1.camera_link_service_pb2_grpc import CameraLinkServiceStub

from tools.desk import Desk, replica_of
from tools.roster import AGENCY, Member, check_in, check_out, create_agency, member, radio
from tools.scenarios import SCENARIOS, Scenario
from tools.world import World, until

Someone = Callable[..., Member]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
async def test_scenario(world: World, someone: Someone, scenario: Scenario) -> None:
    """Each scenario of the demo ends as it says."""
    officer = someone(scenario.cameras)
    await world.enrol([officer])
    if scenario.on_shift:
        await world.begin_shift(officer)
    if scenario.linked:
        await world.link(officer)

    outcome = await scenario.run(world, officer)

    assert outcome.found == outcome.expected


async def test_the_three_clocks_of_a_press_are_kept(world: World, someone: Someone) -> None:
    officer = someone()
    await world.enrol([officer])
    await world.begin_shift(officer, ago=timedelta(minutes=5))
    await world.link(officer)
    gateway = world.new_gateway("gw-skewed")
    gateway.clock_skew = timedelta(hours=3)
    press = gateway.press(officer.radio, late=timedelta(seconds=10))
    press.source_time.FromDatetime(datetime.now(UTC) - timedelta(days=400))
    press.position.CopyFrom(Position(latitude=25.77, longitude=-80.19))
    before = datetime.now(UTC)

    pressed = await gateway.send(press)

    after = datetime.now(UTC)
    emergency = (await world.get(pressed.emergency_id)).emergency
    clocks = emergency.clocks
    pressed_at = clocks.press_time.ToDatetime(UTC)
    # A gateway's wrong clock moves nothing: only how long the alarm lay there counts.
    assert before - (after - before) <= pressed_at + timedelta(seconds=10) <= after
    assert clocks.clock_suspect
    assert clocks.gateway_skew.ToTimedelta() > timedelta(hours=2, minutes=59)
    assert clocks.source_time.ToDatetime(UTC) < before - timedelta(days=399)
    assert not emergency.stale_on_arrival
    assert await world.states(pressed.emergency_id) == {officer.camera_ids[0]: "RECORDING"}


async def test_a_shift_change_at_the_press_starts_the_camera_of_who_held_the_radio_then(world: World, someone: Someone) -> None:
    """The press happened a moment before the change of shift, and is handled after it."""
    early, late = someone(), someone()
    late = Member(late.officer_id, early.radio, late.camera_ids, late.unit_id)
    await world.enrol([early])
    await world.begin_shift(early, ago=timedelta(minutes=5))
    await world.link(early)
    # The time that the request takes counts as later, so the press lies more than that before the change.
    press = world.gateway.press(early.radio, late=timedelta(seconds=30))
    await world.end_shift(early)
    await world.duty(late)

    pressed = await world.gateway.send(press)

    emergency = await world.pinned(pressed.emergency_id)
    assert emergency.subject.officer_id == early.officer_id
    assert await world.states(pressed.emergency_id) == {early.camera_ids[0]: "RECORDING"}
    assert not world.cameras[late.camera_ids[0]].starts


async def test_a_camera_paired_just_before_the_press_is_the_one_that_starts(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    await world.end_shift(officer)
    other = member("story-spare", officer.radio.unit_id)
    repaired = Member(officer.officer_id, officer.radio, other.camera_ids, officer.unit_id)
    await world.enrol([Member(other.officer_id, radio(officer.radio.unit_id + 7000), other.camera_ids)])
    await world.begin_shift(repaired)
    await world.link(repaired)

    pressed = await world.press(officer.radio)

    assert await world.states(pressed.emergency_id) == {repaired.camera_ids[0]: "RECORDING"}
    assert not world.cameras[officer.camera_ids[0]].starts


async def test_a_cancel_before_its_alarm_is_a_fact_and_the_camera_starts(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    press = world.gateway.press(officer.radio)

    early = await world.gateway.cancel(press)
    pressed = await world.gateway.send(press)

    assert early.emergency_id == ""
    emergency = (await world.get(pressed.emergency_id)).emergency
    assert emergency.HasField("cancel_requested")
    assert emergency.cancel_requested.actor.id == "gateway/gw-1"
    assert await world.states(pressed.emergency_id) == {officer.camera_ids[0]: "RECORDING"}


async def test_a_press_after_a_cancel_withdraws_the_cancel(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    press = world.gateway.press(officer.radio)
    pressed = await world.gateway.send(press)
    await world.gateway.cancel(press)

    again = await world.press(officer.radio)

    emergency = (await world.get(pressed.emergency_id)).emergency
    assert again.emergency_id == pressed.emergency_id
    assert again.outcome == pb.PRESS_OUTCOME_FOLDED
    assert not emergency.HasField("cancel_requested")


async def test_an_operator_binds_the_subject_of_an_unknown_radio(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    stranger = radio(officer.radio.unit_id + 9000)
    pressed = await world.press(stranger)
    results = await world.outcome(pressed.emergency_id)
    assert [r.no_camera_reason for r in results.values()] == [NoCameraReason.NO_CAMERA_REASON_RADIO_UNKNOWN]

    desk = world.supervisor
    request = pb.BindSubjectRequest(emergency_id=pressed.emergency_id, officer_id=officer.officer_id, note="voice recognised")
    bound = await desk.call(desk.emergency.BindSubject, request)

    assert bound.emergency.epoch == 2
    assert bound.emergency.subject.state == SubjectState.SUBJECT_STATE_BOUND
    assert await world.states(pressed.emergency_id, epoch=2) == {officer.camera_ids[0]: "RECORDING"}


async def test_acknowledged_and_cleared_are_facts_of_their_own(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    await world.states(pressed.emergency_id)
    desk = world.supervisor

    await desk.call(desk.emergency.Acknowledge, pb.AcknowledgeRequest(emergency_id=pressed.emergency_id, note="mine"))
    await world.clear(pressed.emergency_id, DISPOSITION_RESOLVED)

    emergency = (await world.get(pressed.emergency_id)).emergency
    assert emergency.state == EMERGENCY_STATE_CLEARED
    assert (emergency.acknowledged.actor.id, emergency.acknowledged.note) == ("supervisor", "mine")
    assert emergency.cleared.actor.id == "supervisor"
    # Clearing ends the emergency, never the recording.
    assert world.cameras[officer.camera_ids[0]].recording
    with pytest.raises(grpc.aio.AioRpcError) as conflict:
        await world.clear(pressed.emergency_id, DISPOSITION_FALSE_ACTIVATION)
    assert conflict.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(conflict.value) == "EMERGENCY_CLEARED"


@pytest.mark.parametrize("replicas", [(0, 0), (0, 1)], ids=["one replica", "two replicas"])
async def test_two_supervisors_clear_at_once_and_one_is_told(world: World, someone: Someone, replicas: tuple[int, int]) -> None:
    """Both have seen the same version, and neither knows of the other; each time exactly one ends the emergency."""
    async with Desk(world.stack, "supervisor", replicas[0]) as one, Desk(world.stack, "watch-commander", replicas[1]) as other:
        for _ in range(5):
            officer = await world.duty(someone())
            pressed = await world.press(officer.radio)
            await world.states(pressed.emergency_id)
            seen = (await world.get(pressed.emergency_id)).emergency.version
            clears = [
                pb.ClearRequest(emergency_id=pressed.emergency_id, disposition=disposition, expected_version=seen)
                for disposition in (DISPOSITION_RESOLVED, DISPOSITION_FALSE_ACTIVATION)
            ]
            calls = [desk.call(desk.emergency.Clear, clear) for desk, clear in zip((one, other), clears, strict=True)]
            answers = await asyncio.gather(*calls, return_exceptions=True)

            refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
            assert [reason_of(error) for error in refused] == ["EMERGENCY_CLEARED"]
            (won,) = [answer for answer in answers if isinstance(answer, pb.ClearResponse)]
            emergency = (await world.get(pressed.emergency_id)).emergency
            assert emergency == won.emergency
            assert emergency.version == seen + 1


async def test_who_clears_what_has_changed_is_told(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    stale = pb.ClearRequest(emergency_id=pressed.emergency_id, disposition=DISPOSITION_RESOLVED, expected_version=99)
    with pytest.raises(grpc.aio.AioRpcError) as conflict:
        await world.supervisor.call(world.supervisor.emergency.Clear, stale)
    assert conflict.value.code() == grpc.StatusCode.ABORTED
    assert reason_of(conflict.value) == "VERSION_CONFLICT"


async def test_a_press_after_the_clear_is_a_new_related_emergency_but_a_late_repeat_is_not(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    press = world.gateway.press(officer.radio)
    first = await world.gateway.send(press)
    await world.states(first.emergency_id)
    await world.clear(first.emergency_id)

    repeat = await world.gateway.send(press)
    second = await world.press(officer.radio)

    assert repeat.emergency_id == first.emergency_id
    assert second.emergency_id != first.emergency_id
    assert (await world.get(second.emergency_id)).emergency.related_to == first.emergency_id
    assert await world.states(second.emergency_id) == {officer.camera_ids[0]: "ALREADY_RECORDING"}


async def test_an_emergency_cleared_before_the_camera_came_back_withdraws_the_order(world: World, someone: Someone) -> None:
    officer = someone()
    await world.enrol([officer])
    await world.begin_shift(officer)
    pressed = await world.press(officer.radio)
    await world.states(pressed.emergency_id)
    await world.clear(pressed.emergency_id)
    assert await world.states(pressed.emergency_id, without=("REQUESTED", "UNREACHABLE")) == {officer.camera_ids[0]: "WITHDRAWN"}

    await world.link(officer)

    camera = world.cameras[officer.camera_ids[0]]
    assert camera.orders is not None
    assert not camera.orders.record_for
    assert not camera.starts


async def test_a_real_alarm_takes_the_place_of_the_same_officers_drill(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    drill = await world.gateway.send(world.gateway.press(officer.radio, status=ALARM_STATUS_EXERCISE))
    real = await world.press(officer.radio)
    assert real.emergency_id != drill.emergency_id
    assert (await world.get(drill.emergency_id)).emergency.state == EMERGENCY_STATE_CLEARED
    assert real.outcome == pb.PRESS_OUTCOME_OPENED


async def test_watchers_see_the_snapshot_and_then_every_change(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    before = await world.press(officer.radio)
    other = await world.duty(someone())
    desk = world.supervisor
    watch = desk.emergency.WatchEmergencies(pb.WatchEmergenciesRequest(), metadata=desk.metadata(), timeout=60)
    snapshot = []
    async for change in watch:
        if change.snapshot_complete:
            break
        snapshot.append(change.emergency.emergency_id)
    assert before.emergency_id in snapshot

    after = await world.press(other.radio)

    async for change in watch:
        if change.emergency.emergency_id == after.emergency_id and change.activations:
            break
    assert change.emergency.subject.officer_id == other.officer_id
    watch.cancel()


async def test_emergencies_are_listed_in_pages_newest_first(world: World, someone: Someone) -> None:
    officers = [someone() for _ in range(3)]
    await world.enrol(officers)
    ids = [(await world.press(officer.radio)).emergency_id for officer in officers]
    desk = world.supervisor
    listed: list[str] = []
    token = ""
    while not set(ids) <= set(listed):
        page = await desk.call(desk.emergency.ListEmergencies, pb.ListEmergenciesRequest(page_size=2, page_token=token))
        listed += [e.emergency_id for e in page.emergencies]
        token = page.next_page_token
        assert token
    assert listed == sorted(listed, reverse=True)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await desk.call(desk.registry.ListOfficers, registry_pb.ListOfficersRequest(page_token=token))
    assert reason_of(refused.value) == "PAGE_TOKEN_INVALID"


async def test_a_camera_that_repeats_its_reports_and_reboots_starts_once(world: World, someone: Someone) -> None:
    officer = someone()
    await world.enrol([officer])
    camera = world.cameras[officer.camera_ids[0]]
    camera.faults.duplicate_reports = True
    await world.begin_shift(officer)
    await world.link(officer)
    pressed = await world.press(officer.radio)
    await world.states(pressed.emergency_id)

    await camera.power_off()
    await world.power_on(camera)

    assert camera.orders is not None
    assert [order.emergency_id for order in camera.orders.record_for] == [pressed.emergency_id]
    assert len(camera.starts) == 1


async def test_a_slow_camera_is_timed_out_and_its_late_word_counts(world: World, someone: Someone) -> None:
    officer = someone()
    await world.enrol([officer])
    answer = world.cameras[officer.camera_ids[0]].faults.answers_after = asyncio.Event()
    await world.begin_shift(officer)
    await world.link(officer)
    pressed = await world.press(officer.radio)
    assert await world.states(pressed.emergency_id) == {officer.camera_ids[0]: "TIMED_OUT"}
    answer.set()
    assert await world.states(pressed.emergency_id, without=("REQUESTED", "TIMED_OUT")) == {officer.camera_ids[0]: "RECORDING"}


@pytest.mark.parametrize("replicas", [(0, 0), (0, 1), (1, 0)], ids=["one replica", "another replica", "the first again"])
async def test_the_newest_link_of_a_camera_wins(world: World, someone: Someone, replicas: tuple[int, int]) -> None:
    """Both are there at once, as with a cloned certificate or a connection that nobody has missed yet."""
    officer = someone()
    await world.enrol([officer])
    await world.begin_shift(officer)
    (camera_id,) = officer.camera_ids
    rpc, target = world.stack.ca.rpc(AGENCY, "camera", camera_id), world.stack.targets["streams"]
    async with connect(replica_of(target, replicas[0]), rpc) as channel:
        older = CameraLinkServiceStub(channel).Connect(_silent())
        assert isinstance(await older.read(), link_pb.ConnectResponse)
        newer = world.new_camera(camera_id)
        newer.target = replica_of(target, replicas[1])
        await world.power_on(newer)
        with pytest.raises(grpc.aio.AioRpcError) as over:
            await _nothing_to_record(older)
        assert reason_of(over.value) == "LINK_SUPERSEDED"
    pressed = await world.press(officer.radio)
    assert await world.states(pressed.emergency_id) == {camera_id: "RECORDING"}
    assert len(newer.starts) == 1


async def _nothing_to_record(link: Any) -> None:
    """All that a link gets until it ends."""
    while isinstance(response := await link.read(), link_pb.ConnectResponse):
        assert not response.orders.record_for


async def _silent() -> AsyncIterator[link_pb.ConnectRequest]:
    yield link_pb.ConnectRequest(report=link_pb.CameraReport(boot_id=1, sequence=1))
    await asyncio.Event().wait()


async def test_a_press_with_padded_text_and_impossible_times_is_taken_and_marked(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    press = world.gateway.press(officer.radio)
    press.radio_alias = b"P1\0\0\0"
    press.source_time.seconds = 2**40
    press.received_at.seconds = -62_135_596_800  # the year 1: the gateway's clock was set while it kept the press

    pressed = await world.gateway.send(press)

    emergency = (await world.get(pressed.emergency_id)).emergency
    assert emergency.radio_alias == "P1"
    assert emergency.clocks.clock_suspect
    assert not emergency.stale_on_arrival
    assert await world.states(pressed.emergency_id) == {officer.camera_ids[0]: "RECORDING"}


async def test_a_counter_of_zeros_tells_no_presses_apart(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    first, second = world.gateway.press(officer.radio), world.gateway.press(officer.radio)
    for press in (first, second):
        press.press.counter = press.press.boot_epoch = 0
    pressed = await world.gateway.send(first)
    await world.clear(pressed.emergency_id)
    assert (await world.gateway.send(second)).emergency_id != pressed.emergency_id


async def test_a_fresh_press_on_a_stale_emergency_starts_the_camera(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    stale = await world.gateway.send(world.gateway.press(officer.radio, late=timedelta(minutes=25)))
    await world.outcome(stale.emergency_id)

    fresh = await world.press(officer.radio)

    assert fresh.emergency_id == stale.emergency_id
    emergency = await world.pinned(fresh.emergency_id)
    assert (emergency.epoch, emergency.stale_on_arrival, emergency.subject.officer_id) == (2, False, officer.officer_id)
    assert await world.states(fresh.emergency_id, epoch=2) == {officer.camera_ids[0]: "RECORDING"}


async def test_another_agencys_gateway_cannot_hide_a_press(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    await create_agency(world.admin, "partner-pd")
    foreign = world.new_gateway("gw-hiding", "partner-pd")
    press = world.gateway.press(officer.radio)
    await foreign.cancel(press)
    hidden = await foreign.send(foreign.press(officer.radio))

    pressed = await world.gateway.send(press)

    assert pressed.emergency_id != hidden.emergency_id
    emergency = (await world.get(pressed.emergency_id)).emergency
    assert not emergency.HasField("cancel_requested")
    assert await world.states(pressed.emergency_id) == {officer.camera_ids[0]: "RECORDING"}


async def test_only_the_newest_press_can_be_taken_back(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    first = world.gateway.press(officer.radio)
    pressed = await world.gateway.send(first)
    newest = world.gateway.press(officer.radio)
    await world.gateway.send(newest)

    await world.gateway.cancel(first)
    assert not (await world.get(pressed.emergency_id)).emergency.HasField("cancel_requested")

    by_request = pb.CancelAlarmRequest(radio=officer.radio, press_request_id=newest.request_id)
    answer = await world.gateway.stub.CancelAlarm(by_request, timeout=5)
    assert answer.emergency_id == pressed.emergency_id
    assert (await world.get(pressed.emergency_id)).emergency.HasField("cancel_requested")


# --- the wrong camera, the swallowed press ---------------------------------------------------------------------------------


async def _bind(world: World, emergency_id: str, officer: Member, note: str = "voice recognised") -> pb.BindSubjectResponse:
    desk = world.supervisor
    request = pb.BindSubjectRequest(emergency_id=emergency_id, officer_id=officer.officer_id, note=note)
    bound: pb.BindSubjectResponse = await desk.call(desk.emergency.BindSubject, request)
    return bound


async def _press_until(world: World, officer: Member, epoch: int) -> str:
    """Press again and again, as somebody does whom nobody sees, until another try has begun; no press opens another emergency."""
    ids = set()

    async def pressed() -> bool:
        ids.add((await world.press(officer.radio)).emergency_id)
        return (await world.get(next(iter(ids)))).emergency.epoch >= epoch

    await until(pressed, f"epoch {epoch}")
    (emergency_id,) = ids
    return emergency_id


async def test_who_took_the_radio_since_a_bind_is_seen_and_not_the_officer_who_was_bound(world: World, someone: Someone) -> None:
    """P1: nobody held the radio, A was bound; it was not cleared, B took the radio and pressed."""
    bound, holder = await world.duty(someone()), someone()
    await world.enrol([holder])
    pressed = await world.press(holder.radio)
    assert (await _bind(world, pressed.emergency_id, bound)).emergency.epoch == 2
    assert await world.states(pressed.emergency_id, epoch=2) == {bound.camera_ids[0]: "RECORDING"}
    await world.begin_shift(holder)
    await world.link(holder)

    again = await world.press(holder.radio)

    assert again.emergency_id == pressed.emergency_id
    assert await world.states(pressed.emergency_id, epoch=3) == {holder.camera_ids[0]: "RECORDING"}
    assert len(world.cameras[bound.camera_ids[0]].starts) == 1
    emergency = (await world.get(pressed.emergency_id)).emergency
    assert emergency.subject.officer_id == holder.officer_id
    assert emergency.subject_conflict
    assert [each.officer_id for each in emergency.earlier] == [bound.officer_id]


async def test_a_bound_officers_next_try_starts_the_camera_that_he_or_she_has_then(world: World, someone: Someone) -> None:
    """P1: cameras change hands while the emergency is open; the one that was bound hours ago may be anybody's."""
    bound, spare = await world.duty(someone()), someone()
    await world.enrol([spare])
    (old,), (new,) = bound.camera_ids, spare.camera_ids
    world.cameras[old].faults.asleep = True
    stranger = replace(bound, radio=radio(bound.radio.unit_id + 9000))
    pressed = await world.press(stranger.radio)
    await _bind(world, pressed.emergency_id, bound)
    assert await world.states(pressed.emergency_id, epoch=2) == {old: "REFUSED"}
    await check_in(world.admin, bound)
    await check_out(world.admin, replace(bound, camera_ids=(new,)))
    await world.power_on(world.cameras[new])
    world.cameras[old].faults.asleep = False

    await _press_until(world, stranger, epoch=3)

    assert await world.states(pressed.emergency_id, epoch=3) == {new: "RECORDING"}
    assert not world.cameras[old].starts


async def test_a_press_after_a_refused_start_starts_the_camera(world: World, someone: Someone) -> None:
    """P3: asleep at first; the wearer wakes it and presses again."""
    officer = someone()
    await world.enrol([officer])
    camera = world.cameras[officer.camera_ids[0]]
    camera.faults.asleep = True
    await world.begin_shift(officer)
    await world.link(officer)
    pressed = await world.press(officer.radio)
    assert await world.states(pressed.emergency_id) == {camera.camera_id: "REFUSED"}
    camera.faults.asleep = False

    assert await _press_until(world, officer, epoch=2) == pressed.emergency_id

    assert await world.states(pressed.emergency_id, epoch=2) == {camera.camera_id: "RECORDING"}
    assert len(camera.starts) == 1


@pytest.mark.parametrize("asleep", [False, True])
async def test_a_storm_of_retries_is_one_emergency_and_one_epoch(world: World, someone: Someone, asleep: bool) -> None:
    """Radios retry up to 255 times; each as a press of its own, to both replicas, with the camera refusing or not."""
    officer = someone()
    await world.enrol([officer])
    world.cameras[officer.camera_ids[0]].faults.asleep = asleep
    await world.begin_shift(officer)
    await world.link(officer)
    gateways = [world.new_gateway(f"gw-retry-{n}") for n in range(3)]
    presses = [gateways[n % 3].send(gateways[n % 3].press(officer.radio)) for n in range(255)]
    answers = await asyncio.gather(*presses)

    (emergency_id,) = {answer.emergency_id for answer in answers}
    emergency = (await world.get(emergency_id)).emergency
    assert emergency.repeat_count == 254
    held_for = emergency.last_press_at.ToDatetime(UTC) - emergency.clocks.press_time.ToDatetime(UTC)
    assert emergency.epoch == 1 or (asleep and held_for > timedelta(seconds=5))
    assert [answer.outcome for answer in answers].count(pb.PRESS_OUTCOME_OPENED) == 1


async def test_a_request_id_that_comes_again_with_another_press_opens_another_emergency(world: World, someone: Someone) -> None:
    """P2: a gateway that derives its ids badly, months later; and a true repeat, however late, is answered as before."""
    officer = await world.duty(someone())
    first = world.gateway.press(officer.radio)
    pressed = await world.gateway.send(first)
    await world.clear(pressed.emergency_id)
    for field, value in (("press", pb.PressCounter(counter=9001, boot_epoch=7)), ("received_at", None)):
        other = pb.RaiseAlarmRequest.FromString(first.SerializeToString())
        other.ClearField("press")
        if value:
            other.press.CopyFrom(value)
        else:
            other.received_at.FromDatetime(datetime.now(UTC) - timedelta(seconds=2))
        answer = await world.gateway.send(other)
        assert (field, answer.outcome) == (field, pb.PRESS_OUTCOME_OPENED)
        assert (await world.gateway.send(other)).emergency_id == answer.emergency_id
        await world.clear(answer.emergency_id)
    assert (await world.gateway.send(first)).emergency_id == pressed.emergency_id


async def test_an_acknowledgement_does_not_answer_another_officers_press(world: World, someone: Someone) -> None:
    """I13: the radio was handed over; who presses now has not been heard by anybody."""
    first, second = await world.duty(someone()), someone()
    second = replace(second, radio=first.radio)
    pressed = await world.press(first.radio)
    desk, acknowledge = world.supervisor, pb.AcknowledgeRequest(emergency_id=pressed.emergency_id)
    await desk.call(desk.emergency.Acknowledge, acknowledge)
    await world.press(first.radio)
    assert (await world.get(pressed.emergency_id)).emergency.HasField("acknowledged")
    await world.end_shift(first)
    await world.duty(second)

    await world.press(second.radio)

    emergency = (await world.get(pressed.emergency_id)).emergency
    assert (emergency.subject.officer_id, emergency.HasField("acknowledged")) == (second.officer_id, False)
    async with Desk(world.stack, "analyst") as analyst:
        again = await analyst.call(analyst.emergency.Acknowledge, acknowledge)
    assert again.emergency.acknowledged.actor.id == "analyst"


async def test_a_gateways_clock_alone_withholds_no_camera(world: World, someone: Someone) -> None:
    """C1: booted with yesterday's clock, received the press, had its clock set, sent it. Only `waited` makes a press old."""
    officer = await world.duty(someone())
    press = world.gateway.press(officer.radio)
    press.received_at.FromDatetime(datetime.now(UTC) - timedelta(hours=23))
    press.request_id = "00000000-0000-4000-8000-000000000000"  # so that the gateway knows nothing of how long it lay there
    pressed = await world.gateway.send(press)
    clocks = (await world.get(pressed.emergency_id)).emergency.clocks
    assert clocks.clock_suspect
    assert timedelta(hours=22) < clocks.may_be_older_by.ToTimedelta() < timedelta(hours=24)
    assert await world.states(pressed.emergency_id) == {officer.camera_ids[0]: "RECORDING"}


async def test_a_forgotten_check_in_is_taken_over_and_the_new_officers_camera_starts(world: World, someone: Someone) -> None:
    """P13: the refusal names who and which; with take_over the radio is the new officer's from then on."""
    forgetful, taker = await world.duty(someone()), someone()
    taker = replace(taker, radio=forgetful.radio)
    await world.enrol([taker])
    with pytest.raises(grpc.aio.AioRpcError, match=forgetful.officer_id) as refused:
        await check_out(world.admin, taker)
    assert "bee00-1a4-" in str(refused.value.details())

    await check_out(world.admin, taker, take_over=True)
    await world.link(taker)
    pressed = await world.press(taker.radio)

    assert await world.states(pressed.emergency_id) == {taker.camera_ids[0]: "RECORDING"}
    assert not world.cameras[forgetful.camera_ids[0]].starts
