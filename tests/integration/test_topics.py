"""What other systems see on Kafka: poison is set aside, audit is gap-free, one trace reaches from gateway to camera."""

import asyncio
import json
import random
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from chassis import telemetry
from chassis.bus import Publisher, Received, Record, Topic, check_topics, client_config
from chassis.errors import Misconfigured
from chassis.settings import KafkaSettings
from confluent_kafka import Producer
from contracts.topics import (
    ACTIVATION_DECISION,
    ACTIVATION_REJECTION,
    ACTIVATION_RESULT,
    AUDIT_RECORD,
    EMERGENCY_EVENT,
    MEDIA_CHAIN,
    REGISTRY_DUTY,
    STREAM_SESSION,
    radio_key,
)
from sightline.activation.v1.activation_pb2 import ActivationDecision, ActivationResult, DecisionRejection
from sightline.audit.v1.record_pb2 import AuditOutcome, AuditRecord
from sightline.emergency.v1.emergency_pb2 import Emergency, EmergencyEvent
from sightline.registry.v1.duty_pb2 import DutyRecord
from sightline.streams.v1 import stream_service_pb2 as streams_pb

from tools.desk import Desk
from tools.drill import drill
from tools.roster import Member
from tools.world import World, until

Someone = Callable[..., Member]
Read = Callable[[Topic], list[Received]]


POISON = {
    "random bytes": b"\xff\xfe\x00\x01garbage",
    "truncated": EmergencyEvent(emergency=Emergency(emergency_id="x" * 50)).SerializeToString()[:-7],
    "text": b"hello",
    "nearly too large": random.Random(1).randbytes(250_000),
}


_READ = (EMERGENCY_EVENT, REGISTRY_DUTY, ACTIVATION_DECISION, ACTIVATION_RESULT, STREAM_SESSION, MEDIA_CHAIN)


@pytest.mark.parametrize("topic", _READ, ids=lambda t: t.name)
async def test_poison_goes_to_the_dlq_and_the_next_press_is_handled(
    world: World, someone: Someone, publisher: Publisher, kafka: KafkaSettings, read: Read, topic: Topic
) -> None:
    officer = await world.duty(someone())
    key = f"poison-{officer.officer_id}".encode()
    for value in POISON.values():
        await publisher.publish(Record(topic.name, key, value, {"note": "poison"}))
    raw = Producer(client_config(kafka))
    raw.produce(topic.name, b"\xff no value for the header", key, headers=[("note", b"poison"), ("nothing", None)])
    raw.flush(10)

    pressed = await world.press(officer.radio)
    assert await world.states(pressed.emergency_id) == {officer.camera_ids[0]: "RECORDING"}

    place = next(r for r in read(topic) if r.key == key) if any(r.key == key for r in read(topic)) else None

    async def set_aside() -> list[Received] | None:
        letters = [r for r in read(topic.dlq()) if r.headers.get("note") == b"poison"]
        return letters if {r.value for r in letters} == {*POISON.values(), b"\xff no value for the header"} else None

    letters = await until(set_aside, f"dead letters of {topic.name}")
    for letter in letters:
        assert letter.headers["dlq_topic"] == topic.name.encode()
        assert letter.headers["dlq_error"]
        reader, name, partition, offset = letter.key.decode().rsplit("/", 3)
        assert reader.startswith(topic.readers)
        assert (name, partition) == (topic.name, letter.headers["dlq_partition"].decode())
        assert offset == letter.headers["dlq_offset"].decode()
    if place is not None:
        assert any(letter.headers["dlq_offset"] == str(place.offset).encode() for letter in letters)


