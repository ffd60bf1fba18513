"""Cuts fragmented MP4 (CMAF, ISO/IEC 14496-12 and 23000-19) into an init segment and fragments, byte for byte. Pure.

Every byte of the stream belongs to exactly one piece, in order: what is hashed and kept is what came (but for `mfra`, a table of
contents that some writers put at the very end). Only what a camera needs is understood: one H.264 video track, perhaps audio
beside it, one `moof` and `mdat` a fragment.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

# A fragment is a frame or some; 8 MiB is a second at 64 Mbit/s.
MAX_FRAGMENT, MAX_INIT = 8 * 1024 * 1024, 64 * 1024
MAX_BOXES = 64  # of a piece; cameras make three to five
# A late viewer starts at a keyframe, so they must come.
KEYFRAME_WITHIN = timedelta(seconds=10)
_NON_SYNC = 0x10000
_NTP_EPOCH, _UNIX_EPOCH = datetime(1900, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)
_BEFORE_MOOF = frozenset({b"styp", b"prft", b"emsg", b"sidx", b"free", b"skip"})
_BEFORE_MOOV = frozenset({b"ftyp", b"free", b"skip"})


class Fault(StrEnum):
    """Why a stream is no usable video."""

    NOT_MP4 = "NOT_MP4"
    BOX_LENGTH = "BOX_LENGTH"
    BOX_TOO_LARGE = "BOX_TOO_LARGE"
    NO_VIDEO = "NO_VIDEO"
    WRONG_CODEC = "WRONG_CODEC"
    NO_KEYFRAME = "NO_KEYFRAME"
    TRUNCATED = "TRUNCATED"


class BadMedia(ValueError):
    """The stream cannot be used from here on; `fault` names the reason."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(f"{fault}: {text}")
        self.fault = fault


@dataclass(frozen=True)
class Init:
    """The start of a segment: what a decoder must know. `codec` is as in RFC 6381."""

    data: bytes
    codec: str
    width: int
    height: int
    timescale: int
    has_audio: bool
    video_track: int
    default_flags: int


@dataclass(frozen=True)
class Fragment:
    """One `moof` with its `mdat` and what came before it. `at` is the video's decode time since the start of the segment.

    `captured_at` is the camera's clock, if it tells (`prft`).
    """

    data: bytes
    is_keyframe: bool
    at: timedelta
    captured_at: datetime | None


