"""Streams come in, are kept as they came, and are shown; what is bad or breaks hurts nobody else."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from chassis.clock import SystemClock
from chassis.errors import AlreadyExists, InvalidRequest, NotFound, Unavailable
from chassis.identity import Machine
from media.chain import End, Entry, Name, link
from media.files import FileSegment, FileShelf, StorageFull
from media.fmp4 import Fragment, Init
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from testkit.footage import Feed, fragment, from_ffmpeg, init, stream

from services.relay import service as relay
from services.relay.model import Frame
from services.relay.service import Admission, Deleted, Deletion, Fate, Grant, RelayService, Replaced, Served, Told, Watch
from tools import world

WITHIN_S = 30.0
NOTHING = Told((), ())


class Heads:
    def __init__(self) -> None:
        self.of: dict[str, dict[int, str]] = {}
        self.served: list[Served] = []

    def announce_served(self, served: Served) -> None:
        self.served.append(served)

    def announce_head(self, name: Name, entry: Entry, captured_from_ms: int | None) -> None:
        self.of.setdefault(name.segment_id, {})[entry.n] = entry.chain


class Open:
    """Lets everybody in; a token is the session's id. Keeps what was served."""

    def __init__(self) -> None:
        self.told: list[Served] = []
        self._grants = count(1)

    async def admit(self, camera: Machine, session_id: str, token: str) -> Admission:
        return Admission(session_id)

    async def redeem(self, token: str) -> Grant:
        return Grant(f"grant-{next(self._grants)}", token)

    def served(self, served: Served) -> None:
        self.told.append(served)

    def news(self) -> None:
        pass


@pytest.fixture
def shelf(tmp_path: Path) -> FileShelf:
    return FileShelf(tmp_path)


@pytest.fixture
def heads() -> Heads:
    return Heads()


@pytest.fixture
def authority() -> Open:
    return Open()


@pytest.fixture
def service(shelf: FileShelf, authority: Open, heads: Heads) -> RelayService:
    return RelayService(shelf, authority, heads, SystemClock())


async def until(condition: Callable[[], object]) -> None:
    async def holds() -> bool:
        return bool(condition())

    await world.until(holds, "what the test waits for")


def sending(service: RelayService, name: Name, camera: Feed, *, live: bool = True) -> "asyncio.Task[End]":
    return asyncio.create_task(service.take(name, aiter(camera), live=live))


def _has(service: RelayService, pieces: int) -> bool:
    return "s1" in service._live and len(list(service._live["s1"].group.frames())) == pieces


async def frames(service: RelayService, watch: Watch, wanted: int) -> list[Frame]:
    found: list[Frame] = []
    async with asyncio.timeout(WITHIN_S):
        while len(found) < wanted:
            await watch.wake.wait()
            watch.wake.clear()
            while (frame := service.next_message(watch)) is not None:
                found.append(frame)
                watch.viewer.acknowledge(watch.viewer.sent)
    return found


async def test_what_is_watched_is_what_is_kept(service: RelayService, shelf: FileShelf, heads: Heads) -> None:
    data, name, camera = from_ffmpeg(), Name("s1", "0001-live"), Feed()
    taking = sending(service, name, camera)
    camera.send(data[:5000])
    await until(lambda: "s1" in service._live and list(service._live["s1"].group.frames()))
    async with service.watching("s1") as watch:
        for start in range(5000, len(data), 3000):
            camera.send(data[start : start + 3000])
        camera.stop()
        seen = await frames(service, watch, 21)
    end = await taking
    assert (end.end, end.pieces) == ("CAMERA_STOPPED", 21)
    shown = b"".join(frame.data for frame in seen)
    assert data.startswith(shown)
    assert data[len(shown) :][4:8] == b"mfra"  # ffmpeg's table of contents at the very end is no picture
    chain = name.genesis
    for frame in seen:
        assert frame.previous == chain
        chain = link(chain, frame.data)
    verdict = shelf.verify(name)
    assert (verdict.finding, verdict.chain, verdict.end) == (None, chain.hex(), "CAMERA_STOPPED")


