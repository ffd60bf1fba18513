"""The relay's use cases: what a camera sends is hashed and kept, and then shown; who may not see any more is cut off."""

import asyncio
import errno
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeVar

from chassis import telemetry
from chassis.clock import Clock
from chassis.errors import AlreadyExists, InvalidRequest, SightlineError, Unavailable
from chassis.identity import Machine
from chassis.recent import Recent
from media.chain import End, Entry, Name
from media.files import Segment, Shelf, StorageFull
from media.fmp4 import BadMedia, Fragment, Init, Splitter
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from services.relay.model import Frame, Group, Viewer

T = TypeVar("T")
# A camera that sends nothing for so long has gone, whatever its connection says.
IDLE_S = 10.0
# What a second holds at the most of pieces that a power cut may take.
SYNC_EVERY_S = 1.0
_DISK_THREADS = 8
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ASK_AT_ONCE = 500  # recordings in one question
_SEGMENTS_AT_ONCE = 6  # of one session: live, the one that it replaces, and late ones
# A pause of media that is worth telling at once when it ends; and for how long a silent session is still told of.
_SILENCE_S, _TELL_S = 1.0, 30.0


@dataclass(frozen=True)
class Admission:
    """A camera may send a session's media, which is kept as this recording."""

    recording_id: str


@dataclass(frozen=True)
class Grant:
    """One viewer may watch one session."""

    grant_id: str
    session_id: str


@dataclass(frozen=True)
class Served:
    """What a grant came to: bytes of messages, when the last one left (None: none did), when and why it ended (None: it has not)."""

    grant: Grant
    bytes: int
    skipped: int
    last_byte_at: datetime | None
    ended_at: datetime | None
    cause: str


@dataclass(frozen=True)
class Told:
    """What a relay has to know of its sessions: those that are over or elsewhere, those whose microphone is off."""

    over: Collection[str]
    muted: Collection[str]


@dataclass(frozen=True)
class Heard:
    """What a session does here: seconds since its last media, and whether its camera has ended the stream in order."""

    session_id: str
    media_age_s: float
    stopped: bool


class Authority(Protocol):
    """Who may send and who may watch; decided elsewhere. Forbidden or Unauthenticated if not, Unavailable without an answer."""

    async def admit(self, camera: Machine, session_id: str, token: str) -> Admission:
        """Whether a camera may send this session's media."""
        ...

    async def redeem(self, token: str) -> Grant:
        """What a viewer's token stands for; it works once."""
        ...

    def served(self, served: Served) -> None:
        """A grant has ended here. Never blocks."""
        ...

    def news(self) -> None:
        """A session has begun, resumed or stopped: tell it soon. Never blocks."""
        ...


class Announcer(Protocol):
    """Tells the world what was kept, and what was given out."""

    def announce_head(self, name: Name, entry: Entry, captured_from_ms: int | None) -> None:
        """A chain value of what survives a power cut, and when the segment's first picture was taken. Never blocks."""
        ...

    def announce_served(self, served: Served) -> None:
        """What a grant has come to so far. It does not go by way of whoever gave the grant. Never blocks."""
        ...


@dataclass(frozen=True)
class Deletion:
    """A recording shall be deleted; `heads` are (piece, chain) by segment, as they were published; an empty chain is not compared."""

    recording_id: str
    heads: Mapping[str, tuple[int, str]]


class Fate(StrEnum):
    """What became of a segment that shall be deleted."""

    DELETED = "DELETED"
    MISSING = "MISSING"
    DIFFERS = "DIFFERS"


@dataclass(frozen=True)
class Deleted:
    """A segment that shall be deleted, with the last piece that its index has."""

    segment_id: str
    fate: Fate
    last: Entry | None
    at: datetime


class Keeper(Protocol):
    """Decides how long recordings are kept. Unavailable without an answer."""

    async def deletions(self, recordings: Sequence[str]) -> Sequence[Deletion]:
        """What shall be deleted of what is here, or should be."""
        ...

    async def confirm(self, recording_id: str, deleted: Sequence[Deleted]) -> None:
        """It has been, or why not."""
        ...


class Replaced(Exception):
    """No more of a segment is taken: a newer connection of the same session has taken over, or the session is over or elsewhere."""


