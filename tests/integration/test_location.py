"""Where everybody is: what is taken and what is refused, who sees it, what is kept, and what a crash leaves."""

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import pytest_asyncio
from chassis.bus import client_config
from chassis.rpc import reason_of
from chassis.settings import KafkaSettings
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from contracts.topics import LOCATION_POSITION, LOCATION_REPORT, REGISTRY_DEVICE
from sightline.audit.v1 import audit_service_pb2 as audit_pb
from sightline.emergency.v1 import emergency_service_pb2 as emergency_pb
from sightline.emergency.v1.emergency_pb2 import DISPOSITION_RESOLVED
from sightline.location.v1 import location_service_pb2 as pb
from sightline.location.v1 import map_service_pb2 as map_pb
from sightline.location.v1.position_pb2 import SOURCE_RADIO, Device, Position, PositionReport, Refusal, UnitKind, UnitName, UnitOnMap
from sightline.registry.v1 import registry_service_pb2 as registry_pb
from sightline.registry.v1.device_pb2 import DeviceRecord, FixedCamera, Vehicle
from sightline.streams.v1.camera_link_service_pb2 import CAMERA_STATE_BUFFERING, CAMERA_STATE_RECORDING
from testkit.trial.rig import Rig

from tools.desk import Desk
from tools.local.process import Process, free_ports, start, stop
from tools.local.stack import ROOT, Stack, process_named, serving
from tools.roster import AGENCY, Member
from tools.simulator.city import metres
from tools.simulator.mover import Reporter, radio_device, report
from tools.world import World, until

Someone = Callable[..., Member]
OFFICER, VEHICLE, FIXED = UnitKind.UNIT_KIND_OFFICER, UnitKind.UNIT_KIND_VEHICLE, UnitKind.UNIT_KIND_FIXED_CAMERA
HERE = (61.52, -19.9)


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="world")
async def _world(stack: Stack) -> AsyncIterator[World]:
    async with World(stack) as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="gateway")
async def _gateway(stack: Stack, world: World) -> AsyncIterator[Reporter]:
    async with Reporter(stack.ca.rpc(AGENCY, "avl", "avl-1"), stack.targets["location"]) as reporter:
        yield reporter


def fix(device: Device, at: tuple[float, float] = HERE, ago_s: float = 0.0, agency: str = AGENCY) -> PositionReport:
    return report(agency, device, *at, at=datetime.now(UTC) - timedelta(seconds=ago_s))


async def on_duty(world: World, gateway: Reporter, someone: Someone, at: tuple[float, float] = HERE, **shift: Any) -> Member:
    """An officer whose first fix has been taken: the service has heard of the shift."""
    member = someone()
    await world.enrol([member])
    await world.begin_shift(member)
    await taken(gateway, fix(radio_device(member.radio), at))
    return member


async def taken(gateway: Reporter, message: PositionReport) -> None:
    async def once() -> bool:
        return (await gateway.surely([message])).taken == 1

    await until(once, "the fix to be taken")


async def unit(desk: Desk, kind: UnitKind.ValueType, name: str, when: Callable[[UnitOnMap], bool] = lambda _: True) -> UnitOnMap:
    """A unit as a desk sees it, once it is as wanted."""

    async def there() -> UnitOnMap | None:
        try:
            answer = await desk.call(desk.map.GetUnit, map_pb.GetUnitRequest(unit=UnitName(kind=kind, id=name)))
        except grpc.aio.AioRpcError as error:
            # A channel to replicas that were killed a moment ago looks for them again by itself.
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                raise
            return None
        return answer.unit if when(answer.unit) else None

    return await until(there, f"{name} on the map")


