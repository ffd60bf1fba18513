"""Segments as files: `<folder>/<recording>/<segment>.mp4`, the bytes as they came, and `.jsonl`, their index.

The media is written before its line in the index, so what the index names is there: a SIGKILL loses at most the piece in flight,
a power cut what came since the last `sync`. A full disk takes back the piece that did not fit and ends the segment.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Protocol

from media.chain import End, Entry, Name, Verdict, head_line, line, link, parse_head, parse_line, verify
from media.fmp4 import Fragment, Init

LOST = "RELAY_LOST"  # the end of a segment whose relay died
_LINE = 1024  # bytes; no line of an index is longer


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


class StorageFull(OSError):
    """There is no room for a piece; what was kept before is whole."""


class Segment(Protocol):
    """A segment that is being written."""

    @property
    def last(self) -> Entry | None:
        """The last piece that was kept."""
        ...

    def append(self, piece: Init | Fragment, received_at: datetime) -> Entry:
        """Keep a piece; StorageFull if there is no room."""
        ...

    def sync(self) -> Entry | None:
        """Make all that was kept survive a power cut; returns the last piece of it."""
        ...

    def close(self, cause: str) -> End:
        """Write the end."""
        ...


class Shelf(Protocol):
    """Where segments are kept."""

    def begin(self, name: Name) -> Segment:
        """A new segment; FileExistsError if there is one of that name."""
        ...

    def segments(self, recording_id: str) -> list[Name]:
        """The segments of a recording, in order of their names."""
        ...

    def verify(self, name: Name, anchors: Mapping[int, str] | None = None) -> Verdict:
        """Recompute a segment's chain from its bytes."""
        ...

    def recordings(self) -> list[str]:
        """All recordings that there is anything of."""
        ...

    def free(self) -> int:
        """Bytes that there is room for."""
        ...

    def had(self, name: Name, piece: int, chain: str) -> bool:
        """Whether a segment's chain had this value after this piece, by its index."""
        ...

    def delete_media(self, name: Name) -> Entry | None:
        """Delete a segment's media for good; returns the last piece that the index, which stays, has of it. No error if it is gone."""
        ...

    def forget(self, recording_id: str) -> None:
        """Delete the indexes of a recording's segments that have no media any more."""
        ...

    def recover(self) -> list[tuple[Name, Entry | None]]:
        """After a crash: end the segments that have no end, without what was written in part; returns them with their last piece."""
        ...


class FileSegment:
    """A segment in two files. Threads take turns; after its end nothing is written, or it might go into another's file."""

    def __init__(self, folder: Path, name: Name) -> None:
        self._name = name
        self._entries, self._offset, self._chain = 0, 0, name.genesis
        self.last: Entry | None = None
        self._turn, self._ended = Lock(), False
        with ExitStack() as undo:
            self._media = _create(folder / f"{name.segment_id}.mp4", undo)
            self._index = _create(folder / f"{name.segment_id}.jsonl", undo)
            self._index_end = 0
            self._write_index(head_line(name))
            undo.pop_all()
        _sync_folder(folder)

    def append(self, piece: Init | Fragment, received_at: datetime) -> Entry:
        """Keep a piece; StorageFull if there is no room, ValueError after the end."""
        with self._open_turn():
            return self._append(piece, received_at)

    @contextmanager
    def _open_turn(self) -> Iterator[None]:
        with self._turn:
            if self._ended:
                raise ValueError(f"segment {self._name} has ended")
            yield

    def _append(self, piece: Init | Fragment, received_at: datetime) -> Entry:
        chain = link(self._chain, piece.data)
        at, captured = (piece.at, piece.captured_at) if isinstance(piece, Fragment) else (timedelta(), None)
        kind = "init" if isinstance(piece, Init) else "key" if piece.is_keyframe else "delta"
        entry = Entry(
            self._entries, self._offset, len(piece.data), chain.hex(), kind, max(0, _ms(at)), max(0, _since_1970(received_at)),
            _since_1970(captured) if captured and captured >= _EPOCH else None,
        )  # fmt: skip
        _write(self._media, piece.data, self._offset)
        self._write_index(line(entry))
        self._entries, self._offset, self._chain, self.last = self._entries + 1, self._offset + len(piece.data), chain, entry
        return entry

    def _write_index(self, text: bytes) -> None:
        _write(self._index, text, self._index_end)
        self._index_end += len(text)

    def sync(self) -> Entry | None:
        """Make all that was kept survive a power cut; returns the last piece of it. ValueError after the end."""
        with self._open_turn():
            return self._sync()

    def _sync(self) -> Entry | None:
        os.fdatasync(self._media)
        os.fdatasync(self._index)
        return self.last

    def close(self, cause: str) -> End:
        """Write the end; a disk that is full has room for that line, or `recover` writes it."""
        with self._open_turn():
            self._ended = True
            end = End(cause, self._entries, self._offset, self._chain.hex())
            try:
                os.ftruncate(self._media, self._offset)  # a piece that did not fit into the index is none
                self._write_index(line(end))
                self._sync()
            finally:
                os.close(self._media)
                os.close(self._index)
            return end