@dataclass(eq=False)
class Watch:
    """One viewer of a session. `wake` is set when there may be something to send, `over` when it may not watch any more."""

    grant: Grant
    viewer: Viewer = field(default_factory=Viewer)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: str = ""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    last_byte_at: datetime | None = None
    told_muted: bool = False
    accounted: int = 0  # bytes that the world was told of

    def end(self, cause: str) -> None:
        """No byte more. The first cause counts."""
        self.ended = self.ended or cause
        self.over.set()


@dataclass(eq=False)
class Ingest:
    """A segment that is coming in."""

    name: Name
    segment: Segment
    chain: bytes
    synced: int = -1
    captured_from_ms: int | None = None
    # Why no more of it is taken; empty while it is.
    cut: str = ""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def cut_off(self, cause: str) -> None:
        """Take no more of it. The first cause counts."""
        self.cut = self.cut or cause
        self.stop.set()


@dataclass(eq=False)
class Live:
    """What is known here of a session that is shown."""

    group: Group = field(default_factory=Group)
    watches: set[Watch] = field(default_factory=set)
    ingest: Ingest | None = None
    last_media: float | None = None  # of the monotonic clock
    stopped: bool = False
    muted: bool = False


class RelayService:
    """Segments in, frames out."""

    def __init__(self, shelf: Shelf, authority: Authority, announcer: Announcer, clock: Clock, reserve_bytes: int = 0) -> None:
        """With less than `reserve_bytes` of free disk we are full: sessions go elsewhere while there is still room for their ends."""
        self._reserve_bytes, self.is_full = reserve_bytes, False
        self._not_kept: set[str] = set()
        self._coming: Counter[str] = Counter()  # segments that come in, by recording
        self._deleting: set[str] = set()
        self._shelf, self._authority, self._announcer, self._clock = shelf, authority, announcer, clock
        # The disk may hang; the event loop must not.
        self._disk = ThreadPoolExecutor(_DISK_THREADS, "disk")
        self._live: dict[str, Live] = {}
        self._ingests: set[Ingest] = set()
        self._watches: dict[str, Watch] = {}
        # A grant may end while its viewer is still on the way in.
        self._revoked: Recent[str, str] = Recent()

    async def recover(self) -> None:
        """After a start: give an end to what a dead process left without one, and publish what it may not have published."""
        for name, last in await self._on_disk(self._shelf.recover):
            telemetry.log().warning("ended after a crash", segment=str(name), pieces=last.n + 1 if last else 0)
            if last is not None:
                self._announcer.announce_head(name, last, None)

    # --- out of time ---------------------------------------------------------------------------------------------

    async def retire(self, keeper: Keeper) -> None:
        """Delete what the keeper wants deleted. It is asked about all that is here, so nothing is kept that nobody knows of."""
        there = await self._on_disk(self._shelf.recordings)
        for some in [there[at : at + _ASK_AT_ONCE] for at in range(0, len(there), _ASK_AT_ONCE)] or [[]]:
            for deletion in await keeper.deletions(some):
                try:
                    await self._delete(deletion, keeper)
                except Unavailable:
                    raise
                except (SightlineError, OSError, ValueError) as error:  # the others go on
                    telemetry.log().error("cannot be deleted", recording=deletion.recording_id, error=str(error))

    async def _delete(self, deletion: Deletion, keeper: Keeper) -> None:
        """The media first, then the word of it, then the index: whatever dies in between, the chain of what was deleted is told."""
        recording_id = deletion.recording_id
        if self._coming[recording_id]:
            telemetry.log().error("a recording that shall be deleted is still coming in", recording=recording_id)
            return
        # Asked again for this one: the order may have been taken back while others were deleted.
        if recording_id not in {each.recording_id for each in await keeper.deletions([recording_id])} or self._coming[recording_id]:
            return
        self._deleting.add(recording_id)
        try:
            deleted = await self._on_disk(self._delete_segments, deletion)
            telemetry.log().info("deleted", recording=recording_id, segments=[f"{d.segment_id} {d.fate}" for d in deleted])
            await keeper.confirm(recording_id, deleted)
            if not any(each.fate == Fate.DIFFERS for each in deleted):
                await self._on_disk(self._shelf.forget, recording_id)
        finally:
            self._deleting.discard(recording_id)

    def _delete_segments(self, deletion: Deletion) -> list[Deleted]:
        """All of them; or none, if one is not what was published."""
        there, now = {name.segment_id: name for name in self._shelf.segments(deletion.recording_id)}, self._clock.now()
        differ = [s for s, head in deletion.heads.items() if s in there and head[1] and not self._shelf.had(there[s], *head)]
        if differ:
            return [Deleted(segment_id, Fate.DIFFERS, None, now) for segment_id in sorted(differ)]
        gone = [Deleted(segment_id, Fate.MISSING, None, now) for segment_id in deletion.heads.keys() - there]
        gone += [Deleted(name.segment_id, Fate.DELETED, self._shelf.delete_media(name), now) for name in there.values()]
        return sorted(gone, key=lambda each: each.segment_id)

    # --- in ------------------------------------------------------------------------------------------------------

    async def take(self, name: Name, chunks: AsyncIterator[bytes], *, live: bool) -> End:
        """Keep a segment as it comes, and show it if it is live; returns its end.

        AlreadyExists if there is such a segment. InvalidRequest names what is wrong with the media, Unavailable a full disk;
        what came before is kept.
        """
        # Late segments must not keep the live one out, of which there is never more than one.
        if name.recording_id in self._deleting or (not live and self._coming[name.recording_id] >= _SEGMENTS_AT_ONCE):
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "too many segments of this session come in, or it is being deleted")
        self._coming[name.recording_id] += 1
        try:
            return await self._take(name, chunks, live=live)
        finally:
            self._coming[name.recording_id] -= 1
            self._coming += Counter()  # forgets what is at zero

    async def _take(self, name: Name, chunks: AsyncIterator[bytes], *, live: bool) -> End:
        ingest = await self._begin(name)
        session = self._live.setdefault(name.recording_id, Live()) if live else None
        try:
            if session:
                await self._replace(session, ingest)
            cause = await self._read(ingest, chunks, session)
        except BadMedia as error:
            cause = error.fault.value
            raise InvalidRequest(Reason.ERROR_REASON_BAD_MEDIA, str(error), metadata={"fault": cause}) from error
        except StorageFull as error:
            cause = "STORAGE_FULL"
            self._alarm(name)
            telemetry.log().error("no room for media: a recording ends", segment=str(name), error=str(error))
            raise Unavailable(Reason.ERROR_REASON_STORAGE_FULL, "there is no room for more") from error
        except Replaced:
            cause = ingest.cut
            raise
        except BaseException:
            cause = "CONNECTION_LOST"
            raise
        finally:
            end = await asyncio.shield(self._end(ingest, cause, session))
        return end

    async def _begin(self, name: Name) -> Ingest:
        try:
            segment = await self._on_disk(self._shelf.begin, name)
        except FileExistsError as error:
            raise AlreadyExists(Reason.ERROR_REASON_ALREADY_EXISTS, f"there is a segment {name}; name the next one") from error
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, f"no segment can be begun: {error.strerror}") from error
            self._alarm(name)
            raise Unavailable(Reason.ERROR_REASON_STORAGE_FULL, "no segment can be begun") from error
        ingest = Ingest(name, segment, name.genesis)
        self._ingests.add(ingest)
        return ingest

    async def _replace(self, session: Live, ingest: Ingest) -> None:
        """The newest connection of a session wins; the older one may be half open and not know that it is dead."""
        older, session.ingest = session.ingest, ingest
        if older is not None:
            older.cut_off("REPLACED")
            await older.closed.wait()

    def _alarm(self, name: Name) -> None:
        """There was no room: told at once, and again at every attempt."""
        self._not_kept.add(name.recording_id)
        self._authority.news()

    async def _read(self, ingest: Ingest, chunks: AsyncIterator[bytes], session: Live | None) -> str:
        splitter = Splitter()
        stop = asyncio.create_task(ingest.stop.wait())
        try:
            while (chunk := await self._next(chunks, stop)) is not None:
                pieces, wrong = _pieces(splitter, chunk)
                if pieces:
                    self._show(session, await self._keep(ingest, pieces))
                if wrong:
                    raise wrong
        finally:
            stop.cancel()
        if ingest.cut:
            raise Replaced
        splitter.finish()
        return "CAMERA_STOPPED"

    async def _next(self, chunks: AsyncIterator[bytes], stop: "asyncio.Task[bool]") -> bytes | None:
        """The next bytes; None at the end, or when no more is taken. TimeoutError if none come."""
        reading = asyncio.ensure_future(anext(chunks, None))
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at, also if we are gone by then
        try:
            done, _ = await asyncio.wait({reading, stop}, timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise TimeoutError(f"no media for {IDLE_S:.0f} s")
            return None if stop.done() else reading.result()
        finally:
            if not reading.done():
                reading.cancel()

    async def _keep(self, ingest: Ingest, pieces: Sequence[Init | Fragment]) -> list[Frame]:
        """Write first: nothing is shown that is not kept."""
        now = self._clock.now()
        entries = await self._on_disk(lambda: [ingest.segment.append(piece, now) for piece in pieces])
        frames = []
        if ingest.captured_from_ms is None:
            ingest.captured_from_ms = next((entry.captured_ms for entry in entries if entry.captured_ms is not None), None)
        for piece, entry in zip(pieces, entries, strict=True):
            init = piece if isinstance(piece, Init) else None
            frames.append(Frame(entry.n, entry.kind, ingest.chain, entry.received_ms, piece.data, init))
            ingest.chain = bytes.fromhex(entry.chain)
        return frames

    def _show(self, session: Live | None, frames: Sequence[Frame]) -> None:
        if session is None:
            return
        now = time.monotonic()
        for frame in frames:
            session.group.add(frame)
            for watch in session.watches:
                watch.viewer.offer(frame, now)
        for watch in session.watches:
            watch.wake.set()
        is_news = session.last_media is None or now - session.last_media > _SILENCE_S
        session.last_media, session.stopped = now, False
        if is_news:
            with telemetry.span("relay first piece"):
                self._authority.news()

    async def _end(self, ingest: Ingest, cause: str, session: Live | None) -> End:
        try:
            end = await self._on_disk(ingest.segment.close, cause)
            last = ingest.segment.last  # what is on the disk counts, also if nobody waited for it any more
            if last is not None and last.n > ingest.synced:
                self._announcer.announce_head(ingest.name, last, ingest.captured_from_ms)
            return end
        except OSError as error:  # `recover` gives it an end
            telemetry.log().error("a segment got no end", segment=str(ingest.name), error=str(error))
            return End(cause, 0, 0, "")
        finally:
            self._ingests.discard(ingest)
            ingest.closed.set()
            if session is not None and session.ingest is ingest:
                session.ingest = None
                session.stopped = cause == "CAMERA_STOPPED"
                self._authority.news()

    async def sync(self) -> None:
        """Make what was kept survive a power cut, and then publish its chain values. Call it every second."""
        await asyncio.gather(*map(self._sync, list(self._ingests)))

    async def look_at_room(self) -> None:
        """Whether there is little room left; it must become half as much again before that is over."""
        free = await self._on_disk(self._shelf.free)
        if free < self._reserve_bytes and not self.is_full:
            telemetry.log().error("the disk is nearly full: new sessions go to other relays, if there are any", free_mib=free // 2**20)
            self.is_full = True
            self._authority.news()
        elif free >= 1.5 * self._reserve_bytes:
            self.is_full = False

    async def _sync(self, ingest: Ingest) -> None:
        try:
            entry = await self._on_disk(ingest.segment.sync)
        except (OSError, ValueError) as error:  # closed meanwhile, or a disk that fails: its reader finds out
            telemetry.log().warning("not synced", segment=str(ingest.name), error=str(error))
            return
        if entry is not None and entry.n > ingest.synced:
            ingest.synced = entry.n
            self._announcer.announce_head(ingest.name, entry, ingest.captured_from_ms)

    def heard(self) -> list[Heard]:
        """What the sessions do that had media lately, or stopped. Forgets those that have neither media nor viewers."""
        now = time.monotonic()
        found = []
        for session_id, session in list(self._live.items()):
            age = now - session.last_media if session.last_media is not None else None
            if age is not None and (session.stopped or age < _TELL_S):
                found.append(Heard(session_id, age, session.stopped))
            elif not session.watches and session.ingest is None:
                del self._live[session_id]
        return found

    def not_kept(self) -> set[str]:
        """Sessions whose media had no room, and of which that is not known yet."""
        return set(self._not_kept)

    def told_not_kept(self, sessions: Collection[str]) -> None:
        """It is known of these."""
        self._not_kept.difference_update(sessions)

    def told(self, heard: Sequence[Heard], told: Told) -> None:
        """What was heard is known now: forget sessions that stopped, and whoever still watches those is over.

        Cameras that go on sending for a session that is over, or elsewhere, are cut off; viewers learn of a microphone that is off.
        """
        for ingest in self._ingests:  # what is only late still counts
            if ingest.name.recording_id in told.over and ingest.name.segment_id.endswith("-live"):
                ingest.cut_off("SESSION_MOVED")
        for each in heard:
            if (live := self._live.get(each.session_id)) is not None and live.muted != (each.session_id in told.muted):
                live.muted = not live.muted
                for watch in live.watches:
                    watch.wake.set()
        for each in heard:
            session = self._live.get(each.session_id)
            if each.stopped and session is not None and session.stopped:
                for watch in session.watches:
                    watch.end("SESSION_ENDED")
                del self._live[each.session_id]

    # --- out -----------------------------------------------------------------------------------------------------

    async def admit(self, camera: Machine, session_id: str, token: str) -> Admission:
        """Whether a camera may send a session's media."""
        return await self._authority.admit(camera, session_id, token)

    @asynccontextmanager
    async def watching(self, token: str) -> AsyncIterator[Watch]:
        """Watch what a token is for, from the last keyframe on, or from the camera's first; what was served is told at the end."""
        grant = await self._authority.redeem(token)
        watch = Watch(grant)
        session = self._live.setdefault(grant.session_id, Live())
        now = time.monotonic()
        if cause := self._revoked.get(grant.grant_id):
            watch.end(cause)
        is_fresh = session.last_media is not None and now - session.last_media < _SILENCE_S
        for frame in session.group.frames():
            if is_fresh or frame.kind == "init":  # what was seen last before a silence is no beginning
                watch.viewer.offer(frame, now)
        watch.wake.set()
        session.watches.add(watch)
        self._watches[grant.grant_id] = watch
        try:
            yield watch
        finally:
            session.watches.discard(watch)
            self._watches.pop(grant.grant_id, None)
            served = self._served(watch, self._clock.now(), watch.ended or "VIEWER_LEFT")
            self._authority.served(served)
            self._announcer.announce_served(served)

    def _served(self, watch: Watch, ended_at: datetime | None = None, cause: str = "") -> Served:
        return Served(watch.grant, watch.viewer.sent, watch.viewer.skipped, watch.last_byte_at, ended_at, cause)

    async def account(self) -> None:
        """Tell the world what is being given out, and for which grants. Call it every some seconds."""
        for watch in self._watches.values():
            if watch.viewer.sent != watch.accounted:
                watch.accounted = watch.viewer.sent
                self._announcer.announce_served(self._served(watch))

    def next_message(self, watch: Watch) -> Frame | None:
        """What a viewer is sent now; None while there is nothing, or its window is full. Nothing after its end."""
        if watch.ended:
            return None
        frame = watch.viewer.next(time.monotonic())
        if frame is not None:
            watch.last_byte_at = self._clock.now()
        return frame

    def news_for(self, watch: Watch) -> bool | None:
        """Whether the microphone is off, if the viewer has not been told so; None if there is nothing to tell."""
        session = self._live.get(watch.grant.session_id)
        if watch.ended or session is None or session.muted == watch.told_muted:
            return None
        watch.told_muted = session.muted
        return session.muted

    def now_ms(self) -> int:
        """Our time, in milliseconds since 1970."""
        return int(self._clock.now().timestamp() * 1000)

    @property
    def grants(self) -> list[str]:
        """Ids of all grants that are served now."""
        return list(self._watches)

    def revoke(self, grant_id: str, cause: str) -> bool:
        """End a grant: no byte more from this moment. False if nobody watches with it here (yet)."""
        self._revoked.put(grant_id, cause)
        watch = self._watches.get(grant_id)
        if watch is not None:
            watch.end(cause)
        return watch is not None

    async def _on_disk(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)


def _pieces(splitter: Splitter, chunk: bytes) -> tuple[list[Init | Fragment], BadMedia | None]:
    """The whole pieces, and what is wrong behind them."""
    found: list[Init | Fragment] = []
    try:
        for piece in splitter.feed(chunk):
            found.append(piece)
    except BadMedia as error:
        return found, error
    return found, None
