"""What was recorded is kept, held and deleted as promised; time is moved in the database, everything else is real."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import pytest_asyncio
from chassis.bus import Publisher, Received
from chassis.reader import Reader
from chassis.rpc import reason_of
from chassis.settings import KafkaSettings
from contracts.topics import AUDIT_RECORD, EVIDENCE_RECORDING
from media.files import verify_file
from sightline.audit.v1.record_pb2 import AuditRecord
from sightline.emergency.v1.emergency_pb2 import DISPOSITION_EXERCISE, DISPOSITION_RESOLVED
from sightline.evidence.v1 import evidence_service_pb2 as pb
from sightline.evidence.v1.recording_pb2 import (
    HOLD_REASON_EMERGENCY,
    HOLD_REASON_INTEGRITY,
    RECORDING_STATE_DELETED,
    RECORDING_STATE_KEPT,
    RECORDING_STATE_MARKED,
    RecordingEvent,
    RecordingState,
)
from sightline.streams.v1.session_pb2 import Session, SessionState
from uuid_utils import uuid7

from services.evidence.model import GAP_FROM
from tools.desk import Desk
from tools.local.stack import ROOT, Stack
from tools.roster import AGENCY, Member
from tools.world import World, until

Someone = Callable[..., Member]
LIVE, INTERRUPTED, ENDED = (
    SessionState.SESSION_STATE_LIVE, SessionState.SESSION_STATE_INTERRUPTED, SessionState.SESSION_STATE_ENDED,
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="world")
async def _world(stack: Stack) -> AsyncIterator[World]:
    async with World(stack, video=True) as world:
        yield world


class Records:
    """What has come on two topics since the tests began."""

    def __init__(self) -> None:
        self.audit: list[AuditRecord] = []
        self.events: list[RecordingEvent] = []

    async def keep(self, received: Received) -> None:
        if received.topic == AUDIT_RECORD.name:
            self.audit.append(AuditRecord.FromString(received.value))
        else:
            self.events.append(RecordingEvent.FromString(received.value))


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="records")
async def _records(kafka: KafkaSettings, publisher: Publisher) -> AsyncIterator[Records]:
    records = Records()
    reader = Reader("test-retention", (AUDIT_RECORD, EVIDENCE_RECORDING), records.keep, kafka, publisher)
    reading = asyncio.create_task(reader.tail(None))
    await reader.caught_up.wait()
    yield records
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def _get(world: World, session: Session, desk: Desk | None = None) -> pb.GetRecordingResponse:
    desk = desk or world.supervisor
    answer: pb.GetRecordingResponse = await desk.call(desk.evidence.GetRecording, pb.GetRecordingRequest(recording_id=session.session_id))
    return answer


async def _once(world: World, session: Session, is_so: Callable[[pb.GetRecordingResponse], bool], what: str) -> pb.GetRecordingResponse:
    async def there() -> pb.GetRecordingResponse | None:
        try:
            found = await _get(world, session)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return None  # its first event is on the way
            raise
        return found if is_so(found) else None

    return await until(there, what)


async def _in_state(world: World, session: Session, state: RecordingState.ValueType) -> pb.GetRecordingResponse:
    return await _once(world, session, lambda found: found.recording.state == state, f"state {RecordingState.Name(state)}")


async def _recorded(world: World, officer: Member, *, pieces: int = 40) -> tuple[str, Session]:
    """An emergency, and the ended session of its camera."""
    await world.duty(officer)
    pressed = await world.press(officer.radio)
    session = await world.session(pressed.emergency_id, LIVE)

    def is_there(found: pb.GetRecordingResponse) -> bool:
        return sum(segment.pieces for segment in found.segments if segment.segment_id.endswith("live")) >= pieces

    await _once(world, session, is_there, "pieces")
    await world.cameras[officer.camera_ids[0]].finish()
    session = await world.session(pressed.emergency_id, ENDED)

    def is_all(found: pb.GetRecordingResponse) -> bool:
        kept = {name: verify_file(path) for name, path in _indexes(world.stack, session).items()}
        differing[:] = [f"{name}: {verdict}" for name, verdict in kept.items()] + [str(s) for s in found.segments]
        return {segment.segment_id: segment.chain.hex() for segment in found.segments} == {n: v.chain for n, v in kept.items()}

    differing: list[str] = []
    try:
        await _once(world, session, is_all, "last heads")
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {differing}") from error
    return pressed.emergency_id, session


def _move_time(stack: Stack, session: Session, column: str) -> None:
    """As if the time that the column names had come."""
    with psycopg.connect(stack.database, autocommit=True) as connection:
        moved = connection.execute(
            f"UPDATE evidence.recording SET {column} = now() - interval '1 min' WHERE recording_id = %s",
            [session.session_id],
        )
        assert moved.rowcount == 1


def _files(stack: Stack, session: Session) -> list[Path]:
    return sorted(stack.data.glob(f"relay-*/{session.session_id}/*"))


def _indexes(stack: Stack, session: Session) -> dict[str, Path]:
    return {path.stem: path for path in _files(stack, session) if path.suffix == ".jsonl"}


def _sightline(stack: Stack, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tools.cli", "--plain", "evidence", *arguments, "--data", str(stack.data)]
    environment = {"PYTHONPATH": f"{ROOT / 'libs'}:{ROOT}", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False)


async def test_an_emergency_is_held_at_once_and_its_segments_are_in_order_of_their_pictures(
    world: World, someone: Someone, stack: Stack
) -> None:
    footage = world.footage

    async def buffered() -> bool:
        return footage is not None and len(footage.between(time.monotonic() - 3, time.monotonic() - 2)) > 1

    await until(buffered, "three seconds before the press")
    emergency_id, session = await _recorded(world, someone())
    recording = (await _once(world, session, lambda found: found.recording.HasField("ended_at"), "end")).recording
    assert recording.held
    found = await _once(world, session, lambda found: len(found.segments) == 2, "segments")
    [hold] = found.holds
    assert (hold.reason, hold.note, hold.placed_by.id) == (HOLD_REASON_EMERGENCY, emergency_id, "service/evidence")
    assert [segment.segment_id for segment in found.segments] == ["0000-pre", "0001-live"]
    before, live = found.segments
    # The buffer was filled before the press, and reaches up to the live picture.
    assert before.captured_from.ToDatetime() < live.captured_from.ToDatetime() <= before.captured_until.ToDatetime() + GAP_FROM
    assert not found.gaps
    days = (recording.retain_until.seconds - live.received_at.seconds) / 86400
    assert 30.9 < days < 31.1
    shown = _sightline(stack, "show", session.session_id)
    assert (shown.returncode, "held, whatever its age" in shown.stdout, "0000-pre" in shown.stdout) == (0, True, True)


async def test_a_gap_that_a_late_segment_fills_is_none(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    camera = world.cameras[officer.camera_ids[0]]
    pressed = await world.press(officer.radio)
    session = await world.session(pressed.emergency_id, LIVE)
    back = asyncio.Event()
    cutting = asyncio.create_task(camera.cut_media(back))
    await _once(world, session, lambda found: any(s.segment_id == "0001-live" for s in found.segments), "first segment")
    await world.session(pressed.emergency_id, INTERRUPTED)
    back.set()
    await cutting

    def is_whole(found: pb.GetRecordingResponse) -> bool:
        return {"0002-late", "0002-live"} <= {segment.segment_id for segment in found.segments} and not found.gaps

    found = await _once(world, session, is_whole, "late segment")
    assert (await world.session(pressed.emergency_id, LIVE)).gaps  # the live picture had one
    names = [segment.segment_id for segment in found.segments]
    assert names.index("0002-late") < names.index("0002-live")


async def test_what_nobody_holds_is_deleted_in_two_phases_and_its_chain_stays(
    world: World, someone: Someone, stack: Stack, records: Records
) -> None:
    emergency_id, session = await _recorded(world, someone())
    chains = {name: verify_file(path).chain for name, path in _indexes(stack, session).items()}
    assert len(chains) == 2
    await world.clear(emergency_id, DISPOSITION_EXERCISE)
    await _once(world, session, lambda found: not found.recording.held, "released hold")
    assert (await _get(world, session)).holds[0].released_by.id == "service/evidence"
    _move_time(stack, session, "retain_until")
    marked = await _in_state(world, session, RECORDING_STATE_MARKED)
    grace = marked.recording.delete_after.seconds - session.ended_at.seconds
    assert 6.9 < grace / 86400 < 7.1
    assert len(_files(stack, session)) == 4
    _move_time(stack, session, "delete_after")
    deleted = await _in_state(world, session, RECORDING_STATE_DELETED)

    async def gone() -> bool:
        return not _files(stack, session) and not list(stack.data.glob(f"relay-*/{session.session_id}"))

    await until(gone, "nothing of it on any disk")
    assert {segment.segment_id: segment.chain.hex() for segment in deleted.segments} == chains
    assert all(segment.HasField("deleted_at") for segment in deleted.segments)

    async def audited() -> dict[str, str] | None:
        prefix = f"recordings/{session.session_id}/"
        said = {
            r.target.removeprefix(prefix): r.details["chain"]
            for r in records.audit
            if r.action == "recording.deleted" and r.target.startswith(prefix)
        }
        return said if len(said) == 2 else None

    assert await until(audited, "audit records") == chains

    async def told() -> RecordingEvent | None:
        last = [e for e in records.events if e.recording.recording_id == session.session_id][-1:]
        return last[0] if last and last[0].recording.state == RECORDING_STATE_DELETED else None

    assert {segment.segment_id: segment.chain.hex() for segment in (await until(told, "event")).segments} == chains


async def test_a_hold_brings_back_what_is_marked(world: World, someone: Someone, stack: Stack) -> None:
    emergency_id, session = await _recorded(world, someone())
    await world.clear(emergency_id, DISPOSITION_RESOLVED)
    [hold] = (await _once(world, session, lambda found: bool(found.holds), "hold")).holds
    # A real emergency is kept until a person says that it need not be.
    released = _sightline(stack, "release", hold.hold_id, "no case")
    assert (released.returncode, "kept until" in released.stdout) == (0, True), released.stderr
    _move_time(stack, session, "retain_until")
    await _in_state(world, session, RECORDING_STATE_MARKED)
    held = _sightline(stack, "hold", session.session_id, "a complaint came in")
    assert held.returncode == 0, held.stderr
    found = await _get(world, session)
    assert (found.recording.state, found.recording.held, found.holds[1].note) == (RECORDING_STATE_KEPT, True, "a complaint came in")
    assert not found.recording.HasField("delete_after")


async def test_what_was_exchanged_is_not_deleted_but_held(world: World, someone: Someone, stack: Stack) -> None:
    emergency_id, session = await _recorded(world, someone())
    index = _indexes(stack, session)["0001-live"]
    lines = index.read_text().splitlines()
    forged = [json.loads(line) for line in lines]
    for line in forged[1:]:
        line["chain"] = "ab" * 32
    index.write_text("".join(json.dumps(line) + "\n" for line in forged))
    await world.clear(emergency_id, DISPOSITION_EXERCISE)
    await _once(world, session, lambda found: not found.recording.held, "released hold")
    _move_time(stack, session, "retain_until")
    await _in_state(world, session, RECORDING_STATE_MARKED)
    _move_time(stack, session, "delete_after")
    found = await _once(world, session, lambda found: found.recording.held, "hold")
    assert found.recording.state == RECORDING_STATE_KEPT
    assert found.holds[-1].reason == HOLD_REASON_INTEGRITY
    assert index.with_suffix(".mp4").exists()


async def test_only_who_may_sees_holds_and_releases(world: World, someone: Someone, stack: Stack) -> None:
    _, session = await _recorded(world, someone())
    [hold] = (await _once(world, session, lambda found: bool(found.holds), "hold")).holds
    release = pb.ReleaseHoldRequest(hold_id=hold.hold_id, note="not needed")
    place = pb.PlaceHoldRequest(request_id=str(uuid7()), recording_id=session.session_id, note="please keep")
    get = pb.GetRecordingRequest(recording_id=session.session_id)
    refused: list[tuple[str, str, Any]] = [
        ("supervisor", "ReleaseHold", release), ("analyst", "ReleaseHold", release), ("officer", "PlaceHold", place),
        ("partner", "GetRecording", get), ("partner", "PlaceHold", place), ("partner", "ReleaseHold", release),
        ("supervisor", "SetRetention", pb.SetRetentionRequest(days=1)), ("admin", "SetRetention", pb.SetRetentionRequest(days=0)),
    ]  # fmt: skip
    reasons = []
    for user, method, request in refused:
        async with Desk(stack, user) as desk:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await desk.call(getattr(desk.evidence, method), request)
            reasons.append(reason_of(error.value))
    assert reasons == [
        "EMERGENCY_OPEN", "CALLER_NOT_ALLOWED", "CALLER_NOT_ALLOWED", "NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "CALLER_NOT_ALLOWED",
        "INVALID_FIELD",
    ]  # fmt: skip
    async with Desk(stack, f"auditor@{AGENCY}") as auditor:
        pages, token = [], ""
        while True:
            request = pb.ListRecordingsRequest(page_size=2, page_token=token, state=RECORDING_STATE_KEPT)
            page = await auditor.call(auditor.evidence.ListRecordings, request)
            pages += [recording.recording_id for recording in page.recordings]
            if not (token := page.next_page_token):
                break
    assert session.session_id in pages
    assert pages == sorted(set(pages), reverse=True)


async def test_what_was_published_is_written_down_and_proves_a_recording(
    world: World, someone: Someone, stack: Stack, tmp_path: Path
) -> None:
    _, session = await _recorded(world, someone())
    written = _sightline(stack, "anchors", session.session_id)
    assert written.returncode == 0, written.stderr
    anchors = tmp_path / "anchors"
    anchors.write_text(written.stdout)
    assert len(written.stdout.splitlines()) >= 2
    assert _sightline(stack, "verify", session.session_id, "--anchors", str(anchors)).returncode == 0
    anchors.write_text(written.stdout.replace('"chain": "', '"chain": "00', 1))
    found = _sightline(stack, "verify", session.session_id, "--anchors", str(anchors))
    assert (found.returncode, "not what was published" in " ".join(found.stderr.split())) == (1, True)
