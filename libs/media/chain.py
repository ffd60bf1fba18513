"""The hash chain of a segment: what was kept can be compared, piece by piece, with what was seen. Pure."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import BinaryIO

VERSION = 1
_CHAIN, _TOO_LARGE = re.compile(r"[0-9a-f]{64}"), 2**63


@dataclass(frozen=True)
class Name:
    """A segment of a recording; both parts are ids that fit into a file name."""

    recording_id: str
    segment_id: str

    def __str__(self) -> str:
        return f"{self.recording_id}/{self.segment_id}"

    @property
    def genesis(self) -> bytes:
        """What the chain begins with, so that no segment can stand for another."""
        return hashlib.sha256(f"sightline segment v{VERSION}\0{self}".encode()).digest()


def link(previous: bytes, piece: bytes) -> bytes:
    """The chain's next value: sha256(previous ‖ piece), 32 bytes."""
    digest = hashlib.sha256(previous)
    digest.update(piece)
    return digest.digest()


@dataclass(frozen=True)
class Entry:
    """One piece in the index: the n-th, its place in the media file in bytes, and the chain's value after it.

    `kind` is init, key (a fragment that begins with a keyframe) or delta. Times are in milliseconds: `at_ms` since the segment's
    start by its decode times, the others since 1970 by the relay's and the camera's clock.
    """

    n: int
    offset: int
    length: int
    chain: str
    kind: str
    at_ms: int
    received_ms: int
    captured_ms: int | None = None


@dataclass(frozen=True)
class End:
    """The last line of an index: why the segment ended, and what it came to."""

    end: str
    pieces: int
    bytes: int
    chain: str


def line(record: Entry | End | Mapping[str, object]) -> bytes:
    """A line of the index."""
    content = asdict(record) if isinstance(record, Entry | End) else record
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def head_line(name: Name) -> bytes:
    """The first line of an index."""
    return line({"format": f"sightline segment v{VERSION}", "recording_id": name.recording_id, "segment_id": name.segment_id})


def parse_head(text: bytes) -> Name:
    """The segment that an index is of; ValueError if it is no index."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("format") != f"sightline segment v{VERSION}":
        raise ValueError("not an index of this version")
    return Name(str(content["recording_id"]), str(content["segment_id"]))


def _is_number(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < _TOO_LARGE


def parse_line(text: bytes) -> Entry | End:
    """A further line; ValueError if it is none."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not an entry")
    captured = content.get("captured_ms")
    if isinstance(captured, int) and -_TOO_LARGE < captured < 0:
        content["captured_ms"] = None  # of a camera without the time, as it was written once
    numbers = {name: value for name, value in content.items() if name not in ("chain", "kind", "end")}
    if not all(_is_number(value) or (value is None and name == "captured_ms") for name, value in numbers.items()):
        raise ValueError("not an entry: a number is none")
    if not _CHAIN.fullmatch(str(content.get("chain"))):
        raise ValueError("not an entry: the chain's value is none")
    try:
        return End(**content) if "end" in content else Entry(**content)
    except TypeError as error:
        raise ValueError(f"not an entry: {error}") from error


@dataclass(frozen=True)
class Finding:
    """What is wrong, with the number of the first piece concerned; the init is 0."""

    n: int
    what: str


@dataclass(frozen=True)
class Verdict:
    """What a check has seen. Whole if there is no `finding`; `end` is empty while the segment has no end."""

    name: Name | None
    pieces: int
    bytes: int
    chain: str
    end: str
    finding: Finding | None
    entries: tuple[Entry, ...]


def verify(index: Iterable[bytes], media: BinaryIO, anchors: Mapping[int, str] | None = None) -> Verdict:
    """Recompute a segment's chain from its bytes. `anchors` are chain values by piece that were published elsewhere at the time.

    Without anchors somebody who writes media, index and end anew is not found out; with them he is, up to the last anchor.
    """
    check = _Check(media)
    try:
        check.run(iter(index), anchors or {})
    except _Bad as bad:
        return check.verdict(Finding(check.count, str(bad)))
    return check.verdict(None)


class _Bad(Exception):
    pass


class _Check:
    def __init__(self, media: BinaryIO) -> None:
        self._media = media
        self._name: Name | None = None
        self._chain, self._offset, self._end = b"", 0, ""
        self._entries: list[Entry] = []

    @property
    def count(self) -> int:
        return len(self._entries)

    def verdict(self, finding: Finding | None) -> Verdict:
        return Verdict(self._name, self.count, self._offset, self._chain.hex(), self._end, finding, tuple(self._entries))

    def run(self, lines: Iterator[bytes], anchors: Mapping[int, str]) -> None:
        try:
            self._name = parse_head(next(lines, b""))
        except (ValueError, KeyError) as error:
            raise _Bad(f"the index cannot be read: {error}") from error
        self._chain = self._name.genesis
        for text in lines:
            if self._end:
                raise _Bad("the index goes on behind its end")
            record = self._parse(text)
            if isinstance(record, End):
                self._finish(record)
            else:
                self._take(record, anchors.get(record.n))
        if (last := max(anchors, default=-1)) >= self.count:
            raise _Bad(f"pieces up to {last} were published and are missing")
        if self._media.read(1):
            raise _Bad(f"the media file goes on behind piece {self.count - 1}")

    def _parse(self, text: bytes) -> Entry | End:
        try:
            return parse_line(text)
        except ValueError as error:
            raise _Bad("its line in the index cannot be read") from error

    def _take(self, entry: Entry, anchor: str | None) -> None:
        if (entry.n, entry.offset) != (self.count, self._offset) or entry.length <= 0:
            raise _Bad(f"the index has piece {entry.n} at {entry.offset} where {self.count} at {self._offset} belongs")
        piece = self._media.read(entry.length)
        if len(piece) < entry.length:
            raise _Bad(f"{len(piece)} of its {entry.length} bytes are there" if piece else "its bytes are missing")
        found = link(self._chain, piece)
        if found.hex() != entry.chain:
            raise _Bad("it is not what was kept: the chain has another value")
        if anchor is not None and anchor != entry.chain:
            raise _Bad("it is not what was published at the time")
        self._chain, self._offset = found, self._offset + entry.length
        self._entries.append(entry)

    def _finish(self, end: End) -> None:
        if (end.pieces, end.bytes, end.chain) != (self.count, self._offset, self._chain.hex()):
            raise _Bad(f"the segment ended with {end.pieces} pieces; the index has {self.count}")
        self._end = end.end