async def test_a_piece_that_is_kept_after_its_camera_has_gone_is_told_too(
    service: RelayService, shelf: FileShelf, heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is cancelled when its connection is lost; what a thread writes in that moment is kept all the same."""
    append, writing, go_on = FileSegment._append, threading.Event(), threading.Event()

    def slow(segment: FileSegment, piece: Init | Fragment, received_at: datetime) -> Entry:
        if isinstance(piece, Fragment):
            writing.set()
            go_on.wait(WITHIN_S)
        return append(segment, piece, received_at)

    monkeypatch.setattr(FileSegment, "_append", slow)
    camera, name = Feed(), Name("s1", "0001-live")
    taking = sending(service, name, camera)
    camera.send(init())
    camera.send(fragment(0, key=True))
    await until(writing.is_set)
    taking.cancel()
    asyncio.get_running_loop().call_soon(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await taking
    await until(lambda: not service._ingests)
    verdict = shelf.verify(name)
    assert (verdict.pieces, verdict.end, heads.of[name.segment_id][1]) == (2, "CONNECTION_LOST", verdict.chain)


async def test_a_late_viewer_begins_at_the_last_keyframe_and_each_gets_all_of_the_rest(service: RelayService) -> None:
    camera = Feed()
    taking = sending(service, Name("s1", "0001-live"), camera)
    data = [init(), *(fragment(n, key=n % 10 == 0) for n in range(15))]
    for piece in data:
        camera.send(piece)
    await until(lambda: "s1" in service._live and len(list(service._live["s1"].group.frames())) == 1 + 5)
    async with service.watching("s1") as one, service.watching("s1") as two:
        assert [frame.n for frame in await frames(service, one, 6)] == [0, 11, 12, 13, 14, 15]
        camera.send(fragment(15, key=False))
        assert [frame.n for frame in await frames(service, one, 1)] == [16]
        assert [frame.n for frame in await frames(service, two, 7)] == [0, 11, 12, 13, 14, 15, 16]
    camera.stop()
    await taking


async def test_who_comes_before_the_camera_sees_its_first_frame(service: RelayService) -> None:
    async with service.watching("s1") as watch:
        assert service.next_message(watch) is None
        camera = Feed(init(), fragment(0, key=True))
        taking = sending(service, Name("s1", "0001-live"), camera)
        assert [frame.kind for frame in await frames(service, watch, 2)] == ["init", "key"]
        camera.stop()
        await taking


async def test_the_world_is_told_what_is_given_out_while_it_is_and_at_the_end(service: RelayService, heads: Heads, authority: Open) -> None:
    async with service.watching("s1") as watch:
        await service.account()
        assert heads.served == []
        camera = Feed(init(), fragment(0, key=True))
        taking = sending(service, Name("s1", "0001-live"), camera)
        await frames(service, watch, 2)
        await service.account()
        await service.account()  # nothing has left since
        [running] = heads.served
        assert (running.bytes, running.last_byte_at, running.ended_at) == (watch.viewer.sent, watch.last_byte_at, None)
        camera.stop()
        await taking
    assert heads.served[1:] == authority.told
    assert authority.told[0].ended_at


async def test_a_grant_that_ends_while_its_viewer_is_on_the_way_shows_nothing(service: RelayService, authority: Open) -> None:
    camera = Feed(init(), fragment(0, key=True))
    taking = sending(service, Name("s1", "0001-live"), camera)
    await until(lambda: "s1" in service._live and len(list(service._live["s1"].group.frames())) == 2)
    assert not service.revoke("grant-1", "EMERGENCY_CLEARED")
    async with service.watching("s1") as watch:
        assert watch.over.is_set()
        assert service.next_message(watch) is None
    assert (authority.told[0].bytes, authority.told[0].cause) == (0, "EMERGENCY_CLEARED")
    camera.stop()
    await taking


async def test_what_sessions_do_is_told_until_it_is_known(service: RelayService) -> None:
    camera = Feed(init(), fragment(0, key=True))
    taking = sending(service, Name("s1", "0001-live"), camera)
    await until(lambda: bool(service.heard()))
    (live,) = service.heard()
    assert (live.session_id, live.stopped) == ("s1", False)
    camera.stop()
    await taking
    async with service.watching("s1") as watch:
        (stopped,) = service.heard()
        assert stopped.stopped
        service.told([stopped], NOTHING)
        assert watch.ended == "SESSION_ENDED"
    assert service.heard() == []


async def test_a_camera_that_sends_on_for_a_session_that_is_over_is_cut_off(service: RelayService, shelf: FileShelf) -> None:
    camera, other, late = Feed(init(), fragment(0, key=True)), Feed(init(), fragment(0, key=True)), Feed(init())
    taking, staying = sending(service, Name("s1", "0001-live"), camera), sending(service, Name("s2", "0001-live"), other)
    uploading = sending(service, Name("s1", "0000-pre"), late, live=False)
    await until(lambda: len(service.heard()) == 2)
    service.told(service.heard(), Told({"s1"}, ()))
    with pytest.raises(Replaced):
        await taking
    assert shelf.verify(Name("s1", "0001-live")).end == "SESSION_MOVED"
    for feed in (other, late):
        feed.stop()
    await staying
    assert (await uploading).end == "CAMERA_STOPPED"  # what came before still counts
    assert shelf.verify(Name("s2", "0001-live")).end == "CAMERA_STOPPED"


async def test_viewers_are_told_once_of_a_microphone_that_is_off(service: RelayService) -> None:
    camera = Feed(init(), fragment(0, key=True))
    taking = sending(service, Name("s1", "0001-live"), camera)
    await until(lambda: bool(service.heard()))
    async with service.watching("s1") as watch:
        assert service.news_for(watch) is None
        watch.wake.clear()
        for muted in ({"s1"}, set[str]()):
            service.told(service.heard(), Told((), muted))
            assert watch.wake.is_set()
            assert service.news_for(watch) == bool(muted)
            assert service.news_for(watch) is None
    camera.stop()
    await taking


async def test_one_session_cannot_take_all_there_is(service: RelayService) -> None:
    cameras = [Feed(init()) for _ in range(relay._SEGMENTS_AT_ONCE)]
    taking = [sending(service, Name("s1", f"{n:04}-late"), camera, live=False) for n, camera in enumerate(cameras)]
    await until(lambda: len(service._ingests) == len(cameras))
    with pytest.raises(Unavailable, match="too many segments"):
        await sending(service, Name("s1", "0099-late"), Feed(), live=False)
    for camera in cameras:
        camera.stop()
    assert {end.end for end in await asyncio.gather(*taking)} == {"CAMERA_STOPPED"}


async def test_a_relay_with_little_room_left_says_so(tmp_path: Path, authority: Open, heads: Heads) -> None:
    for reserve, is_full in ((1, False), (2**60, True)):
        service = RelayService(FileShelf(tmp_path), authority, heads, SystemClock(), reserve)
        await service.look_at_room()
        assert service.is_full is is_full


async def test_a_little_more_room_is_not_yet_room(shelf: FileShelf, authority: Open, heads: Heads, monkeypatch: pytest.MonkeyPatch) -> None:
    service = RelayService(shelf, authority, heads, SystemClock(), 100)
    seen = []
    for free in (120, 99, 101, 149, 150, 101):
        monkeypatch.setattr(shelf, "free", lambda free=free: free)
        await service.look_at_room()
        seen.append(service.is_full)
    assert seen == [False, True, True, True, False, False]


async def test_a_revoked_viewer_gets_no_byte_more_and_the_other_goes_on(service: RelayService, authority: Open) -> None:
    camera = Feed()
    taking = sending(service, Name("s1", "0001-live"), camera)
    camera.send(stream(3, random.Random(1)))
    await until(partial(_has, service, 4))
    async with service.watching("s1") as one, service.watching("s1") as two:
        await frames(service, one, 4)
        assert service.revoke(one.grant.grant_id, "EMERGENCY_CLEARED")
        assert not service.revoke("no such grant", "EMERGENCY_CLEARED")
        camera.send(fragment(3, key=False))
        assert [frame.n for frame in await frames(service, two, 5)] == [0, 1, 2, 3, 4]
        assert service.next_message(one) is None
        assert one.over.is_set()
        sent = one.viewer.sent, two.viewer.sent
    camera.stop()
    await taking
    assert [(told.cause, told.bytes) for told in authority.told] == [("VIEWER_LEFT", sent[1]), ("EMERGENCY_CLEARED", sent[0])]


async def test_the_newest_connection_of_a_session_wins_and_viewers_stay(service: RelayService, shelf: FileShelf) -> None:
    old, new = Feed(), Feed()
    first = sending(service, Name("s1", "0001-live"), old)
    old.send(stream(5, random.Random(1)))
    await until(lambda: "s1" in service._live and service._live["s1"].group._pieces)
    async with service.watching("s1") as watch:
        await frames(service, watch, 6)
        second = sending(service, Name("s1", "0002-live"), new)
        with pytest.raises(Replaced):
            await first
        new.send(stream(3, random.Random(2)))
        assert [frame.kind for frame in await frames(service, watch, 4)] == ["init", "key", "delta", "delta"]
        new.stop()
        assert (await second).end == "CAMERA_STOPPED"
    assert [shelf.verify(name).end for name in shelf.segments("s1")] == ["REPLACED", "CAMERA_STOPPED"]


async def test_a_segment_is_taken_once(service: RelayService, shelf: FileShelf) -> None:
    for expected in (contextlib.nullcontext(), pytest.raises(AlreadyExists)):
        camera = Feed()
        camera.send(stream(3, random.Random(1)))
        camera.stop()
        with expected:
            await sending(service, Name("s1", "0001-live"), camera)
    assert shelf.verify(Name("s1", "0001-live")).finding is None


async def test_a_late_segment_is_kept_and_not_shown(service: RelayService, shelf: FileShelf) -> None:
    camera = Feed()
    camera.send(stream(3, random.Random(1)))
    camera.stop()
    await sending(service, Name("s1", "0000-pre"), camera, live=False)
    async with service.watching("s1") as watch:
        assert service.next_message(watch) is None
    assert shelf.verify(Name("s1", "0000-pre")).pieces == 4


async def test_bad_media_ends_its_own_stream_with_a_reason_and_no_other(service: RelayService, shelf: FileShelf) -> None:
    good, bad = Feed(), Feed()
    healthy = sending(service, Name("good", "0001-live"), good)
    broken = sending(service, Name("bad", "0001-live"), bad)
    good.send(stream(3, random.Random(1)))
    bad.send(stream(3, random.Random(2)) + b"\x40\x00\x00\x00mdat")
    with pytest.raises(InvalidRequest) as refused:
        await broken
    assert refused.value.metadata == {"fault": "NOT_MP4"}
    verdict = shelf.verify(Name("bad", "0001-live"))
    assert (verdict.finding, verdict.pieces, verdict.end) == (None, 4, "NOT_MP4")
    good.stop()
    assert (await healthy).end == "CAMERA_STOPPED"


async def test_a_camera_that_falls_silent_is_let_go(service: RelayService, shelf: FileShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "IDLE_S", 0.05)
    camera = Feed()
    camera.send(stream(3, random.Random(1)))
    with pytest.raises(TimeoutError):
        await sending(service, Name("s1", "0001-live"), camera)
    assert shelf.verify(Name("s1", "0001-live")).end == "CONNECTION_LOST"


async def test_a_connection_that_breaks_keeps_all_that_was_whole(service: RelayService, shelf: FileShelf) -> None:
    camera = Feed()
    taking = sending(service, Name("s1", "0001-live"), camera)
    camera.send(stream(3, random.Random(1)) + fragment(3, key=False)[:50])
    await until(lambda: "s1" in service._live and len(service._live["s1"].group._pieces) == 3)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await until(lambda: not service._ingests)
    verdict = shelf.verify(Name("s1", "0001-live"))
    assert (verdict.finding, verdict.pieces, verdict.end) == (None, 4, "CONNECTION_LOST")


async def test_a_full_disk_ends_the_recording_and_says_so(service: RelayService, shelf: FileShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    append = FileSegment.append

    def fails(segment: FileSegment, piece: Init | Fragment, at: datetime) -> Entry:
        if segment._entries == 3:
            raise StorageFull("no space left")
        return append(segment, piece, at)

    monkeypatch.setattr(FileSegment, "append", fails)
    camera = Feed()
    camera.send(stream(9, random.Random(1)))
    with pytest.raises(Unavailable, match="no room"):
        await sending(service, Name("s1", "0001-live"), camera)
    verdict = shelf.verify(Name("s1", "0001-live"))
    assert (verdict.finding, verdict.pieces, verdict.end) == (None, 3, "STORAGE_FULL")


async def test_published_heads_are_of_the_chain_and_only_of_what_is_on_the_disk(
    service: RelayService, shelf: FileShelf, heads: Heads
) -> None:
    camera, name = Feed(), Name("s1", "0001-live")
    taking = sending(service, name, camera)
    data = [init(), *(fragment(n, key=n == 0) for n in range(30))]
    for end in (9, 19, 29):
        for piece in data[end - 9 : end + 1]:
            camera.send(piece)
        await until(partial(_has, service, end + 1))
        await service.sync()
    camera.send(data[30])
    camera.stop()
    await taking
    await service.sync()
    assert set(heads.of["0001-live"]) >= {9, 19, 29}
    assert shelf.verify(name, heads.of["0001-live"]).finding is None


async def test_a_crash_leaves_segments_that_verify(shelf: FileShelf, service: RelayService, heads: Heads) -> None:
    segment = shelf.begin(Name("s1", "0001-live"))
    segment.append(Init(b"start", "avc1.42c01f", 1, 1, 1, False, 1, 0), datetime.now(UTC))
    await service.recover()
    verdict = shelf.verify(Name("s1", "0001-live"))
    assert (verdict.finding, verdict.end, verdict.pieces) == (None, "RELAY_LOST", 1)
    assert heads.of == {"0001-live": {0: verdict.chain}}


class Keep:
    """Wants deleted what it is told; keeps what was confirmed, or is away then."""

    def __init__(self, *wanted: Deletion) -> None:
        self.wanted = wanted
        self.asked: list[str] = []
        self.confirmed: list[tuple[str, Sequence[Deleted]]] = []
        self.away, self.refuses = False, ""

    async def deletions(self, recordings: Sequence[str]) -> Sequence[Deletion]:
        self.asked += recordings
        return [each for each in self.wanted if each.recording_id in recordings]

    async def confirm(self, recording_id: str, deleted: Sequence[Deleted]) -> None:
        if self.away:
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "away")
        if recording_id == self.refuses:
            raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such recording")
        self.confirmed.append((recording_id, deleted))


def _kept(shelf: FileShelf, name: Name) -> Entry:
    segment = shelf.begin(name)
    entry = segment.append(Init(str(name).encode(), "avc1.42c01f", 1, 1, 1, False, 1, 0), datetime.now(UTC))
    segment.close("CAMERA_STOPPED")
    return entry


async def test_what_shall_go_goes_and_its_chain_is_told_even_after_a_crash(shelf: FileShelf, service: RelayService) -> None:
    kept = {name: _kept(shelf, name) for name in (Name("s1", "0001-live"), Name("s1", "0002-late"), Name("s2", "0001-live"))}
    head = kept[Name("s1", "0001-live")]
    keeper = Keep(Deletion("s1", {"0001-live": (0, head.chain), "0009-live": (3, "ab" * 32)}))
    keeper.away = True
    with pytest.raises(Unavailable):
        await service.retire(keeper)
    assert shelf.segments("s1") == [Name("s1", "0001-live"), Name("s1", "0002-late")]  # their indexes wait until it is told
    keeper.away = False
    await service.retire(keeper)
    [(recording_id, deleted)] = keeper.confirmed
    assert keeper.asked == ["s1", "s2", "s1"] * 2  # and once more before it is done
    assert (recording_id, [(d.segment_id, d.fate, d.last) for d in deleted]) == (
        "s1",
        [("0001-live", Fate.DELETED, head), ("0002-late", Fate.DELETED, kept[Name("s1", "0002-late")]), ("0009-live", Fate.MISSING, None)],
    )
    assert shelf.recordings() == ["s2"]


async def test_one_that_cannot_be_deleted_does_not_keep_the_others(shelf: FileShelf, service: RelayService) -> None:
    for name in ("s1", "s2"):
        _kept(shelf, Name(name, "0001-live"))
    keeper = Keep(Deletion("s1", {}), Deletion("s2", {}))
    keeper.refuses = "s1"
    await service.retire(keeper)
    assert [recording_id for recording_id, _ in keeper.confirmed] == ["s2"]
    assert shelf.recordings() == ["s1"]


async def test_what_is_not_what_was_published_is_not_deleted(shelf: FileShelf, service: RelayService) -> None:
    """Nor anything else of the same recording."""
    names = [Name("s1", segment) for segment in ("0000-pre", "0001-live", "0002-late")]
    for name in names:
        _kept(shelf, name)
    keeper = Keep(Deletion("s1", {"0001-live": (0, "ab" * 32)}))
    await service.retire(keeper)
    [(_, [deleted])] = keeper.confirmed
    assert (deleted.segment_id, deleted.fate) == ("0001-live", Fate.DIFFERS)
    assert [shelf.verify(name).finding for name in names] == [None] * 3


async def test_an_order_that_was_taken_back_is_not_carried_out(shelf: FileShelf, service: RelayService) -> None:
    _kept(shelf, Name("s1", "0001-live"))
    keeper = Keep(Deletion("s1", {}))

    async def once(recordings: Sequence[str]) -> Sequence[Deletion]:
        wanted, keeper.wanted = keeper.wanted, ()
        return wanted

    keeper.deletions = once  # type: ignore[method-assign]
    await service.retire(keeper)
    assert keeper.confirmed == []
    assert shelf.verify(Name("s1", "0001-live")).finding is None


async def test_media_without_an_index_is_not_forgotten(tmp_path: Path, shelf: FileShelf, service: RelayService) -> None:
    _kept(shelf, Name("s1", "0001-live"))
    (tmp_path / "s1/0001-live.jsonl").unlink()
    await service.recover()
    keeper = Keep(Deletion("s1", {"0001-live": (0, "ab" * 32)}))
    await service.retire(keeper)
    [(_, [deleted])] = keeper.confirmed
    assert deleted.fate == Fate.DIFFERS
    assert (tmp_path / "s1/0001-live.mp4").exists()


async def test_what_still_comes_in_is_not_deleted(shelf: FileShelf, service: RelayService) -> None:
    camera, keeper = Feed(), Keep(Deletion("s1", {}))
    taking = sending(service, Name("s1", "0001-live"), camera)
    camera.send(init())
    await until(partial(_has, service, 1))
    await service.retire(keeper)
    assert keeper.confirmed == []
    camera.stop()
    await taking
    await service.retire(keeper)
    assert [recording_id for recording_id, _ in keeper.confirmed] == ["s1"]
    assert shelf.recordings() == []