class FileShelf:
    """Segments in a folder of the local file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, name: Name) -> FileSegment:
        """A new segment; FileExistsError if there is one of that name."""
        folder = self._folder / name.recording_id
        folder.mkdir(parents=True, exist_ok=True)
        return FileSegment(folder, name)

    def segments(self, recording_id: str) -> list[Name]:
        """The segments of a recording, in order of their names."""
        files = (self._folder / recording_id).iterdir() if (self._folder / recording_id).exists() else ()
        stems = {path.stem for path in files if path.suffix in (".mp4", ".jsonl")}  # one without the other is something too
        return [Name(recording_id, stem) for stem in sorted(stems)]

    def verify(self, name: Name, anchors: Mapping[int, str] | None = None) -> Verdict:
        """Recompute a segment's chain from its bytes."""
        return verify_file(self._index(name), anchors)

    def recordings(self) -> list[str]:
        """All recordings that there is anything of."""
        return sorted(entry.name for entry in os.scandir(self._folder) if entry.is_dir())

    def free(self) -> int:
        """Bytes that there is room for."""
        return shutil.disk_usage(self._folder).free

    def had(self, name: Name, piece: int, chain: str) -> bool:
        """Whether a segment's chain had this value after this piece, by its index. One that cannot be read had not."""
        try:
            entry = parse_line(next(islice(_whole_lines(self._index(name)), piece + 1, None), b""))
        except (OSError, ValueError):
            return False
        return isinstance(entry, Entry) and (entry.n, entry.chain) == (piece, chain)

    def delete_media(self, name: Name) -> Entry | None:
        """Delete a segment's media for good; returns the last piece that the index, which stays, has of it. No error if it is gone."""
        index, last = self._index(name), None
        with suppress(OSError, ValueError):  # as far as it can be read
            for text in islice(_whole_lines(index), 1, None):
                last = record if isinstance(record := parse_line(text), Entry) else last
        with suppress(FileNotFoundError):
            index.with_suffix(".mp4").unlink()
            _sync_folder(index.parent)
        return last

    def forget(self, recording_id: str) -> None:
        """Delete the indexes of a recording's segments that have no media any more."""
        folder = self._folder / recording_id
        for index in folder.glob("*.jsonl"):
            if not index.with_suffix(".mp4").exists():
                index.unlink(missing_ok=True)
        with suppress(OSError):  # something is left, or it is gone already
            folder.rmdir()

    def _index(self, name: Name) -> Path:
        return self._folder / name.recording_id / f"{name.segment_id}.jsonl"

    def recover(self) -> list[tuple[Name, Entry | None]]:
        """After a crash: end the segments that have no end, without what was written in part; returns them with their last piece."""
        found = []
        for media in self._folder.glob("*/*.mp4"):
            if media.stat().st_size == 0 and not media.with_suffix(".jsonl").exists():
                media.unlink()  # we died between the two files: nothing was kept yet
        for index in sorted(self._folder.glob("*/*.jsonl")):
            if recovered := _recover(index):
                found.append(recovered)
        return found


def verify_file(index: Path, anchors: Mapping[int, str] | None = None, read: Callable[[Path], BinaryIO] = _open) -> Verdict:
    """Recompute the chain of a segment from its two files; `index` is the one that ends in .jsonl, `read` opens the other.

    A media file that is not there is one without bytes.
    """
    media = index.with_suffix(".mp4")
    with index.open("rb") as lines, read(media if media.exists() else Path(os.devnull)) as content:
        return verify(lines, content, anchors)


def _recover(index: Path) -> tuple[Name, Entry | None] | None:
    """End a segment that has no end; what cannot be read is left as it is, for a check to name."""
    if _has_end(index):
        return None
    media = index.with_suffix(".mp4")
    if not media.exists():
        return None  # it was deleted, and the index waits to be told of
    size = media.stat().st_size
    try:
        name, last, kept, ended = _read_index(index, size)
    except (ValueError, KeyError):
        return None
    if ended:
        return None
    end = End(LOST, last.n + 1, last.offset + last.length, last.chain) if last else End(LOST, 0, 0, name.genesis.hex())
    with media.open("ab") as content:
        content.truncate(end.bytes)
        os.fsync(content.fileno())
    with index.open("r+b") as lines:
        lines.truncate(kept)
        lines.seek(kept)
        lines.write(line(end))
        lines.flush()
        os.fsync(lines.fileno())
    return name, last


def _has_end(index: Path) -> bool:
    """Whether the last line is an end; a start looks at all there is, so it reads no more than that."""
    with index.open("rb") as lines:
        lines.seek(max(0, index.stat().st_size - _LINE))
        *_, last = lines.read().splitlines(keepends=True) or [b""]
    try:
        return last.endswith(b"\n") and isinstance(parse_line(last), End)
    except ValueError:
        return False


def _read_index(index: Path, media_size: int) -> tuple[Name, Entry | None, int, bool]:
    """Name, last entry whose bytes are there, length of the index up to it, and whether the segment has its end."""
    lines = _whole_lines(index)
    head = next(lines, b"")
    name, last, kept = parse_head(head), None, len(head)
    for text in lines:
        record = parse_line(text)
        if isinstance(record, End):
            return name, last, kept, True
        if record.offset + record.length > media_size:
            break
        last, kept = record, kept + len(text)
    return name, last, kept, False


def _whole_lines(index: Path) -> Iterator[bytes]:
    with index.open("rb") as lines:
        for text in lines:
            if not text.endswith(b"\n"):
                return
            yield text


def _create(path: Path, undo: ExitStack) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    undo.callback(path.unlink)
    undo.callback(os.close, descriptor)
    return descriptor


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of it at its place, or none of it."""
    done = 0
    try:
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], offset + done)
    except OSError as error:
        os.ftruncate(descriptor, offset)
        raise StorageFull(error.errno, f"a piece of {len(data)} bytes could not be kept: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)


def _since_1970(at: datetime) -> int:
    return _ms(at - _EPOCH)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
