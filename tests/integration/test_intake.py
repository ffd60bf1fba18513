"""Identity decides, everything else is taken: what the world's gateways, cameras and phones send, on the real edge.

Each row of the table of presses was refused once, and nobody heard of the officer.
"""

import asyncio
import math
import os
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from chassis.bus import Received, Topic
from chassis.rpc import connect, reason_of
from contracts.topics import AUDIT_RECORD
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sightline.activation.v1.activation_pb2 import ActivationState, RefusalReason
from sightline.audit.v1.record_pb2 import AuditRecord
from sightline.common.v1.radio_pb2 import Position, RadioIdentity
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.location.v1 import location_service_pb2 as location_pb
from sightline.streams.v1 import camera_link_service_pb2 as link_pb
from sightline.streams.v1 import relay_link_service_pb2 as relay_pb
from sightline.streams.v1 import stream_service_pb2 as streams_pb
from sightline.streams.v1.relay_link_service_pb2_grpc import RelayLinkServiceStub
from testkit.messages import messages
from uuid_utils import uuid7

from tools.roster import AGENCY, Member
from tools.world import World, until

Someone = Callable[..., Member]
Read = Callable[[Topic], list[Received]]
RAISE = "/sightline.emergency.v1.EmergencyService/RaiseAlarm"
REPORT = "/sightline.location.v1.LocationService/ReportPositions"
CONNECT = "/sightline.streams.v1.CameraLinkService/Connect"
# CI's share; `make intake` sends 10,000 of each.
MESSAGES, _AT_ONCE = int(os.environ.get("INTAKE_MESSAGES", "2000")), 20
quickly = settings(
    max_examples=max(1, MESSAGES // _AT_ONCE), deadline=None, database=None, phases=[Phase.generate, Phase.target],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture
async def raw(world: World) -> AsyncIterator[Any]:
    """RaiseAlarm with these very bytes, again and again until it is taken or refused, as every gateway does."""
    async with connect(world.stack.targets["emergency"], world.stack.ca.rpc(AGENCY, "gateway", "gw-raw")) as channel:
        call: Any = channel.unary_unary(RAISE, response_deserializer=pb.RaiseAlarmResponse.FromString)

        async def surely(data: bytes) -> pb.RaiseAlarmResponse:
            while True:
                try:
                    answer: pb.RaiseAlarmResponse = await call(data, timeout=10)
                    return answer
                except grpc.aio.AioRpcError as error:
                    if error.code() != grpc.StatusCode.UNAVAILABLE:
                        raise

        yield surely


def _alias_in_latin_1(press: pb.RaiseAlarmRequest) -> None:
    press.radio_alias = "Müller".encode("latin-1")


def _of_65_characters(press: pb.RaiseAlarmRequest) -> None:
    press.radio_alias = b"x" * 65


def _unknown_status(press: pb.RaiseAlarmRequest) -> None:
    press.status = 7  # type: ignore[assignment]


def _place(latitude: float, longitude: float, accuracy: float | None = None) -> Callable[[pb.RaiseAlarmRequest], None]:
    return lambda press: press.position.CopyFrom(Position(latitude=latitude, longitude=longitude, accuracy_m=accuracy))


def _set(**values: Any) -> Callable[[pb.RaiseAlarmRequest], None]:
    def change(press: pb.RaiseAlarmRequest) -> None:
        for name, value in values.items():
            press.ClearField(name)  # type: ignore[arg-type]
            if value is not None:
                setattr(press, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "ignored"),
    [
        (_place(91, 4), ["position.latitude"]), (_place(math.nan, 4), ["position.latitude"]), (_place(0, 0), ["position"]),
        (_place(52, 181), ["position.longitude"]), (_place(52.1, 4.3, -1), ["position.accuracy_m"]),
        (_place(52.1, 4.3, math.inf), ["position.accuracy_m"]), (_of_65_characters, ["radio_alias"]),
        (_alias_in_latin_1, ["radio_alias"]), (_set(talkgroup_id=310_000), []), (_set(talkgroup_id=2**24), ["talkgroup_id"]),
        (_unknown_status, ["status"]), (_set(received_at=None), []), (_set(sent_at=None), []), (_set(received_at=None, sent_at=None), []),
        (_set(request_id=None), ["request_id"]), (_set(request_id="42"), ["request_id"]),
        (_set(request_id="", press=None, received_at=None), ["request_id"]),
        (lambda press: press.received_at.CopyFrom(Timestamp(seconds=2**60)), ["received_at"]),
        (lambda press: press.waited.FromTimedelta(timedelta(seconds=-4)), ["waited"]),
        (lambda press: press.MergeFromString(b"\xd2\xff\x03" + b"\x80\x80\x04" + b"x" * 65_536), []),
    ],
)  # fmt: skip
async def test_a_press_is_taken_whatever_else_is_wrong_with_it(
    world: World, someone: Someone, raw: Any, change: Callable[[pb.RaiseAlarmRequest], Any], ignored: list[str]
) -> None:
    officer = await world.duty(someone())
    press = world.gateway.press(officer.radio)
    press.sent_at.CopyFrom(press.received_at)
    change(press)

    answer = await raw(press.SerializeToString())

    assert answer.outcome == pb.PRESS_OUTCOME_OPENED
    assert list(answer.ignored_fields) == ignored
    emergency = (await world.get(answer.emergency_id)).emergency
    kept_place = press.HasField("position") and ignored in ([], ["position.accuracy_m"])
    assert emergency.HasField("position") == kept_place
    if kept_place and ignored:
        assert (emergency.position.latitude, emergency.position.HasField("accuracy_m")) == (52.1, False)
    assert len(emergency.radio_alias) <= 64
    if not press.HasField("received_at") or not press.HasField("sent_at") or "received_at" in ignored:
        assert emergency.clocks.clock_suspect
    assert await world.states(answer.emergency_id) == {officer.camera_ids[0]: "RECORDING"}


@pytest.mark.parametrize(
    "radio", [None, RadioIdentity(), RadioIdentity(wacn=1, system_id=2, unit_id=2**24)], ids=["none", "zero", "25 bits"]
)
async def test_a_press_that_does_not_say_which_radio_is_refused_by_name(world: World, raw: Any, radio: RadioIdentity | None) -> None:
    press = world.gateway.press(RadioIdentity(wacn=1, system_id=2, unit_id=3))
    press.ClearField("radio")
    if radio is not None:
        press.radio.CopyFrom(radio)
    with pytest.raises(grpc.aio.AioRpcError, match="radio") as refused:
        await raw(press.SerializeToString())
    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_text_that_is_not_utf_8_refuses_no_press(world: World, someone: Someone, raw: Any) -> None:
    """The raw bytes of a UUID where its text belongs: no parser takes them, and the radio is there all the same."""
    officer = await world.duty(someone())
    press = world.gateway.press(officer.radio)
    press.ClearField("request_id")
    data = press.SerializeToString() + b"\x0a\x10" + bytes(range(0xF0, 0x100))
    answer = await raw(data)
    assert (answer.outcome, list(answer.ignored_fields)) == (pb.PRESS_OUTCOME_OPENED, ["request_id"])
    assert (await raw(data)).version == answer.version
    assert await world.states(answer.emergency_id) == {officer.camera_ids[0]: "RECORDING"}


async def test_a_second_press_without_a_place_leaves_the_good_one(world: World, someone: Someone) -> None:
    """I11, I12: 0/0 is no place, and an older press from a slow gateway has an older one."""
    officer = await world.duty(someone())
    first = world.gateway.press(officer.radio)
    first.position.CopyFrom(Position(latitude=52.1, longitude=4.3))
    pressed = await world.gateway.send(first)
    for late, latitude, longitude in ((0, 0.0, 0.0), (30, 51.0, 4.0)):
        again = world.gateway.press(officer.radio, late=timedelta(seconds=late))
        again.position.CopyFrom(Position(latitude=latitude, longitude=longitude))
        await world.gateway.send(again)
    emergency = (await world.get(pressed.emergency_id)).emergency
    assert (emergency.position.latitude, emergency.position.longitude, emergency.repeat_count) == (52.1, 4.3, 2)


async def test_a_press_without_a_request_id_is_told_apart_by_its_counter_or_its_time(world: World, someone: Someone, raw: Any) -> None:
    """I6b: a repeat of it is one, and the next press is another."""
    officer = await world.duty(someone())
    counted, timed = world.gateway.press(officer.radio), world.gateway.press(officer.radio)
    timed.ClearField("press")
    for press in (counted, timed):
        press.request_id = "no uuid"
        await raw(press.SerializeToString())
        before = (await raw(press.SerializeToString())).version
        assert (await raw(press.SerializeToString())).version == before
    timed.received_at.FromDatetime(datetime.now(UTC) + timedelta(seconds=1))
    assert (await raw(timed.SerializeToString())).version > before


async def test_a_cancel_is_taken_whatever_else_is_wrong_with_it(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    cancel = pb.CancelAlarmRequest(radio=officer.radio, press_request_id="nonsense", note="abgebrochen, Müller".encode("latin-1") * 40)
    answer = await world.gateway.stub.CancelAlarm(cancel, timeout=5)
    assert (answer.emergency_id, list(answer.ignored_fields)) == (pressed.emergency_id, ["press_request_id", "note"])
    emergency = (await world.get(pressed.emergency_id)).emergency
    assert (emergency.HasField("cancel_requested"), len(emergency.cancel_requested.note)) == (True, 500)


RADIOS = [RadioIdentity(wacn=9, system_id=9, unit_id=unit) for unit in range(1, 41)]


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # others use `random` meanwhile
async def test_any_message_with_a_radio_is_a_press(world: World, raw: Any) -> None:
    """Arbitrary values in all other fields, arbitrary unknown fields: OK, and each opened an emergency or was folded into one."""
    sent = 0
    presses = messages(pb.RaiseAlarmRequest, radio=st.sampled_from(RADIOS))

    async def press(batch: list[bytes]) -> None:
        nonlocal sent
        answers = await asyncio.gather(*map(raw, batch))
        sent += len(answers)
        assert {answer.outcome for answer in answers} <= {pb.PRESS_OUTCOME_OPENED, pb.PRESS_OUTCOME_FOLDED}
        assert all(answer.emergency_id and answer.version for answer in answers)

    await _try(presses, press)
    assert sent >= MESSAGES
    await world.clear_all()


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # others use `random` meanwhile
async def test_no_reports_content_ends_a_cameras_link(world: World, someone: Someone) -> None:
    """Whatever it says of itself, a camera gets its orders: first of all, and at the end."""
    officer = someone()
    await world.enrol([officer])
    await world.begin_shift(officer)
    (camera_id,) = officer.camera_ids
    outgoing: asyncio.Queue[bytes] = asyncio.Queue()
    orders: list[link_pb.CameraOrders] = []
    reports = messages(link_pb.CameraReport)

    async def requests() -> AsyncIterator[bytes]:
        while True:
            yield await outgoing.get()

    async with connect(world.stack.targets["streams"], world.stack.ca.rpc(AGENCY, "camera", camera_id)) as channel:
        call: Any = channel.stream_stream(CONNECT, response_deserializer=link_pb.ConnectResponse.FromString)
        link = call(requests())

        async def read() -> None:
            async for response in link:
                orders.append(response.orders)

        reading = asyncio.create_task(read())

        async def there() -> bool:
            assert not reading.done(), reading
            return bool(orders)

        await until(there, "orders before any report")

        async def report(batch: list[bytes]) -> None:
            for each in batch:
                outgoing.put_nowait(b"\x0a" + _VarintBytes(len(each)) + each)  # no parser makes some

        await _try(reports, report)
        pressed = await world.press(officer.radio)

        async def ordered() -> bool:
            assert not reading.done(), reading
            return any(order.emergency_id == pressed.emergency_id for each in orders for order in each.record_for)

        await until(ordered, "the order to record")
        handled = link_pb.HandledOrder(emergency_id=pressed.emergency_id, epoch=1, result=ActivationState.ACTIVATION_STATE_RECORDING)
        last = link_pb.CameraReport(boot_id=2**64 - 1, sequence=2**64 - 1, handled=[handled])
        outgoing.put_nowait(link_pb.ConnectRequest(report=last).SerializeToString())
        assert await world.states(pressed.emergency_id, without=("REQUESTED", "TIMED_OUT")) == {camera_id: "RECORDING"}
        reading.cancel()


async def test_a_cameras_impossible_values_are_left_out_and_shown_once(world: World, someone: Someone) -> None:
    """I8: a fuel gauge's "unknown", newer firmware's state: dropped, never the last one, and a fault of that device."""
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    camera = world.cameras[camera_id]
    await camera.power_off()
    rpc = world.stack.ca.rpc(AGENCY, "camera", camera_id)
    pressed = await world.press(officer.radio)
    await world.outcome(pressed.emergency_id, without=())  # it is ordered
    good = link_pb.CameraReport(boot_id=2**40, sequence=1, state=link_pb.CAMERA_STATE_RECORDING, battery_percent=50)
    bad = link_pb.CameraReport(boot_id=2**40, sequence=2, state=5, battery_percent=255, firmware=b"v" * 65)  # type: ignore[arg-type]
    refused = ActivationState.ACTIVATION_STATE_REFUSED
    bad.handled.add(emergency_id=pressed.emergency_id.upper(), epoch=1, result=refused, refusal_reason=6)
    bad.handled.add(emergency_id="no emergency", epoch=0, result=9)
    again = link_pb.CameraReport.FromString(bad.SerializeToString())
    again.sequence = 3

    async def requests() -> AsyncIterator[bytes]:
        for report in (good, bad, again):
            yield link_pb.ConnectRequest(report=report).SerializeToString()
        await asyncio.Event().wait()

    async def shown() -> streams_pb.CameraStatus | None:
        desk, token = world.supervisor, ""
        while True:
            page = await desk.call(desk.streams.ListCameras, streams_pb.ListCamerasRequest(page_size=1000, page_token=token))
            found = next((each for each in page.cameras if each.camera_id == camera_id and each.report.sequence == 3), None)
            if found or not page.next_page_token:
                return found
            token = page.next_page_token

    async with connect(world.stack.targets["streams"], rpc) as channel:
        call: Any = channel.stream_stream(CONNECT)
        link = call(requests())
        status = await until(shown, "the third report")
        link.cancel()
    assert status.report.state == link_pb.CAMERA_STATE_UNSPECIFIED
    assert not status.report.HasField("battery_percent")
    assert status.report.firmware == b"v" * 64
    faults = {(each.field, each.value) for each in status.faults}
    assert {("battery_percent", "255"), ("state", "5"), ("handled.refusal_reason", "6"), ("handled.result", "9")} <= faults
    assert len(faults) == len(status.faults)
    # What it did counts, without the reason that nobody knows.
    result = (await world.outcome(pressed.emergency_id))[camera_id]
    assert (result.state, result.refusal_reason) == (refused, RefusalReason.REFUSAL_REASON_UNSPECIFIED)


async def test_orders_that_a_camera_makes_up_for_ever_are_counted(world: World, someone: Someone, read: Read) -> None:
    """P17: thousands of entries, most of them unknown; the one that counts is found among them."""
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    await world.cameras[camera_id].power_off()
    pressed = await world.press(officer.radio)
    await world.outcome(pressed.emergency_id, without=())
    report = link_pb.CameraReport(boot_id=2**41, sequence=1)
    report.handled.add(emergency_id=pressed.emergency_id, epoch=1, result=ActivationState.ACTIVATION_STATE_RECORDING)
    for _ in range(1500):  # of an old database, or of none at all
        report.handled.add(emergency_id=str(uuid.uuid4()), epoch=1, result=ActivationState.ACTIVATION_STATE_RECORDING)

    async def requests() -> AsyncIterator[bytes]:
        for sequence in range(1, 4):
            report.sequence = sequence
            yield link_pb.ConnectRequest(report=report).SerializeToString()
        await asyncio.Event().wait()

    async with connect(world.stack.targets["streams"], world.stack.ca.rpc(AGENCY, "camera", camera_id)) as channel:
        call: Any = channel.stream_stream(CONNECT)
        link = call(requests())
        assert await world.states(pressed.emergency_id, without=("REQUESTED", "TIMED_OUT", "UNREACHABLE")) == {camera_id: "RECORDING"}
        assert not link.done()
        link.cancel()

    def recorded() -> list[AuditRecord]:
        records = [AuditRecord.FromString(each.value) for each in read(AUDIT_RECORD)]
        ours = [each for each in records if each.action == "activation.unexpected" and each.target == f"cameras/{camera_id}"]
        return list({each.record_id: each for each in ours}.values())

    async def told() -> bool:
        return bool(recorded())

    await until(told, "a record of what nobody ordered")
    assert [each.details["orders"] for each in recorded()] == ["200"]  # looked up of the first report; the rest is counted for a minute


async def test_a_relays_report_is_taken_without_what_cannot_be_read(world: World) -> None:
    """I9: one bad session id of many."""
    report = relay_pb.ReportRequest(relay_id="relay-odd", ingest_url="https://odd:1", view_url="ws://odd:1", draining=True)
    for _ in range(1200):
        report.sessions.add(session_id=str(uuid7())).media_age.FromTimedelta(timedelta(seconds=1))
    report.sessions[3].session_id = "nonsense"
    report.sessions[4].ClearField("media_age")
    report.sessions[5].media_age.seconds = 2**62
    report.not_kept.append("nonsense too")
    async with connect(world.stack.targets["streams"], world.stack.ca.rpc("platform", "service", "relay")) as channel:
        answer = await RelayLinkServiceStub(channel).Report(report, timeout=10)
        assert answer.ignored == 4
        report.relay_id = "Relay?"
        with pytest.raises(grpc.aio.AioRpcError, match="relay_id"):
            await RelayLinkServiceStub(channel).Report(report, timeout=10)


@pytest.mark.parametrize(
    ("values", "ignored"),
    [
        ({"speed_mps": -1, "course_deg": -1}, ["speed_mps", "course_deg"]), ({"course_deg": -90}, ["course_deg"]),
        ({"accuracy_m": 9_999_999}, ["accuracy_m"]), ({"speed_mps": math.nan}, ["speed_mps"]), ({"accuracy_m": 5}, []),
        ({"fixed_at": None}, ["fixed_at"]),
    ],
)  # fmt: skip
async def test_a_place_is_kept_without_what_a_receiver_does_not_know(
    world: World, someone: Someone, values: dict[str, float | None], ignored: list[str]
) -> None:
    """I10: phones that stand still say -1."""
    officer = await world.duty(someone())
    request = location_pb.ReportPositionsRequest()
    report = request.reports.add(agency_id=AGENCY)
    report.device.radio.CopyFrom(officer.radio)
    report.fix.latitude, report.fix.longitude = 52.1, 4.3
    report.fix.fixed_at.FromDatetime(datetime.now(UTC))
    for name, value in values.items():
        report.fix.ClearField(name)  # type: ignore[arg-type]
        if value is not None:
            setattr(report.fix, name, value)
    # What is wrong with another report is no fault of this one.
    for _ in range(2):
        request.reports.add(agency_id=AGENCY).CopyFrom(report)
    request.reports[1].device.radio.unit_id = 2**25
    request.reports[2].device.vehicle_id = "car ~"
    data = request.SerializeToString().replace(b"car ~", b"car \xfc")

    async def taken() -> location_pb.ReportPositionsResponse | None:
        """The service hears of a shift a moment after it began."""
        async with connect(world.stack.targets["location"], world.stack.ca.rpc(AGENCY, "gateway", "gw-raw")) as channel:
            call: Any = channel.stream_stream(REPORT, response_deserializer=location_pb.ReportPositionsResponse.FromString)
            answer = await call(iter([data]), timeout=10).read()
            return answer if isinstance(answer, location_pb.ReportPositionsResponse) and answer.taken else None

    answer = await until(taken, "a fix to be taken")
    assert [list(each.fields) for each in answer.ignored] == ([ignored] if ignored else [])
    assert [each.index for each in answer.refused] == [1, 2]


async def _try(strategy: st.SearchStrategy[bytes], send: Callable[[list[bytes]], Coroutine[Any, Any, None]]) -> None:
    """Send what the strategy makes up, so many at once, on the loop that the channels live on."""
    loop = asyncio.get_running_loop()

    @quickly
    @given(st.lists(strategy, min_size=_AT_ONCE, max_size=_AT_ONCE))
    def attempt(batch: list[bytes]) -> None:
        asyncio.run_coroutine_threadsafe(send(batch), loop).result(60)

    await asyncio.to_thread(attempt)