async def test_a_decision_for_an_emergency_that_nobody_raised_is_never_executed(
    world: World, someone: Someone, publisher: Publisher, read: Read
) -> None:
    officer = await world.duty(someone())
    forged = ActivationDecision(
        emergency_id="01900000-0000-7000-8000-000000000001", epoch=1, agency_id=world.agency_id, camera_ids=officer.camera_ids
    )
    forged.expires_at.FromDatetime(datetime.now(UTC) + timedelta(minutes=2))
    record = Record.of(ACTIVATION_DECISION, b"forged", forged, source="nobody", subject="x")
    await publisher.publish(record)

    async def noted() -> bool:
        audits = [AuditRecord.FromString(r.value) for r in read(AUDIT_RECORD)]
        return any(a.action == "activation.decision_rejected" and a.emergency_id == forged.emergency_id for a in audits)

    await until(noted, "audit record of the rejected decision")
    assert not world.cameras[officer.camera_ids[0]].starts


async def test_a_decision_with_impossible_names_stops_nothing(world: World, someone: Someone, publisher: Publisher) -> None:
    """What PostgreSQL refuses for ever must not be tried for ever."""
    officer = await world.duty(someone())
    huge = ActivationDecision(emergency_id="01900000-0000-7000-8000-000000000002", epoch=1, agency_id="x" * 9_000, camera_ids=["c"])
    huge.expires_at.FromDatetime(datetime.now(UTC))
    await publisher.publish(Record(ACTIVATION_DECISION.name, b"x", huge.SerializeToString(), {"ce_source": "s" * 12_000}))
    result = ActivationResult(emergency_id=huge.emergency_id, epoch=1, version=1, camera_id="c" * 12_000)
    await publisher.publish(Record(ACTIVATION_RESULT.name, b"x", result.SerializeToString()))

    pressed = await world.press(officer.radio)

    assert await world.states(pressed.emergency_id) == {officer.camera_ids[0]: "RECORDING"}


async def test_a_second_differing_decision_is_recorded_told_and_not_executed(
    world: World, someone: Someone, publisher: Publisher, read: Read
) -> None:
    officer, bystander = await world.duty(someone()), await world.duty(someone())
    pressed = await world.press(officer.radio)
    await world.states(pressed.emergency_id)
    desk = world.supervisor
    ask = streams_pb.GetActivationRequest(emergency_id=pressed.emergency_id)
    first = await desk.call(desk.streams.GetActivation, ask)
    other = ActivationDecision.FromString(first.decision.SerializeToString())
    del other.camera_ids[:]
    other.camera_ids.extend(bystander.camera_ids)
    await publisher.publish(Record.of(ACTIVATION_DECISION, b"x", other, source="joiner/z", subject="x"))

    async def rejected() -> bool:
        return bool((await desk.call(desk.streams.GetActivation, ask)).rejected_decisions)

    def told() -> list[DecisionRejection]:
        return [DecisionRejection.FromString(r.value) for r in read(ACTIVATION_REJECTION)]

    async def announced() -> bool:
        return any(t.decision == other and t.decided_by == "joiner/z" for t in told())

    await until(rejected, "the rejected decision")
    await until(announced, "its event")
    assert first.decided_by in ("joiner/a", "joiner/b", "reconcile")
    assert (await desk.call(desk.streams.GetActivation, ask)).decision == first.decision
    assert not world.cameras[bystander.camera_ids[0]].starts


async def test_events_are_cloud_events_with_dense_versions(world: World, someone: Someone, read: Read) -> None:
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    await world.press(officer.radio)
    await world.states(pressed.emergency_id)
    await world.clear(pressed.emergency_id)

    def versions() -> list[int]:
        events = [EmergencyEvent.FromString(r.value).emergency for r in read(EMERGENCY_EVENT) if b"poison" not in r.key]
        return sorted({e.version for e in events if e.emergency_id == pressed.emergency_id})

    async def all_three() -> bool:
        return versions() == [1, 2, 3]

    await until(all_three, "three versions")
    event = next(r for r in read(EMERGENCY_EVENT) if r.headers.get("ce_subject") == f"emergencies/{pressed.emergency_id}".encode())
    assert event.headers["ce_type"] == b"sightline.emergency.v1.EmergencyEvent"
    assert event.headers["content-type"] == b"application/protobuf"
    assert event.key == f"{officer.radio.wacn:05x}-{officer.radio.system_id:03x}-{officer.radio.unit_id:06x}".encode()