async def refused_with(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return reason_of(refused.value)


def place(shown: UnitOnMap) -> tuple[float, float]:
    return shown.fix.latitude, shown.fix.longitude


def track_request(name: str, **more: Any) -> pb.GetTrackRequest:
    request = pb.GetTrackRequest(unit=UnitName(kind=OFFICER, id=name), reason="complaint 17 of 2026", **more)
    getattr(request, "from").FromDatetime(datetime.now(UTC) - timedelta(hours=1))
    request.to.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    return request


async def track(desk: Desk, name: str, points: int) -> list[pb.TrackPoint]:
    async def kept() -> list[pb.TrackPoint] | None:
        try:
            answer = await desk.call(desk.location.GetTrack, track_request(name))
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return None
        return list(answer.points) if len(answer.points) >= points else None

    return await until(kept, f"{points} points of {name}")


async def test_every_fix_that_is_not_taken_has_a_name(world: World, gateway: Reporter, someone: Someone, stack: Stack) -> None:
    member, idle, nobody = await on_duty(world, gateway, someone), someone(), someone()
    await world.enrol([idle])
    mine = radio_device(member.radio)

    async def off_duty_is_known() -> bool:  # the idle radio's record has arrived
        return [each.refusal for each in (await gateway.surely([fix(radio_device(idle.radio))])).refused] == [Refusal.REFUSAL_OFF_DUTY]

    await until(off_duty_is_known, "an idle radio to be known")
    cases = [
        (fix(mine, (float("nan"), 1.0)), Refusal.REFUSAL_BAD_COORDINATES),
        (fix(mine, (91.0, 1.0)), Refusal.REFUSAL_BAD_COORDINATES),
        (fix(mine, (1.0, float("inf"))), Refusal.REFUSAL_BAD_COORDINATES),
        (fix(mine, (0.0, 0.0)), Refusal.REFUSAL_NO_FIX),
        (fix(mine, ago_s=3 * 3600), Refusal.REFUSAL_TOO_OLD),
        (fix(radio_device(nobody.radio)), Refusal.REFUSAL_UNKNOWN_DEVICE),
        (fix(radio_device(idle.radio)), Refusal.REFUSAL_OFF_DUTY),
        (fix(Device(vehicle_id="no-such-car")), Refusal.REFUSAL_UNKNOWN_DEVICE),
        (fix(mine, agency="other-pd"), Refusal.REFUSAL_NOT_YOURS),
        (PositionReport(agency_id=AGENCY), Refusal.REFUSAL_INCOMPLETE),
        (fix(mine), Refusal.REFUSAL_UNSPECIFIED),
    ]
    answer = await gateway.send([message for message, _ in cases])
    assert {each.index: each.refusal for each in answer.refused} == {i: why for i, (_, why) in enumerate(cases) if why}
    assert answer.taken == 1
    async with Reporter(stack.ca.rpc(AGENCY, "camera", "cam-other"), stack.targets["location"]) as camera:
        answer = await camera.send([fix(Device(camera_id=member.camera_ids[0])), fix(mine)])
        assert [each.refusal for each in answer.refused] == [Refusal.REFUSAL_NOT_YOURS] * 2


@pytest.mark.parametrize(("count", "reason"), [(0, "INVALID_FIELD"), (10_000, "REQUEST_TOO_LARGE")])
async def test_a_batch_that_is_no_batch_is_refused_and_the_next_one_taken(
    world: World, gateway: Reporter, someone: Someone, count: int, reason: str
) -> None:
    member = await on_duty(world, gateway, someone)
    message = fix(radio_device(member.radio))
    assert await refused_with(gateway.send([message] * count)) == reason
    assert (await gateway.surely([message])).taken == 1


async def test_the_map_is_coarse_until_a_press_and_again_after_the_clear(world: World, gateway: Reporter, someone: Someone) -> None:
    member = await world.duty(someone())
    await taken(gateway, fix(radio_device(member.radio)))
    idle = await unit(world.supervisor, OFFICER, member.officer_id, lambda each: each.cameras[0].state == CAMERA_STATE_BUFFERING)
    assert idle.coarse
    assert 0 < metres(place(idle), HERE) <= idle.fix.accuracy_m < 400
    assert [(camera.camera_id, camera.online) for camera in idle.cameras] == [(member.camera_ids[0], True)]

    camera = world.cameras[member.camera_ids[0]]
    slow = camera.orders.position_interval.seconds if camera.orders else 0
    emergency = await world.press(member.radio)
    alarmed = await unit(world.supervisor, OFFICER, member.officer_id,
                         lambda each: bool(each.emergency_id) and each.cameras[0].state == CAMERA_STATE_RECORDING)  # fmt: skip
    assert alarmed.emergency_id == emergency.emergency_id
    assert not alarmed.coarse
    assert metres(place(alarmed), HERE) < 1
    assert camera.orders
    assert camera.orders.position_interval.seconds < slow

    request = emergency_pb.ClearRequest(emergency_id=emergency.emergency_id, disposition=DISPOSITION_RESOLVED, note="over")
    await world.supervisor.call(world.supervisor.emergency.Clear, request)
    assert (await unit(world.supervisor, OFFICER, member.officer_id, lambda each: not each.emergency_id)).coarse

    async def slow_again() -> bool:
        return bool(camera.orders and camera.orders.position_interval.seconds == slow)

    await until(slow_again, "the camera to be asked seldom again")


async def test_off_duty_a_press_shows_the_place_from_then_on_and_nothing_before(world: World, gateway: Reporter, someone: Someone) -> None:
    member = someone()
    await world.enrol([member])
    emergency = await world.press(member.radio)
    await taken(gateway, fix(radio_device(member.radio)))
    before = await gateway.surely([fix(radio_device(member.radio), ago_s=600)])
    assert [each.refusal for each in before.refused] == [Refusal.REFUSAL_OFF_DUTY]
    radio = f"{member.radio.wacn:05x}-{member.radio.system_id:03x}-{member.radio.unit_id:06x}"
    shown = await unit(world.supervisor, UnitKind.UNIT_KIND_RADIO, radio)
    assert shown.emergency_id == emergency.emergency_id
    assert not shown.coarse


async def test_late_fixes_are_history_and_a_clock_ahead_is_never_the_latest(world: World, gateway: Reporter, someone: Someone) -> None:
    member = someone()
    await world.enrol([member])
    await world.begin_shift(member, timedelta(minutes=30))
    mine, there = radio_device(member.radio), (HERE[0] + 0.02, HERE[1])
    await taken(gateway, fix(mine))
    # What lay in a dead zone comes late, out of order, twice; a receiver runs an hour ahead; one fix is impossible.
    late = [fix(mine, there, ago_s=ago) for ago in (60, 120, 90)]
    answer = await gateway.surely([*late, late[0], fix(mine, (HERE[0] + 0.3, HERE[1]), ago_s=-3600), fix(mine, (HERE[0] + 9, HERE[1]))])
    assert answer.taken == 6
    points = await track(world.supervisor, member.officer_id, 6)
    times = [point.fix.fixed_at.ToDatetime(UTC) for point in points]
    assert times == sorted(set(times))
    assert [point.clock_suspect for point in points] == [False] * 5 + [True]
    shown = await unit(world.supervisor, OFFICER, member.officer_id)
    assert metres(place(shown), HERE) < 400


async def test_who_may_see_is_the_agency_the_roles_and_for_covert_work_the_group(
    world: World, gateway: Reporter, someone: Someone, stack: Stack
) -> None:
    seen, covert = await on_duty(world, gateway, someone), someone()
    await world.enrol([covert])
    shift = registry_pb.CheckOutRequest(officer_id=covert.officer_id, radios=[covert.radio], visible_to="narcotics")
    await world.admin.call(world.admin.registry.CheckOut, shift)
    await taken(gateway, fix(radio_device(covert.radio)))
    assert (await unit(world.supervisor, OFFICER, covert.officer_id)).visible_to == "narcotics"
    await track(world.supervisor, covert.officer_id, 1)

    name = UnitName(kind=OFFICER, id=seen.officer_id)
    near = map_pb.FindNearestRequest(latitude=HERE[0], longitude=HERE[1], count=50, within_m=50_000)
    async with Desk(stack, "analyst") as analyst:
        await unit(analyst, OFFICER, seen.officer_id)
        await track(analyst, seen.officer_id, 1)
        hidden = map_pb.GetUnitRequest(unit=UnitName(kind=OFFICER, id=covert.officer_id))
        assert await refused_with(analyst.call(analyst.map.GetUnit, hidden)) == "NOT_FOUND"
        assert list((await analyst.call(analyst.location.GetTrack, track_request(covert.officer_id))).points) == []
        found = {each.unit.id for each in (await analyst.call(analyst.map.FindNearest, near)).units}
        assert seen.officer_id in found
        assert covert.officer_id not in found
        assert covert.officer_id not in await first_turn(analyst)
    assert {seen.officer_id, covert.officer_id} <= await first_turn(world.supervisor)
    async with Desk(stack, "auditor") as auditor:
        assert await refused_with(auditor.call(auditor.map.GetUnit, map_pb.GetUnitRequest(unit=name))) == "CALLER_NOT_ALLOWED"
        await track(auditor, seen.officer_id, 1)
        await audited(auditor, "track.read", f"units/{seen.officer_id}", "complaint 17 of 2026")
    for user in ("officer", "admin"):
        async with Desk(stack, user) as desk:
            assert await refused_with(desk.call(desk.location.GetTrack, track_request(seen.officer_id))) == "CALLER_NOT_ALLOWED"
    async with Desk(stack, "supervisor@partner-pd") as other:
        assert await refused_with(other.call(other.map.GetUnit, map_pb.GetUnitRequest(unit=name))) == "NOT_FOUND"
        assert await refused_with(other.call(other.location.GetTrack, track_request(seen.officer_id))) == "NOT_FOUND"
        assert (await other.call(other.map.FindNearest, near)).units == []


async def first_turn(desk: Desk, box: map_pb.Box | None = None) -> set[str]:
    """All that somebody who begins to watch is shown."""
    call = desk.map.WatchArea(map_pb.WatchAreaRequest(box=box), timeout=20, metadata=desk.metadata())
    found: set[str] = set()
    async for response in call:
        found.update(each.id for cell in response.cells for each in cell.units)
        if response.complete:
            break
    call.cancel()
    return found


async def audited(auditor: Desk, action: str, target: str, words: str) -> None:
    async def there() -> bool:
        request = audit_pb.SearchEntriesRequest(target=target, action=action, page_size=50)
        answer = await auditor.call(auditor.audit.SearchEntries, request)
        return words in str(answer)

    await until(there, f"an audit record {action} of {target}")


async def test_vehicles_show_with_their_crew_and_fixed_cameras_where_they_hang(
    world: World, gateway: Reporter, someone: Someone, stack: Stack
) -> None:
    member = await on_duty(world, gateway, someone)
    car = Vehicle(vehicle_id=f"car-{member.officer_id}", agency_id=AGENCY, display_name="Car", unit_id=member.unit_id)
    await world.admin.call(world.admin.registry.RegisterVehicle, registry_pb.RegisterVehicleRequest(vehicle=car))
    eye = FixedCamera(
        camera_id=f"fix-{member.officer_id}", agency_id=AGENCY, display_name="Market", latitude=HERE[0] + 0.01, longitude=HERE[1]
    )
    await world.admin.call(world.admin.registry.RegisterFixedCamera, registry_pb.RegisterFixedCameraRequest(fixed_camera=eye))
    away = (HERE[0] + 0.05, HERE[1] + 0.05)
    await taken(gateway, fix(Device(vehicle_id=car.vehicle_id), away))
    assert (await unit(world.supervisor, VEHICLE, car.vehicle_id)).unit_id == member.unit_id
    assert not (await unit(world.supervisor, FIXED, eye.camera_id)).coarse

    near = map_pb.FindNearestRequest(latitude=away[0], longitude=away[1], kinds=[VEHICLE, FIXED], count=50)
    found = (await world.supervisor.call(world.supervisor.map.FindNearest, near)).units
    assert [each.distance_m for each in found] == sorted(each.distance_m for each in found)
    names = [each.unit.id for each in found]
    assert names.index(car.vehicle_id) < names.index(eye.camera_id)
    # Nobody rides any more: the car is gone from the map, and what it tells is refused.
    await world.end_shift(member)

    async def gone() -> bool:
        answer = await gateway.surely([fix(Device(vehicle_id=car.vehicle_id), away)])
        return [each.refusal for each in answer.refused] == [Refusal.REFUSAL_OFF_DUTY]

    await until(gone, "the car without a crew to be refused")

    async def not_shown() -> bool:
        return not {car.vehicle_id, member.officer_id} & await first_turn(world.supervisor)

    await until(not_shown, "the car and the officer to be gone from the map")


async def test_a_watcher_sees_what_enters_moves_and_leaves(world: World, gateway: Reporter, someone: Someone) -> None:
    member = await on_duty(world, gateway, someone)
    box = map_pb.Box(south=HERE[0] - 0.01, north=HERE[0] + 0.01, west=HERE[1] - 0.01, east=HERE[1] + 0.01)
    desk, mine = world.supervisor, radio_device(member.radio)
    call = desk.map.WatchArea(map_pb.WatchAreaRequest(box=box), metadata=desk.metadata())
    name = f"{OFFICER}/{member.officer_id}"
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def watch() -> None:
        async for response in call:
            for cell in response.cells:
                for each in cell.units:
                    if each.id == member.officer_id:
                        seen.put_nowait("here")
                if name in cell.gone:
                    seen.put_nowait("gone")

    watching = asyncio.create_task(watch())
    assert await asyncio.wait_for(seen.get(), 20) == "here"
    await gateway.surely([fix(mine, (HERE[0] + 0.0005, HERE[1]))])
    assert await asyncio.wait_for(seen.get(), 20) == "here"
    # Too far to be true at first; the second fix there is believed.
    for _ in range(2):
        await gateway.surely([fix(mine, (HERE[0] + 0.5, HERE[1]))])
    assert await asyncio.wait_for(seen.get(), 20) == "gone"
    call.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    huge = map_pb.Box(south=-80, north=80, west=-170, east=170)
    assert await refused_with(first_turn(desk, huge)) == "INVALID_FIELD"


async def test_an_agency_says_how_its_positions_are_kept_and_shown(world: World, gateway: Reporter, someone: Someone, stack: Stack) -> None:
    member = await on_duty(world, gateway, someone)
    async with Desk(stack, "admin") as admin:
        exact = pb.SetPrivacyRequest(privacy=pb.Privacy(idle_resolution=15, keep_days=31, keep_idle_days=7))
        await admin.call(admin.location.SetPrivacy, exact)
        await gateway.surely([fix(radio_device(member.radio))])
        shown = await unit(world.supervisor, OFFICER, member.officer_id, lambda each: not each.coarse)
        assert metres(place(shown), HERE) < 1
        longer = pb.SetPrivacyRequest(privacy=pb.Privacy(idle_resolution=9, keep_days=7, keep_idle_days=31))
        assert await refused_with(admin.call(admin.location.SetPrivacy, longer)) == "INVALID_FIELD"
        usual = pb.SetPrivacyRequest(privacy=pb.Privacy(idle_resolution=9, keep_days=31, keep_idle_days=7))
        await admin.call(admin.location.SetPrivacy, usual)
        assert (await admin.call(admin.location.GetPrivacy, pb.GetPrivacyRequest())).privacy == usual.privacy


async def test_poison_on_its_topics_stops_neither_the_map_nor_the_tracks(
    world: World, gateway: Reporter, someone: Someone, kafka: KafkaSettings
) -> None:
    member, now = await on_duty(world, gateway, someone), datetime.now(UTC)
    nowhere = Position(agency_id=AGENCY, source=SOURCE_RADIO, device_id="r", officer_ids=[member.officer_id])
    nowhere.fix.latitude = float("nan")
    nowhere.fix.fixed_at.FromDatetime(now)
    strange = Position(agency_id=AGENCY, source=9, device_id="r", officer_ids=[member.officer_id])  # type: ignore[arg-type]
    # No poison, only refused: whoever is off duty must not lie among the dead letters.
    late = PositionReport(agency_id=AGENCY, device=Device(radio=member.radio))
    late.fix.fixed_at.seconds = late.reported_at.seconds = 2**62
    impossible = fix(radio_device(member.radio), (math.nan, 11.5))
    hanging = DeviceRecord(version=1, fixed_camera=FixedCamera(camera_id="x", agency_id=AGENCY, latitude=float("inf")))
    garbage = b"\xff not protobuf"
    producer = Producer(client_config(kafka))
    for topic, values in (
        (LOCATION_POSITION, [nowhere.SerializeToString(), strange.SerializeToString(), garbage]),
        (LOCATION_REPORT, [late.SerializeToString(), impossible.SerializeToString(), garbage]),
        (REGISTRY_DEVICE, [hanging.SerializeToString(), garbage]),
    ):
        for value in values:
            producer.produce(topic.name, value, b"poison")
    # What an AVL system writes to Kafka itself, behind the poison, is taken all the same.
    good = fix(radio_device(member.radio), (HERE[0] + 0.0005, HERE[1]))
    producer.produce(LOCATION_REPORT.name, good.SerializeToString(), b"poison")
    assert producer.flush(10) == 0
    at = good.fix.fixed_at.ToDatetime(UTC)
    await unit(world.supervisor, OFFICER, member.officer_id, lambda each: each.fix.fixed_at.ToDatetime(UTC) == at)
    await track(world.supervisor, member.officer_id, 2)

    def dead_letters() -> list[int]:
        topics = [TopicPartition(topic.dlq().name, 0) for topic in (LOCATION_POSITION, LOCATION_REPORT, REGISTRY_DEVICE)]
        admin = AdminClient(client_config(kafka))  # to be kept until the answers are there: without it they never come
        answer = admin.list_offsets({topic: OffsetSpec.latest() for topic in topics})  # type: ignore[no-untyped-call]
        return [answer[topic].result(timeout=10).offset for topic in topics]

    async def all_set_aside() -> bool:
        return sum(await asyncio.to_thread(dead_letters)) >= 6

    await until(all_set_aside, "six dead letters")
    assert await asyncio.to_thread(dead_letters) == [3, 1, 2]


def _sightline(stack: Stack, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tools.cli", "--plain", "location", *arguments]
    environment = os.environ | {"PYTHONPATH": "libs", "SIGHTLINE_DATA": str(stack.data)}
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=environment, cwd=ROOT)


async def test_a_force_moves_and_the_command_line_draws_it_and_writes_a_track(stack: Stack, tmp_path: Path) -> None:
    moved = await asyncio.to_thread(
        _sightline, stack, "traffic", "--officers", "4", "--seconds", "6", "--shift", "2", "--every", "0.5", "--json"
    )
    assert moved.returncode == 0, moved.stderr
    assert json.loads(moved.stdout)["taken"] > 10
    page, track_file = tmp_path / "map.html", tmp_path / "patrol.gpx"
    drawn = await asyncio.to_thread(_sightline, stack, "map", str(page))
    assert drawn.returncode == 0, drawn.stderr
    assert page.read_text().count('class="street"') > 5000
    arguments = ("track", "patrol-7000", str(track_file), "--reason", "a look at the demo")
    written = await asyncio.to_thread(_sightline, stack, *arguments)
    assert written.returncode == 0, written.stderr
    assert track_file.read_text().count("<trkpt") >= 1
    again = await asyncio.to_thread(_sightline, stack, *arguments)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    nobody = await asyncio.to_thread(_sightline, stack, "track", "nobody", str(tmp_path / "n.gpx"), "--reason", "a look at nobody")
    assert nobody.returncode == 1
    assert "nothing has been kept of such a unit" in nobody.stderr


@contextlib.asynccontextmanager
async def another_replica(stack: Stack) -> AsyncIterator[Process]:
    """One more replica of the service, of the same groups, for the length of the body."""
    there, (listen, health) = process_named(stack, "location-a"), free_ports(2)
    environment = dict(there.environment) | {
        "SIGHTLINE_REPLICA": "b", "SIGHTLINE_RPC_LISTEN": f"127.0.0.1:{listen}", "SIGHTLINE_RPC_HEALTH_LISTEN": f"127.0.0.1:{health}",
    }  # fmt: skip
    process = start("location-b", there.command, stack.data / "logs" / "location-b.log", environment, cwd=ROOT)
    stack.health["location-b"] = f"127.0.0.1:{health}"
    try:
        await until(lambda: asyncio.to_thread(serving, stack, "location-b"), "location-b to serve")
        yield process
    finally:
        del stack.health["location-b"]
        await asyncio.to_thread(stop, [process])


async def test_killed_restarted_and_rebalanced_under_load_nothing_that_was_taken_is_lost(
    world: World, gateway: Reporter, someone: Someone, stack: Stack
) -> None:
    members = [someone() for _ in range(20)]
    await world.enrol(members)
    for member in members:
        await world.begin_shift(member)
    for member in members:
        await taken(gateway, fix(radio_device(member.radio)))
    newest: dict[str, tuple[datetime, tuple[float, float]]] = {}
    accepted: Counter[str] = Counter()
    over = asyncio.Event()

    async def load() -> None:
        step = 0
        while not over.is_set():
            step += 1
            at = (HERE[0] + step * 1e-6, HERE[1])
            batch = [(member, fix(radio_device(member.radio), at)) for member in members]
            answer = await gateway.surely([message for _, message in batch])
            refused = {each.index for each in answer.refused}
            for index, (member, message) in enumerate(batch):
                if index not in refused:
                    accepted[member.officer_id] += 1
                    newest[member.officer_id] = (message.fix.fixed_at.ToDatetime(UTC), at)

    loading = asyncio.create_task(load())

    async def goes_on() -> None:
        before = accepted.total()

        async def more() -> bool:
            return accepted.total() > before + 200

        await until(more, "fixes to be taken")

    async with Rig(stack) as rig:
        await goes_on()
        await rig.kill("location-a")
        await goes_on()
        async with another_replica(stack) as other:
            await goes_on()
            await rig.kill("location-a")
            await goes_on()
            other.signal(signal.SIGKILL)
            await goes_on()
    over.set()
    await loading
    for name, (at, there) in newest.items():
        shown = await unit(world.supervisor, OFFICER, name, lambda each, at=at: each.fix.fixed_at.ToDatetime(UTC) >= at)  # type: ignore[misc]
        assert metres(place(shown), there) < 400

    async def complete() -> bool:
        with psycopg.connect(stack.database) as connection:
            rows = connection.execute(
                "SELECT u.unit_id, count(*), max(p.fixed_at) FROM location.position p JOIN location.unit u USING (unit_key) GROUP BY 1"
            ).fetchall()
        kept = defaultdict(lambda: (0, None), {unit_id: (count, last) for unit_id, count, last in rows})
        # What was sent again, because its answer was lost, is there once; what was taken is there, and the first fix before the load.
        return all(kept[name][0] >= accepted[name] + 1 and kept[name][1] == newest[name][0] for name in accepted)

    await until(complete, "tracks without holes")
