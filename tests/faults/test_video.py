"""A relay dies in mid-stream: the session goes on, at the same relay or at another, and what was kept is whole."""

import json
import resource
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import psycopg
import pytest_asyncio
from media.files import verify_file
from sightline.audit.v1.record_pb2 import AuditRecord
from sightline.streams.v1.session_pb2 import Session, SessionState
from testkit.trial.rig import Rig

from tools.roster import member
from tools.simulator.viewer import Viewer
from tools.world import World, until

_numbers = count(6000)
LIVE, ENDED = SessionState.SESSION_STATE_LIVE, SessionState.SESSION_STATE_ENDED


@pytest_asyncio.fixture(loop_scope="session", name="seen")
async def _seen(rig: Rig) -> AsyncIterator[World]:
    async with World(rig.stack, video=True) as world:
        yield world


async def _gets(viewer: Viewer, pieces: int) -> None:
    async def came() -> bool:
        return len(viewer.pieces) >= pieces

    await until(came, f"{pieces} pieces")


def _segments(rig: Rig, session: Session) -> list[Path]:
    return sorted(rig.stack.data.glob(f"relay-*/{session.session_id}/*.jsonl"), key=lambda file: file.name)


def _kept(files: list[Path]) -> set[str]:
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()[1:]]
    return {line["chain"] for line in lines if "chain" in line}


async def _ends(world: World, emergency_id: str, camera_id: str) -> Session:
    world.cameras[camera_id].stop_recording()
    return await world.session(emergency_id, ENDED)


async def test_a_killed_relay_loses_at_most_the_piece_in_flight(rig: Rig, seen: World) -> None:
    officer = await seen.duty(member("relay", next(_numbers)))
    (camera_id,) = officer.camera_ids
    pressed = await seen.press(officer.radio)
    before: list[Viewer] = []
    for _ in range(3):
        async with await seen.watch(pressed.emergency_id, camera_id) as viewer:
            await _gets(viewer, 20)
            session = await seen.session(pressed.emergency_id, LIVE)
            await rig.kill(f"relay-{session.relay_id}")
            await viewer.over.wait()
        before.append(viewer)
    # The grant died with its relay, or will; whoever may watch gets another, and sees the same session.
    async with await seen.watch(pressed.emergency_id, camera_id) as viewer:
        await _gets(viewer, 20)
    session = await _ends(seen, pressed.emergency_id, camera_id)
    files = _segments(rig, session)
    assert len(files) >= 4
    verdicts = [verify_file(file) for file in files]
    assert [verdict.finding for verdict in verdicts] == [None] * len(files)
    assert verdicts[-1].end == "CAMERA_STOPPED"
    # Nothing that anybody has seen is missing.
    kept = _kept(files)
    for each in (*before, viewer):
        assert {piece.chain.hex() for piece in each.pieces} <= kept


async def test_without_its_relay_a_session_goes_on_at_another(rig: Rig, seen: World) -> None:
    officer = await seen.duty(member("relay", next(_numbers)))
    (camera_id,) = officer.camera_ids
    pressed = await seen.press(officer.radio)
    session = await seen.session(pressed.emergency_id, LIVE)
    async with rig.down(f"relay-{session.relay_id}"):

        async def moved() -> Session | None:
            (found,) = await seen.sessions(pressed.emergency_id)
            return found if found.relay_id != session.relay_id and found.last_media_at.ToNanoseconds() > 0 else None

        elsewhere = await until(moved, "another relay")
        assert elsewhere.session_id == session.session_id
        async with await seen.watch(pressed.emergency_id, camera_id) as viewer:
            await _gets(viewer, 20)
    session = await _ends(seen, pressed.emergency_id, camera_id)
    files = _segments(rig, session)
    assert len({file.parent.parent.name for file in files}) == 2
    assert all(verify_file(file).finding is None for file in files)


async def test_without_the_streams_service_whoever_watches_watches_on(rig: Rig, seen: World) -> None:
    officer = await seen.duty(member("relay", next(_numbers)))
    (camera_id,) = officer.camera_ids
    pressed = await seen.press(officer.radio)
    async with await seen.watch(pressed.emergency_id, camera_id) as viewer:
        await _gets(viewer, 5)
        async with rig.down("streams-a", "streams-b"):
            await _gets(viewer, len(viewer.pieces) + 60)
            assert not viewer.over.is_set()
        # What happened meanwhile is made up for.
        await seen.clear(pressed.emergency_id)
        await until(lambda: _over(viewer), "end of viewing")
        assert viewer.close_code == 4403


async def test_a_full_disk_raises_an_alarm_and_spoils_nothing(rig: Rig, seen: World) -> None:
    """The kernel refuses to write: no file of the relay may grow."""
    officer = await seen.duty(member("relay", next(_numbers)))
    pressed = await seen.press(officer.radio)
    session = await seen.session(pressed.emergency_id, LIVE)
    relay = rig.process(f"relay-{session.relay_id}")
    unlimited = resource.prlimit(relay.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    async def alarmed() -> Session | None:
        (found,) = await seen.sessions(pressed.emergency_id)
        return found if found.HasField("not_kept_at") else None

    await until(alarmed, "alarm of the full disk")
    with psycopg.connect(rig.stack.database) as connection:
        rows = connection.execute("SELECT record FROM streams.audit_record").fetchall()
    records = [AuditRecord.FromString(bytes(row[0])) for row in rows]
    assert f"sessions/{session.session_id}" in {record.target for record in records if record.action == "session.not_kept"}
    resource.prlimit(relay.pid, resource.RLIMIT_FSIZE, unlimited)
    async with await seen.watch(pressed.emergency_id, officer.camera_ids[0]) as viewer:
        await _gets(viewer, 20)
    await _ends(seen, pressed.emergency_id, officer.camera_ids[0])
    verdicts = [verify_file(file) for file in _segments(rig, session)]
    assert [verdict.finding for verdict in verdicts] == [None] * len(verdicts)
    assert {"STORAGE_FULL", "CAMERA_STOPPED"} <= {verdict.end for verdict in verdicts}


async def test_sessions_go_where_there_is_room(rig: Rig, seen: World) -> None:
    async with rig.otherwise("relay-a", SIGHTLINE_RESERVE_MIB=str(2**40)):
        placed = []
        for _ in range(3):
            officer = await seen.duty(member("relay", next(_numbers)))
            pressed = await seen.press(officer.radio)

            async def is_live(emergency_id: str = pressed.emergency_id) -> Session | None:
                found = [each for each in await seen.sessions(emergency_id) if each.state == LIVE]
                return found[0] if found else None

            placed.append((await until(is_live, "a session")).relay_id)
        assert placed == ["b"] * 3


async def _over(viewer: Viewer) -> bool:
    return viewer.over.is_set()