async def test_audit_records_are_numbered_without_gaps_and_tell_who(world: World, someone: Someone, read: Read) -> None:
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    await world.states(pressed.emergency_id)
    await world.clear(pressed.emergency_id)
    async with Desk(world.stack, "officer") as nosy:
        with pytest.raises(Exception, match="roles"):
            await nosy.call(nosy.streams.ListCameras, streams_pb.ListCamerasRequest())

    def of_this() -> list[AuditRecord]:
        records = [AuditRecord.FromString(r.value) for r in read(AUDIT_RECORD)]
        return [r for r in records if r.emergency_id == pressed.emergency_id]

    async def complete() -> bool:
        return {"emergency.raised", "activation.decided", "activation.outcome", "emergency.cleared"} <= {r.action for r in of_this()}

    await until(complete, "audit records of the emergency")
    actors = {r.action: r.actor.id for r in of_this()}
    assert actors["emergency.raised"] == "gateway/gw-1"
    assert actors["emergency.cleared"] == "supervisor"
    assert actors["activation.outcome"] == f"camera/{officer.camera_ids[0]}"

    async def refusal() -> bool:
        records = [AuditRecord.FromString(r.value) for r in read(AUDIT_RECORD)]
        return any(
            r.action == "call.refused" and r.actor.id == "officer" and r.outcome == AuditOutcome.AUDIT_OUTCOME_REFUSED for r in records
        )

    await until(refusal, "audit record of the refused call")
    for producer in ("registry", "emergency", "streams"):
        records = [AuditRecord.FromString(r.value) for r in read(AUDIT_RECORD) if r.key == producer.encode()]
        numbers = sorted({r.producer_seq for r in records})
        assert numbers == list(range(1, len(numbers) + 1)), producer


async def test_a_newer_schemas_unknown_fields_and_values_are_taken_with_caution(
    world: World, someone: Someone, publisher: Publisher, read: Read
) -> None:
    """F50: a lane and a replica of another release may write what this one does not know."""
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    await world.states(pressed.emergency_id)
    desk = world.supervisor
    ask = streams_pb.GetActivationRequest(emergency_id=pressed.emergency_id)
    decision = (await desk.call(desk.streams.GetActivation, ask)).decision
    unknown_field = b"\xd2\x3f\x05hello"  # number 1018, text
    newer = decision.SerializeToString() + unknown_field
    await publisher.publish(Record(ACTIVATION_DECISION.name, b"x", newer, {"ce_source": "/sightline/joiner/newer"}))
    none = ActivationDecision.FromString(decision.SerializeToString())
    del none.camera_ids[:]
    none.no_camera_reason = 99  # type: ignore[assignment]
    await publisher.publish(Record(ACTIVATION_DECISION.name, b"x", none.SerializeToString(), {"ce_source": "/sightline/joiner/newest"}))

    def told() -> set[str]:
        messages = [DecisionRejection.FromString(r.value) for r in read(ACTIVATION_REJECTION)]
        return {m.decided_by for m in messages if m.decision.emergency_id == pressed.emergency_id}

    async def both_looked_at() -> bool:
        return "joiner/newest" in told()

    await until(both_looked_at, "the decision with an unknown reason")
    assert "joiner/newer" not in told()
    assert (await desk.call(desk.streams.GetActivation, ask)).decision == decision
    assert len(world.cameras[officer.camera_ids[0]].starts) == 1