class Splitter:
    """Give it bytes as they come; it gives pieces. Raises BadMedia, and is then of no more use."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._init: Init | None = None
        self._seen = 0  # bytes of `_waiting` that are whole boxes of the next piece
        self._boxes: list[tuple[bytes, int, int]] = []  # of the next piece: type, start, end
        self._has_moof = False
        self._ended = False
        self._last_keyframe: timedelta | None = None

    def feed(self, data: bytes) -> Iterator[Init | Fragment]:
        """The pieces that are whole with these bytes."""
        self._waiting += data
        while (end := self._next_box()) is not None:
            kind = bytes(self._waiting[self._seen + 4 : self._seen + 8])
            self._boxes.append((kind, self._seen, end))
            self._has_moof = self._has_moof or kind == b"moof"
            self._seen = end
            if kind == (b"moov" if self._init is None else b"mdat"):
                yield self._cut()
            elif kind == b"mfra":  # an index of random access at the very end; nobody needs it
                self._ended = True
                self._drop()

    def finish(self) -> None:
        """The stream has ended; BadMedia if in the midst of a piece."""
        if self._waiting and not self._ended:
            raise BadMedia(Fault.TRUNCATED, f"the stream ends {len(self._waiting)} bytes into a fragment")

    def _next_box(self) -> int | None:
        """End of the box that begins behind those seen; None until it is whole."""
        there = len(self._waiting) - self._seen
        if there < 8:
            return None
        size, kind = struct.unpack_from(">I4s", self._waiting, self._seen)
        self._check_place(kind)
        if size < 8:
            raise BadMedia(Fault.BOX_LENGTH, f"a box {_name(kind)} says that it has {size} bytes")
        limit = MAX_INIT if self._init is None else MAX_FRAGMENT
        if self._seen + size > limit:
            raise BadMedia(Fault.BOX_TOO_LARGE, f"with a box {_name(kind)} of {size} bytes the piece is over {limit} bytes")
        return self._seen + size if there >= size else None

    def _check_place(self, kind: bytes) -> None:
        """Whether such a box may come now; so that nonsense is refused at its first eight bytes."""
        before = self._boxes
        if self._ended:
            raise BadMedia(Fault.NOT_MP4, f"a box {_name(kind)} after the end")
        if self._init is None:
            fits = kind == b"ftyp" if not before else kind in _BEFORE_MOOV | {b"moov"}
        elif self._has_moof:
            fits = kind == b"mdat"
        else:
            fits = kind in _BEFORE_MOOF | {b"moof"} or (kind == b"mfra" and not before)
        if len(before) >= MAX_BOXES:
            raise BadMedia(Fault.NOT_MP4, f"more than {MAX_BOXES} boxes in a piece")
        if not fits:
            place = "at the start" if self._init is None else "behind moof" if self._has_moof else "between fragments"
            raise BadMedia(Fault.NOT_MP4, f"a box {_name(kind)} {place}")

    def _cut(self) -> Init | Fragment:
        data = bytes(self._waiting[: self._seen])
        boxes = self._boxes
        self._drop()
        if self._init is None:
            self._init = _read_init(data)
            return self._init
        fragment = _read_fragment(data, boxes, self._init)
        if fragment.is_keyframe:
            self._last_keyframe = fragment.at
        elif self._last_keyframe is None:
            raise BadMedia(Fault.NO_KEYFRAME, "the first fragment does not begin with a keyframe")
        elif fragment.at - self._last_keyframe > KEYFRAME_WITHIN:
            raise BadMedia(Fault.NO_KEYFRAME, f"no keyframe for more than {KEYFRAME_WITHIN.seconds} s")
        return fragment

    def _drop(self) -> None:
        del self._waiting[: self._seen]
        self._seen, self._boxes, self._has_moof = 0, [], False


def _name(kind: bytes) -> str:
    return kind.decode("ascii", "replace").encode("unicode_escape").decode()


# --- what lies inside ------------------------------------------------------------------------------------------------


def _children(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, and begin and end of the content, of the boxes in a range; BadMedia if they do not fill it."""
    while start < end:
        if end - start < 8:
            raise BadMedia(Fault.BOX_LENGTH, "a box ends in the midst of a head")
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > end:
            raise BadMedia(Fault.BOX_LENGTH, f"a box {_name(kind)} of {size} bytes lies in {end - start}")
        yield kind, start + 8, start + size
        start += size


def _all(data: bytes, start: int, end: int, path: tuple[bytes, ...]) -> Iterator[tuple[int, int]]:
    """The contents of the boxes at a path."""
    for kind, begin, stop in _children(data, start, end):
        if kind == path[0]:
            if len(path) == 1:
                yield begin, stop
            else:
                yield from _all(data, begin, stop, path[1:])


def _one(data: bytes, start: int, end: int, *path: bytes) -> tuple[int, int]:
    found = next(_all(data, start, end, path), None)
    if found is None:
        raise BadMedia(Fault.NOT_MP4, f"no {'/'.join(map(_name, path))}")
    return found


def _unpack(form: str, data: bytes, at: int, end: int) -> tuple[int, ...]:
    if at + struct.calcsize(form) > end:
        raise BadMedia(Fault.BOX_LENGTH, "a box is too short for its fields")
    fields: tuple[int, ...] = struct.unpack_from(form, data, at)
    return fields


def _read_init(data: bytes) -> Init:
    moov = _one(data, 0, len(data), b"moov")
    video: tuple[int, int] | None = None
    has_audio = False
    for trak in _all(data, *moov, (b"trak",)):
        begin, end = _one(data, *trak, b"mdia", b"hdlr")
        handler = data[begin + 8 : min(begin + 12, end)]
        has_audio = has_audio or handler == b"soun"
        if handler == b"vide":
            if video is not None:
                raise BadMedia(Fault.WRONG_CODEC, "more than one video track")
            video = trak
    if video is None:
        raise BadMedia(Fault.NO_VIDEO, "no video track")
    track = _track_id(data, video)
    codec, width, height = _video_codec(data, video)
    begin, end = _one(data, *video, b"mdia", b"mdhd")
    (timescale,) = _unpack(">I", data, begin + (20 if data[begin : begin + 1] == b"\x01" else 12), end)
    if timescale == 0:
        raise BadMedia(Fault.NOT_MP4, "the video track has no timescale")
    flags = 0
    for begin, end in _all(data, *moov, (b"mvex", b"trex")):
        of, _, _, _, default = _unpack(">5I", data, begin + 4, end)
        flags = default if of == track else flags
    return Init(data, codec, width, height, timescale, has_audio, track, flags)


