"""From the press to the picture: what viewers get is what is kept, only while they may, and nobody is watched unseen."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
from chassis.bus import Publisher, Received
from chassis.reader import Reader
from chassis.rpc import reason_of
from chassis.settings import KafkaSettings
from contracts.topics import MEDIA_CHAIN, STREAM_GRANT
from media.files import verify_file
from sightline.emergency.v1 import emergency_service_pb2 as emergency_pb
from sightline.media.v1.chain_pb2 import ChainHead
from sightline.streams.v1 import session_service_pb2 as pb
from sightline.streams.v1.session_pb2 import Grant, GrantEndCause, GrantEvent, Session, SessionEndCause, SessionState

from tools.desk import Desk
from tools.local.stack import Stack
from tools.roster import AGENCY, Member
from tools.simulator.camera import Camera
from tools.simulator.viewer import Viewer
from tools.world import World, until

Someone = Callable[..., Member]
LIVE, INTERRUPTED, ENDED = (
    SessionState.SESSION_STATE_LIVE, SessionState.SESSION_STATE_INTERRUPTED, SessionState.SESSION_STATE_ENDED,
)  # fmt: skip
REVOKED = 4403


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="world")
async def _world(stack: Stack) -> AsyncIterator[World]:
    async with World(stack, video=True) as world:
        yield world


class Records:
    """What has come on two topics since the tests began."""

    def __init__(self) -> None:
        self.heads: list[ChainHead] = []
        self.grants: dict[str, Grant] = {}

    async def keep(self, received: Received) -> None:
        """Keep one record."""
        if received.topic == MEDIA_CHAIN.name:
            self.heads.append(ChainHead.FromString(received.value))
        else:
            grant = GrantEvent.FromString(received.value).grant
            if grant.grant_id not in self.grants or self.grants[grant.grant_id].version < grant.version:
                self.grants[grant.grant_id] = grant

    async def ended(self, grant_id: str) -> Grant:
        """A grant once its end is confirmed."""

        async def confirmed() -> Grant | None:
            grant = self.grants.get(grant_id)
            return grant if grant is not None and grant.HasField("ended_at") else None

        return await until(confirmed, f"end of grant {grant_id}")


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="records")
async def _records(kafka: KafkaSettings, publisher: Publisher) -> AsyncIterator[Records]:
    records = Records()
    reader = Reader("test-video", (MEDIA_CHAIN, STREAM_GRANT), records.keep, kafka, publisher)
    reading = asyncio.create_task(reader.tail(None))
    await reader.caught_up.wait()
    yield records
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def _gets(viewer: Viewer, count: int = 1, *, kind: str = "") -> None:
    """Until so many more pieces have come."""
    there = len(viewer.pieces)

    async def came() -> bool:
        return len([p for p in viewer.pieces[there:] if kind in ("", p.kind)]) >= count

    await until(came, f"{count} pieces")


def _folder(stack: Stack, session: Session) -> Path:
    return stack.data / f"relay-{session.relay_id}" / session.session_id


def _kept(stack: Stack, session: Session) -> list[str]:
    """The chain values of all pieces that were kept as they came, in order."""
    return [line["chain"] for file in sorted(_folder(stack, session).glob("*-live.jsonl")) for line in _entries(file)]


def _entries(index: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, index.read_text().splitlines()[1:]) if "end" not in line]


async def test_what_viewers_get_is_what_is_kept(world: World, someone: Someone, stack: Stack, records: Records) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    async with await world.watch(pressed.emergency_id, camera_id) as first:
        await _gets(first, 30)
        async with await world.watch(pressed.emergency_id, camera_id) as late:
            await _gets(late, 10)
        session = await world.session(pressed.emergency_id, LIVE)
        assert session.officer_id == officer.officer_id
        assert (first.codecs[0]["width"], first.codecs[0]["height"]) == (640, 360)
        assert first.codecs[0]["codec"].startswith("avc1.42c0")
        kept = _kept(stack, session)
        assert [piece.kind for piece in late.pieces[:2]] == ["init", "key"]
        for viewer in (first, late):
            # All that came is kept, in this order; what was left out, for a viewer that was slow or late, was left out up to a keyframe.
            places = [kept.index(piece.chain.hex()) for piece in viewer.pieces]
            assert places == sorted(set(places))
            assert {viewer.pieces[at].kind for at in viewer.breaks} <= {"key"}
            assert viewer.breaks == [at for at in range(1, len(places)) if places[at] != places[at - 1] + 1]

    world.cameras[camera_id].stop_recording()
    session = await world.session(pressed.emergency_id, ENDED)
    assert session.end_cause == SessionEndCause.SESSION_END_CAUSE_CAMERA_STOPPED
    (index,) = _folder(stack, session).glob("*-live.jsonl")

    async def published() -> dict[int, str] | None:
        name = (session.session_id, index.stem)
        return {h.piece: h.chain.hex() for h in records.heads if (h.recording_id, h.segment_id) == name} or None

    anchors = await until(published, "chain heads")
    verdict = verify_file(index, anchors)
    assert verdict.finding is None
    assert verdict.end == "CAMERA_STOPPED"
    assert verdict.pieces == len(_kept(stack, session))


async def test_what_the_camera_saw_before_the_press_is_kept_too(world: World, someone: Someone, stack: Stack) -> None:
    officer = await world.duty(someone())
    # It has been seeing something for some seconds.
    await until(_has_past(world), "some footage")
    pressed_ms = time.time_ns() // 1_000_000
    pressed = await world.press(officer.radio)
    session = await world.session(pressed.emergency_id, LIVE)

    async def uploaded() -> bool:
        file = _folder(stack, session) / "0000-pre.jsonl"
        return file.exists() and verify_file(file).end == "CAMERA_STOPPED"

    await until(uploaded, "the time before the press")
    before = _entries(_folder(stack, session) / "0000-pre.jsonl")
    assert before[1]["kind"] == "key"
    assert before[1]["captured_ms"] < pressed_ms - 2000
    live = _entries(_folder(stack, session) / "0001-live.jsonl")
    assert before[-1]["captured_ms"] >= live[1]["captured_ms"]


def _has_past(world: World) -> Callable[[], Awaitable[bool]]:
    async def has() -> bool:
        now = time.monotonic()
        return world.footage is not None and len(world.footage.between(now - 5, now)) > 80

    return has


async def test_a_clear_ends_viewing_and_not_recording(world: World, someone: Someone, records: Records) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    async with await world.watch(pressed.emergency_id, camera_id) as viewer:
        await _gets(viewer, 5)
        before = await world.session(pressed.emergency_id, LIVE)
        await world.clear(pressed.emergency_id)
        await asyncio.wait_for(viewer.over.wait(), 30)
        assert viewer.close_code == REVOKED
    grant = await records.ended(viewer.grant_id)
    assert grant.end_cause == GrantEndCause.GRANT_END_CAUSE_EMERGENCY_CLEARED
    assert grant.bytes >= viewer.got > 0
    assert grant.last_byte_at.ToNanoseconds() <= grant.ended_at.ToNanoseconds()

    async def goes_on() -> bool:
        (session,) = await world.sessions(pressed.emergency_id)
        return session.state == LIVE and session.last_media_at.ToNanoseconds() > grant.ended_at.ToNanoseconds() > 0

    await until(goes_on, "media after the clear")
    assert before.session_id == (await world.session(pressed.emergency_id, LIVE)).session_id
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _watch(world.supervisor, pressed.emergency_id, camera_id)
    assert reason_of(refused.value) == "EMERGENCY_CLEARED"


async def test_of_two_viewers_one_is_cut_off_and_the_other_unaffected(world: World, someone: Someone, records: Records) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    async with (
        Desk(world.stack, "analyst") as analyst,
        await world.watch(pressed.emergency_id, camera_id) as stays,
        await world.watch(pressed.emergency_id, camera_id, analyst) as goes,
    ):
        await _gets(stays, 5)
        await _gets(goes, 5)
        revoked = await world.supervisor.call(world.supervisor.sessions.RevokeGrant, pb.RevokeGrantRequest(grant_id=goes.grant_id))
        assert revoked.grant.HasField("revoked_at")
        await asyncio.wait_for(goes.over.wait(), 30)
        assert goes.close_code == REVOKED
        got = len(goes.pieces)
        await _gets(stays, 10)
        assert len(goes.pieces) == got
        assert not stays.over.is_set()
        grant = await records.ended(goes.grant_id)
        assert grant.end_cause == GrantEndCause.GRANT_END_CAUSE_REVOKED
        assert grant.viewer.id.startswith("analyst")
        assert not records.grants[stays.grant_id].HasField("revoked_at")


async def test_the_wearer_is_told_while_somebody_watches(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    camera = world.cameras[camera_id]
    pressed = await world.press(officer.radio)
    await world.session(pressed.emergency_id, LIVE)

    async def told(watched: bool) -> bool:
        return camera.orders is not None and camera.orders.watched is watched

    await until(lambda: told(False), "orders")
    async with await world.watch(pressed.emergency_id, camera_id) as viewer:
        await _gets(viewer)
        await until(lambda: told(True), "being told of a viewer")
    await until(lambda: told(False), "being told that the viewer has left")


async def test_a_camera_that_was_cut_off_resumes_the_same_session(world: World, someone: Someone, stack: Stack) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    camera, back = world.cameras[camera_id], asyncio.Event()
    pressed = await world.press(officer.radio)
    async with await world.watch(pressed.emergency_id, camera_id) as viewer:
        await _gets(viewer, 5)
        cut = asyncio.create_task(camera.cut_media(back))
        interrupted = await world.session(pressed.emergency_id, INTERRUPTED)
        assert not viewer.over.is_set()
        back.set()
        await cut
        await _gets(viewer, 5, kind="delta")
        resumed = await world.session(pressed.emergency_id, LIVE)
        assert resumed.session_id == interrupted.session_id
        (gap,) = resumed.gaps
        since, until_ = getattr(gap, "from").ToMilliseconds(), gap.until.ToMilliseconds()
        assert until_ - since >= 15_000
        # The new segment has a chain of its own; a slow viewer may have skipped to a keyframe besides.
        assert [viewer.pieces[at].kind for at in viewer.breaks if viewer.pieces[at].kind != "key"] == ["init"]

    def late() -> Path:
        return _folder(stack, resumed) / "0002-late.jsonl"

    async def uploaded() -> bool:
        return late().exists() and verify_file(late()).end == "CAMERA_STOPPED"

    await until(uploaded, "what was missed")
    files = {file.stem: file for file in _folder(stack, resumed).glob("*.jsonl")}
    assert set(files) == {"0000-pre", "0001-live", "0002-late", "0002-live"}
    assert verify_file(files["0001-live"]).end == "CONNECTION_LOST"
    assert all(verify_file(file).finding is None for file in files.values())
    # What was missed begins before the last that came live, and ends where the next live segment goes on: nothing is lost.
    captured = {name: [entry["captured_ms"] for entry in _entries(file)[1:]] for name, file in files.items()}
    assert captured["0002-late"][0] <= captured["0001-live"][-1]
    assert captured["0002-late"][-1] >= captured["0002-live"][0]


async def _watch(desk: Desk, emergency_id: str, camera_id: str) -> pb.WatchCameraResponse:
    request = pb.WatchCameraRequest(emergency_id=emergency_id, camera_id=camera_id)
    answer: pb.WatchCameraResponse = await desk.call(desk.sessions.WatchCamera, request)
    return answer


async def test_who_may_not_watch_gets_no_grant(world: World, someone: Someone) -> None:
    officer, other = await world.duty(someone()), await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    given = await world.grant(pressed.emergency_id, camera_id)
    for user, reason in (("officer", "CALLER_NOT_ALLOWED"), ("auditor", "CALLER_NOT_ALLOWED"), ("partner", "NOT_FOUND")):
        async with Desk(world.stack, user) as desk:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await _watch(desk, pressed.emergency_id, camera_id)
            assert reason_of(refused.value) == reason, user
    # A camera that the emergency does not name.
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _watch(world.supervisor, pressed.emergency_id, other.camera_ids[0])
    assert reason_of(refused.value) == "NOT_FOUND"
    # Somebody else's grant.
    async with Desk(world.stack, "partner") as partner, Desk(world.stack, "analyst") as analyst:
        for desk, call, message, reason in (
            (partner, partner.sessions.RevokeGrant, pb.RevokeGrantRequest(grant_id=given.grant.grant_id), "NOT_FOUND"),
            (partner, partner.sessions.ExtendGrant, pb.ExtendGrantRequest(grant_id=given.grant.grant_id), "NOT_FOUND"),
            (analyst, analyst.sessions.ExtendGrant, pb.ExtendGrantRequest(grant_id=given.grant.grant_id), "CALLER_NOT_ALLOWED"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await desk.call(call, message)
            assert reason_of(refused.value) == reason
    prolonged = await world.supervisor.call(world.supervisor.sessions.ExtendGrant, pb.ExtendGrantRequest(grant_id=given.grant.grant_id))
    assert prolonged.grant.expires_at.ToNanoseconds() > given.grant.expires_at.ToNanoseconds()


@pytest.mark.parametrize("trick", ["used", "forged", "another relay's", "taken back"])
async def test_a_token_works_once_and_for_what_it_was_given(world: World, someone: Someone, trick: str) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    pressed = await world.press(officer.radio)
    given = await world.grant(pressed.emergency_id, camera_id)
    url, token = given.view_url, given.token
    expected = REVOKED
    if trick == "used":
        async with Viewer(url, token) as viewer:
            await _gets(viewer)
    elif trick == "forged":
        token = token[:-4] + "AAAA"
    elif trick == "another relay's":
        url = next(f"ws://{viewers}" for _, viewers in world.stack.relays.values() if f"ws://{viewers}" != url)
        expected = 4404
    else:
        await world.supervisor.call(world.supervisor.sessions.RevokeGrant, pb.RevokeGrantRequest(grant_id=given.grant.grant_id))
    async with Viewer(url, token) as viewer:
        await asyncio.wait_for(viewer.over.wait(), 30)
    assert (viewer.close_code, viewer.pieces) == (expected, [])


async def test_only_the_sessions_own_camera_sends_and_only_with_its_token(world: World, someone: Someone) -> None:
    officer, thief = await world.duty(someone()), await world.duty(someone())
    camera, other = world.cameras[officer.camera_ids[0]], world.cameras[thief.camera_ids[0]]
    pressed = await world.press(officer.radio)
    session = await world.session(pressed.emergency_id, LIVE)
    assert camera.orders is not None
    (order,) = camera.orders.publish

    async def post(sender: Camera, token: str, session_id: str = session.session_id) -> tuple[int, str]:
        tls = ssl.create_default_context(cafile=str(sender.rpc.ca_file))
        tls.load_cert_chain(sender.rpc.cert_file, sender.rpc.key_file)
        url = f"{order.url}/v1/sessions/{session_id}/segments/0099-live"
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession() as client, client.post(url, data=b"", headers=headers, ssl=tls) as answer:
            return answer.status, (await answer.json())["reason"]

    assert await post(other, order.token) == (403, "CALLER_NOT_ALLOWED")
    assert await post(camera, order.token[:-3] + "AAA") == (403, "CALLER_NOT_ALLOWED")
    assert await post(camera, order.token, "01a1ffd2-2e94-72ac-84c2-06579057fd9a") == (403, "CALLER_NOT_ALLOWED")
    stranger = replace(camera, rpc=world.stack.ca.rpc("partner-pd", "camera", camera.camera_id))
    assert await post(stranger, order.token) == (403, "CALLER_NOT_ALLOWED")
    gateway = replace(camera, rpc=world.stack.ca.rpc(AGENCY, "gateway", "gw-1"))
    assert await post(gateway, order.token) == (403, "CALLER_NOT_ALLOWED")


async def test_a_camera_streams_once_for_two_emergencies_and_ends_with_another_holder(world: World, someone: Someone) -> None:
    officer = await world.duty(someone())
    (camera_id,) = officer.camera_ids
    first = await world.press(officer.radio)
    session = await world.session(first.emergency_id, LIVE)
    await world.clear(first.emergency_id)
    second = await world.press(officer.radio)
    assert second.emergency_id != first.emergency_id
    async with await world.watch(second.emergency_id, camera_id) as viewer:
        await _gets(viewer)
        assert (await world.session(second.emergency_id, LIVE)).session_id == session.session_id
        # The camera changes hands while it streams: nobody may see the next wearer because of this emergency.
        await world.end_shift(officer)
        await world.cameras[camera_id].power_off()
        successor = replace(someone(), camera_ids=(camera_id,))
        await world.duty(successor)
        await asyncio.wait_for(viewer.over.wait(), 30)
        assert viewer.close_code == REVOKED
    third = await world.press(successor.radio)
    fresh = await world.session(third.emergency_id, LIVE)
    assert (fresh.officer_id, fresh.camera_id) == (successor.officer_id, camera_id)
    old = next(each for each in await world.sessions(second.emergency_id) if each.session_id == session.session_id)
    assert old.end_cause == SessionEndCause.SESSION_END_CAUSE_HOLDER_CHANGED


async def test_the_earlier_officers_picture_stays_until_he_or_she_is_not_involved(world: World, someone: Someone) -> None:
    """A5: who pressed may need help still, whoever else is bound; only a supervisor's word ends the view, and nothing the recording."""
    officer, bound = await world.duty(someone()), await world.duty(someone())
    (camera_id,) = officer.camera_ids
    desk, pressed = world.supervisor, await world.press(officer.radio)
    await world.states(pressed.emergency_id)
    async with await world.watch(pressed.emergency_id, camera_id) as viewer:
        await _gets(viewer)
        bind = emergency_pb.BindSubjectRequest(emergency_id=pressed.emergency_id, officer_id=bound.officer_id, note="her voice")
        async with Desk(world.stack, "analyst") as analyst:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await analyst.call(analyst.emergency.BindSubject, bind)
            assert reason_of(refused.value) == "SUBJECT_SETTLED"
        await desk.call(desk.emergency.BindSubject, bind)
        async with await world.watch(pressed.emergency_id, bound.camera_ids[0]) as other:
            await _gets(other)
        # Both are seen: the one who watched watches on, and whoever asks now gets a grant.
        seen = len(viewer.pieces)
        await until(lambda: _async(len(viewer.pieces) > seen), "more of the first picture")
        unused = await world.grant(pressed.emergency_id, camera_id)

        mark = emergency_pb.MarkNotInvolvedRequest(emergency_id=pressed.emergency_id, officer_id=officer.officer_id, note="sat in the car")
        await desk.call(desk.emergency.MarkNotInvolved, mark)

        await asyncio.wait_for(viewer.over.wait(), 30)
        assert viewer.close_code == REVOKED
    async with Viewer(unused.view_url, unused.token) as late:
        await asyncio.wait_for(late.over.wait(), 30)
    assert (late.close_code, late.pieces) == (REVOKED, [])
    with pytest.raises(grpc.aio.AioRpcError) as nothing:
        await desk.call(desk.sessions.WatchCamera, pb.WatchCameraRequest(emergency_id=pressed.emergency_id, camera_id=camera_id))
    assert nothing.value.code() == grpc.StatusCode.NOT_FOUND
    assert world.cameras[camera_id].recording
    async with await world.watch(pressed.emergency_id, bound.camera_ids[0]) as viewer:
        await _gets(viewer)


async def _async(value: bool) -> bool:
    return value


async def test_nothing_is_asked_of_a_camera_whose_emergency_was_cleared_before_it_came(world: World, someone: Someone) -> None:
    officer = someone()
    await world.enrol([officer])
    await world.begin_shift(officer)
    pressed = await world.press(officer.radio)
    await world.session(pressed.emergency_id, SessionState.SESSION_STATE_GRANTED)
    await world.clear(pressed.emergency_id)
    session = await world.session(pressed.emergency_id, ENDED)
    assert session.end_cause == SessionEndCause.SESSION_END_CAUSE_EMERGENCY_CLEARED
    await world.link(officer)
    camera = world.cameras[officer.camera_ids[0]]
    assert camera.orders is not None
    assert not camera.orders.publish
    assert not camera.recording