async def test_one_trace_reaches_from_the_gateway_to_the_camera(world: World, someone: Someone) -> None:
    decided_by = "reconcile"
    while decided_by == "reconcile":  # a slow machine: the trace goes on all the same, but this is about the lanes
        officer = await world.duty(someone())
        with telemetry.span("test"):
            trace_id = telemetry.trace_id()
            pressed = await world.press(officer.radio)
        await world.states(pressed.emergency_id)
        ask = streams_pb.GetActivationRequest(emergency_id=pressed.emergency_id)
        decided_by = (await world.supervisor.call(world.supervisor.streams.GetActivation, ask)).decided_by

    def services() -> set[tuple[str, str]]:
        with urllib.request.urlopen(f"{world.stack.traces}/traces/{trace_id}", timeout=5) as answer:
            return {(span["service"], span["name"]) for span in json.load(answer)}

    wanted = {
        ("simulator", "gateway press"),
        ("emergency", "sightline.emergency.v1.EmergencyService/RaiseAlarm"),
        ("registry", "sightline.registry.v1.RegistryService/ResolveRadio"),
        ("joiner-a", "joiner join"),
        ("streams", "streams-decisions read"),
        ("streams", "streams order"),
        ("simulator", "camera record"),
        ("streams", "camera answered"),
    }

    async def complete() -> bool:
        return wanted <= await asyncio.to_thread(services)

    await until(complete, f"spans of trace {trace_id}")


async def test_a_drill_prints_its_hops_in_order(world: World) -> None:
    found = await drill(world.stack, number=9876)
    names = [hop.name for hop in found.hops]
    assert found.outcome == "RECORDING"
    assert names[0] == "gateway sends the press"
    assert {"recording confirmed", "relay has kept the first piece"} <= set(names)
    assert names[-1] in ("a viewer has the first picture", "recording confirmed")
    assert [hop.since_press_ms for hop in found.hops] == sorted(hop.since_press_ms for hop in found.hops)


async def test_topics_that_differ_from_the_table_are_an_error_that_says_the_fix(kafka: KafkaSettings) -> None:
    missing = Topic("sightline.nobody.made.v1", EmergencyEvent, "none", "nobody", (), 3, timedelta(days=1))
    narrow = Topic(EMERGENCY_EVENT.name, EmergencyEvent, "none", "nobody", (), 5, timedelta(days=7))
    compacted = Topic(REGISTRY_DUTY.name, EmergencyEvent, "none", "nobody", (), 12, timedelta(hours=2), "compact")
    for topic, says in ((missing, "topics create"), (narrow, "12 partitions instead of 5"), (compacted, "cleanup.policy is delete")):
        with pytest.raises(Misconfigured, match=says):
            await check_topics(kafka, [topic])
    await check_topics(kafka, [EMERGENCY_EVENT, AUDIT_RECORD])


async def test_no_faust_worker_listens_on_anything_but_its_health_port(world: World) -> None:
    lane = next(p for p in world.stack.processes if p.name.startswith("joiner"))
    listening = [c.laddr.port for c in psutil.Process(lane.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == [int(world.stack.health[lane.name].rpartition(":")[2])]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_no_codec_that_a_producer_takes_ends_a_lane(world: World, someone: Someone, kafka: KafkaSettings, codec: str) -> None:
    lanes = [each for each in world.stack.processes if each.name.startswith("joiner")]
    officer = await world.duty(someone())
    stranger = DutyRecord(radio=someone().radio, agency_id="demo-pd", version=1)
    for _ in range(50):  # enough to be worth compressing
        stranger.intervals.add(officer_id="nobody", unit_id="unit-1", camera_ids=["cam-1", "cam-2"])
    producer = Producer(client_config(kafka) | {"compression.type": codec})
    for partition in range(REGISTRY_DUTY.partitions):
        producer.produce(REGISTRY_DUTY.name, stranger.SerializeToString(), radio_key(stranger.radio), partition=partition)
    assert producer.flush(10) == 0

    async def by_a_lane() -> bool:
        pressed = await world.press(officer.radio)
        await world.outcome(pressed.emergency_id)
        request = streams_pb.GetActivationRequest(emergency_id=pressed.emergency_id)
        answer = await world.supervisor.call(world.supervisor.streams.GetActivation, request)
        await world.clear(pressed.emergency_id)
        return str(answer.decided_by).startswith("joiner/")

    await until(by_a_lane, "a decision of a lane")
    assert all(lane.alive() for lane in lanes)