def _track_id(data: bytes, trak: tuple[int, int]) -> int:
    begin, end = _one(data, *trak, b"tkhd")
    return _unpack(">I", data, begin + (20 if data[begin : begin + 1] == b"\x01" else 12), end)[0]


def _video_codec(data: bytes, trak: tuple[int, int]) -> tuple[str, int, int]:
    """RFC 6381 name, width and height; the name comes from avcC, since it changes with size and rate."""
    begin, end = _one(data, *trak, b"mdia", b"minf", b"stbl", b"stsd")
    kind, begin, end = next(_children(data, begin + 8, end), (b"none", end, end))
    if kind not in (b"avc1", b"avc3"):
        raise BadMedia(Fault.WRONG_CODEC, f"video is {_name(kind)}, not H.264 (avc1)")
    width, height = _unpack(">HH", data, begin + 24, end)
    config, stop = _one(data, begin + 78, end, b"avcC")
    _, profile, constraints, level = _unpack(">4B", data, config, stop)
    return f"{kind.decode()}.{profile:02x}{constraints:02x}{level:02x}", width, height


def _read_fragment(data: bytes, boxes: list[tuple[bytes, int, int]], init: Init) -> Fragment:
    captured_at = None
    moof = (0, 0)
    for kind, start, end in boxes:
        if kind == b"moof":
            moof = start + 8, end
        elif kind == b"prft":
            captured_at = _producer_time(data, start + 8, end)
    for traf in _all(data, *moof, (b"traf",)):
        begin, end = _one(data, *traf, b"tfhd")
        if _unpack(">I", data, begin + 4, end)[0] == init.video_track:
            return Fragment(data, _is_keyframe(data, traf, init), _decode_time(data, traf, init), captured_at)
    raise BadMedia(Fault.NO_VIDEO, "a fragment without video")


def _producer_time(data: bytes, begin: int, end: int) -> datetime | None:
    """ISO/IEC 14496-12 8.16.5: an NTP timestamp behind version, flags and track; None if it is of no camera that has the time.

    RFC 5905: zero is not known, and seconds without their highest bit are of the era that begins in 2036.
    """
    seconds, fraction = _unpack(">II", data, begin + 8, end)
    if not seconds:
        return None
    era = 0 if seconds & 0x8000_0000 else 2**32
    at = _NTP_EPOCH + timedelta(seconds=era + seconds, microseconds=fraction * 1_000_000 >> 32)
    return at if at >= _UNIX_EPOCH else None  # a clock that was never set, west or east of Greenwich


def _decode_time(data: bytes, traf: tuple[int, int], init: Init) -> timedelta:
    begin, end = _one(data, *traf, b"tfdt")
    (ticks,) = _unpack(">Q" if data[begin : begin + 1] == b"\x01" else ">I", data, begin + 4, end)
    seconds = ticks / init.timescale
    if seconds > timedelta(days=30).total_seconds():
        raise BadMedia(Fault.NOT_MP4, "a fragment lies more than 30 days behind the start of its segment")
    return timedelta(seconds=seconds)


def _is_keyframe(data: bytes, traf: tuple[int, int], init: Init) -> bool:
    """Whether the first sample is a sync sample: by the run's first, the run's own, the fragment's or the track's flags."""
    begin, end = _one(data, *traf, b"trun")
    (flags,) = _unpack(">I", data, begin, end)
    at = begin + 8 + (4 if flags & 0x1 else 0)
    if flags & 0x4:
        return not _unpack(">I", data, at, end)[0] & _NON_SYNC
    if flags & 0x400:
        return not _unpack(">I", data, at + (4 if flags & 0x100 else 0) + (4 if flags & 0x200 else 0), end)[0] & _NON_SYNC
    begin, end = _one(data, *traf, b"tfhd")
    (flags,) = _unpack(">I", data, begin, end)
    if flags & 0x20:
        skipped = (8 if flags & 0x1 else 0) + 4 * bool(flags & 0x2) + 4 * bool(flags & 0x8) + 4 * bool(flags & 0x10)
        return not _unpack(">I", data, begin + 8 + skipped, end)[0] & _NON_SYNC
    return not init.default_flags & _NON_SYNC
