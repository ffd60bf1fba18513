"""What was kept verifies; what was touched since is found and named; what a crash leaves is whole."""

import errno
import json
import os
import random
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media.chain import Entry, Name, parse_line
from media.files import LOST, FileShelf, StorageFull
from media.fmp4 import Splitter
from testkit.footage import stream

NOW = datetime(2026, 11, 21, tzinfo=UTC)
NAME = Name("rec-1", "0001-live")
FRAMES = 40


def keep(shelf: FileShelf, data: bytes, name: Name = NAME, cause: str | None = "CAMERA_STOPPED") -> list[Entry]:
    segment = shelf.begin(name)
    entries = [segment.append(piece, NOW + timedelta(milliseconds=40 * n)) for n, piece in enumerate(Splitter().feed(data))]
    if cause:
        segment.close(cause)
    return entries


@pytest.fixture
def shelf(tmp_path: Path) -> FileShelf:
    return FileShelf(tmp_path)


def delete(shelf: FileShelf) -> None:
    shelf.delete_media(NAME)
    shelf.forget(NAME.recording_id)


def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "rec-1/0001-live.mp4", tmp_path / "rec-1/0001-live.jsonl"


def test_what_was_kept_is_what_came_and_verifies(shelf: FileShelf, tmp_path: Path) -> None:
    data = stream(FRAMES, random.Random(1))
    entries = keep(shelf, data)
    assert paths(tmp_path)[0].read_bytes() == data
    verdict = shelf.verify(NAME, {5: entries[5].chain, FRAMES: entries[FRAMES].chain})
    assert (verdict.finding, verdict.pieces, verdict.bytes, verdict.end) == (None, FRAMES + 1, len(data), "CAMERA_STOPPED")
    assert [entry.kind for entry in verdict.entries[:12]] == ["init", "key", *["delta"] * 9, "key"]
    assert shelf.segments("rec-1") == [NAME]


def test_deletion_leaves_the_index_until_it_is_told(shelf: FileShelf, tmp_path: Path) -> None:
    entries = keep(shelf, stream(FRAMES, random.Random(1)))
    other = Name("rec-1", "0002-late")
    keep(shelf, stream(5, random.Random(2)), other)
    media, index = paths(tmp_path)
    for _ in range(2):  # as after a crash before it was told
        assert shelf.delete_media(NAME) == entries[-1]
        assert (media.exists(), index.exists()) == (False, True)
    assert shelf.had(NAME, 7, entries[7].chain)
    assert not shelf.had(NAME, 8, entries[7].chain)
    assert not shelf.had(NAME, FRAMES + 1, entries[7].chain)
    shelf.forget("rec-1")
    assert (index.exists(), shelf.segments("rec-1"), shelf.recordings()) == (False, [other], ["rec-1"])
    assert shelf.verify(other).finding is None
    shelf.delete_media(other)
    shelf.forget("rec-1")
    assert shelf.recordings() == []
    assert shelf.delete_media(NAME) is None
    assert not shelf.had(NAME, 0, entries[0].chain)


def test_recovery_leaves_the_index_of_what_was_deleted(shelf: FileShelf, tmp_path: Path) -> None:
    """A death between the deletion and its confirmation; the segment had no end."""
    entries = keep(shelf, stream(5, random.Random(1)), cause=None)
    shelf.delete_media(NAME)
    assert shelf.recover() == []
    assert not paths(tmp_path)[0].exists()
    assert shelf.delete_media(NAME) == entries[-1]


@pytest.mark.parametrize("change", [{"chain": "q" * 64}, {"chain": "ab"}, {"n": -1}, {"offset": 2**63}, {"length": None}])
def test_a_line_that_is_none_is_found(shelf: FileShelf, tmp_path: Path, change: dict[str, object]) -> None:
    keep(shelf, stream(5, random.Random(1)))
    index = paths(tmp_path)[1]
    lines = index.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | change)
    index.write_text("".join(line + "\n" for line in lines))
    finding = shelf.verify(NAME).finding
    assert finding is not None
    assert finding.n == 2


def test_media_that_was_never_begun_is_cleared_away(shelf: FileShelf, tmp_path: Path) -> None:
    (tmp_path / "rec-1").mkdir()
    (tmp_path / "rec-1/0001-live.mp4").touch()
    assert shelf.recover() == []
    assert not (tmp_path / "rec-1/0001-live.mp4").exists()


Touch = Callable[[Path, Path, list[Entry], random.Random], int]


def flip(media: Path, index: Path, entries: list[Entry], dice: random.Random) -> int:
    content, entry = bytearray(media.read_bytes()), dice.choice(entries)
    content[entry.offset + dice.randrange(entry.length)] ^= 1 << dice.randrange(8)
    media.write_bytes(content)
    return entry.n


def remove(media: Path, index: Path, entries: list[Entry], dice: random.Random) -> int:
    content, entry = media.read_bytes(), dice.choice(entries)
    media.write_bytes(content[: entry.offset] + content[entry.offset + entry.length :])
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines[: entry.n + 1] + lines[entry.n + 2 :]))
    return entry.n


def swap(media: Path, index: Path, entries: list[Entry], dice: random.Random) -> int:
    one, two = sorted(dice.sample(entries, 2), key=lambda entry: entry.n)
    content = media.read_bytes()
    part = [content[entry.offset : entry.offset + entry.length] for entry in entries]
    part[one.n], part[two.n] = part[two.n], part[one.n]
    media.write_bytes(b"".join(part))
    return one.n


def truncate(media: Path, index: Path, entries: list[Entry], dice: random.Random) -> int:
    entry = dice.choice(entries)
    os.truncate(media, entry.offset + dice.randrange(entry.length))
    return entry.n


def cut_tail(media: Path, index: Path, entries: list[Entry], dice: random.Random) -> int:
    """The last pieces are taken out of media and index; the end stays."""
    entry = dice.choice(entries)
    os.truncate(media, entry.offset)
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join([*lines[: entry.n + 1], lines[-1]]))
    return entry.n


def spoil_line(media: Path, index: Path, entries: list[Entry], dice: random.Random) -> int:
    entry = dice.choice(entries)
    lines = index.read_bytes().splitlines(keepends=True)
    content = json.loads(lines[entry.n + 1])
    content[dice.choice(["n", "offset", "length", "chain"])] = dice.choice([10**9, -1, "x"])
    lines[entry.n + 1] = json.dumps(content).encode() + b"\n"
    index.write_bytes(b"".join(lines))
    return entry.n


@pytest.mark.parametrize("touch", [flip, remove, swap, truncate, cut_tail, spoil_line])
def test_what_was_touched_is_found_and_named_in_100_of_100(shelf: FileShelf, tmp_path: Path, touch: Touch) -> None:
    dice = random.Random(touch.__name__)
    entries = keep(shelf, stream(FRAMES, dice))
    media, index = paths(tmp_path)
    kept = media.read_bytes(), index.read_bytes()
    for _ in range(100):
        expected = touch(media, index, entries, dice)
        verdict = shelf.verify(NAME)
        assert verdict.finding is not None
        assert verdict.finding.n == expected
        media.write_bytes(kept[0])
        index.write_bytes(kept[1])
    assert shelf.verify(NAME).finding is None


def test_a_segment_that_is_written_anew_is_found_by_what_was_published(shelf: FileShelf, tmp_path: Path) -> None:
    entries = keep(shelf, stream(FRAMES, random.Random(1)))
    published = {n: entries[n].chain for n in (10, 20, 30, 40)}
    delete(shelf)
    assert not list(tmp_path.glob("rec-1"))
    keep(shelf, stream(FRAMES, random.Random(2)))
    assert shelf.verify(NAME).finding is None
    finding = shelf.verify(NAME, published).finding
    assert finding is not None
    assert finding.n == 10
    delete(shelf)
    keep(shelf, stream(15, random.Random(1)))
    finding = shelf.verify(NAME, published).finding
    assert finding is not None
    assert "published and are missing" in finding.what


def test_a_segment_cannot_stand_for_another(shelf: FileShelf, tmp_path: Path) -> None:
    keep(shelf, stream(FRAMES, random.Random(1)))
    media, index = paths(tmp_path)
    for path in (media, index):
        path.with_stem("0002-live").write_bytes(path.read_bytes().replace(b"0001-live", b"0002-live"))
    finding = shelf.verify(Name("rec-1", "0002-live")).finding
    assert finding is not None
    assert finding.n == 0


@pytest.mark.parametrize("seed", range(50))
def test_what_a_kill_leaves_is_made_whole(shelf: FileShelf, tmp_path: Path, seed: int) -> None:
    """At any byte: the media is written first, then the line that names it."""
    dice = random.Random(seed)
    data = stream(FRAMES, dice)
    entries = keep(shelf, data, cause=None)
    media, index = paths(tmp_path)
    lines = index.read_bytes().splitlines(keepends=True)
    last = dice.choice(entries)
    if dice.random() < 0.5:  # in the midst of a piece's bytes
        os.truncate(media, last.offset + dice.randrange(last.length))
        index.write_bytes(b"".join(lines[: last.n + 1]))
    else:  # in the midst of its line
        os.truncate(media, last.offset + last.length)
        index.write_bytes(b"".join(lines[: last.n + 1]) + lines[last.n + 1][: dice.randrange(len(lines[last.n + 1]))])
    [(name, kept)] = shelf.recover()
    assert (name, kept) == (NAME, entries[last.n - 1] if last.n else None)
    verdict = shelf.verify(NAME)
    assert (verdict.finding, verdict.end, verdict.pieces) == (None, LOST, last.n)
    assert data.startswith(media.read_bytes())
    assert shelf.recover() == []


def test_recovery_leaves_alone_what_has_its_end_and_what_it_cannot_read(shelf: FileShelf, tmp_path: Path) -> None:
    keep(shelf, stream(3, random.Random(1)))
    strange = tmp_path / "rec-1/strange.jsonl"
    strange.write_bytes(b"nonsense\n")
    empty = tmp_path / "rec-1/empty.jsonl"
    empty.write_bytes(b"")
    assert shelf.recover() == []
    assert strange.read_bytes() == b"nonsense\n"


def test_a_full_disk_takes_back_the_piece_that_did_not_fit(shelf: FileShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = stream(FRAMES, random.Random(1))
    room, write = 9000, os.pwrite

    def pwrite(descriptor: int, content: bytes, offset: int) -> int:
        if offset + len(content) <= room:
            return write(descriptor, content, offset)
        if offset < room:
            return write(descriptor, content[: room - offset], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    segment = shelf.begin(NAME)
    kept: list[Entry] = []

    def keep_all() -> None:
        for piece in Splitter().feed(data):
            kept.append(segment.append(piece, NOW))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StorageFull):
        keep_all()
    monkeypatch.undo()
    segment.close("STORAGE_FULL")
    verdict = shelf.verify(NAME)
    assert (verdict.finding, verdict.pieces, verdict.end) == (None, len(kept), "STORAGE_FULL")
    assert 0 < len(kept) <= FRAMES


def test_after_its_end_nothing_is_written(shelf: FileShelf, tmp_path: Path) -> None:
    """The numbers of its files are free then, and may be another segment's."""
    pieces = list(Splitter().feed(stream(3, random.Random(1))))
    segment = shelf.begin(NAME)
    segment.append(pieces[0], NOW)
    segment.close("CAMERA_STOPPED")
    other = shelf.begin(Name("rec-1", "0002-live"))
    with pytest.raises(ValueError, match="has ended"):
        segment.append(pieces[1], NOW)
    with pytest.raises(ValueError, match="has ended"):
        segment.sync()
    other.close("CAMERA_STOPPED")
    assert (tmp_path / "rec-1/0002-live.mp4").read_bytes() == b""
    assert shelf.verify(NAME).finding is None


def test_a_name_is_used_once(shelf: FileShelf) -> None:
    keep(shelf, stream(3, random.Random(1)))
    with pytest.raises(FileExistsError):
        shelf.begin(NAME)
    assert shelf.verify(NAME).finding is None


# --- whatever is written can be read again ---------------------------------------------------------------------------------

NTP = 2_208_988_800  # 1970 in seconds since 1900


def with_clock(data: bytes, seconds: int, fraction: int = 0) -> bytes:
    """The same pieces, from a camera whose clock says this (seconds since 1900, modulo 2**32)."""
    changed, at = bytearray(data), 0
    while (at := data.find(b"prft", at)) >= 0:
        changed[at + 12 : at + 20] = struct.pack(">II", seconds % 2**32, fraction)
        at += 4
    return bytes(changed)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, None), (NTP - 7200, None), (NTP - 1, None), (NTP, datetime(1970, 1, 1, tzinfo=UTC)),
        (NTP + 1_796_000_000, datetime(2026, 11, 30, 0, 53, 20, tzinfo=UTC)), (2**32 - 1, datetime(2036, 2, 7, 6, 28, 15, tzinfo=UTC)),
        (2**32 + 1, datetime(2036, 2, 7, 6, 28, 17, tzinfo=UTC)), (2**32 + 2**31 - 1, datetime(2104, 2, 26, 9, 42, 23, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_a_cameras_clock_is_read_by_its_era_or_says_nothing(shelf: FileShelf, seconds: int, said: datetime | None) -> None:
    """C5: RFC 5905; an empty clock in UTC+2 has said something before 1970."""
    entries = keep(shelf, with_clock(stream(3, random.Random(1)), seconds))
    assert {entry.captured_ms for entry in entries[1:]} == {None if said is None else int(said.timestamp()) * 1000}


_TIMES = st.sampled_from([0, 1, NTP - 7200, NTP - 1, NTP, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
_RECEIVED = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@settings(deadline=None, max_examples=60)
@given(seconds=_TIMES, fraction=st.integers(0, 2**32 - 1), received=_RECEIVED, ended=st.booleans())
def test_whatever_is_written_to_an_index_can_be_read_again(seconds: int, fraction: int, received: datetime, ended: bool) -> None:
    """Else verification says forged, and neither recovery nor deletion works."""
    with TemporaryDirectory() as folder:
        shelf, data = FileShelf(Path(folder)), with_clock(stream(5, random.Random(1)), seconds, fraction)
        segment = shelf.begin(NAME)
        written = [segment.append(piece, received) for piece in Splitter().feed(data)]
        if ended:
            segment.close("CAMERA_STOPPED")
        index = paths(Path(folder))[1]
        assert [parse_line(text) for text in index.read_bytes().splitlines()[1:]][: len(written)] == written
        assert shelf.recover() == ([] if ended else [(NAME, written[-1])])
        verdict = shelf.verify(NAME, {written[-1].n: written[-1].chain})
        assert (verdict.finding, verdict.entries) == (None, tuple(written))
        assert shelf.had(NAME, written[-1].n, written[-1].chain)
        assert shelf.delete_media(NAME) == written[-1]


def test_an_index_that_was_written_with_such_a_time_is_whole(shelf: FileShelf, tmp_path: Path) -> None:
    """As an earlier release wrote them: no forgery, and no hold for ever."""
    entries = keep(shelf, stream(3, random.Random(1)))
    index = paths(tmp_path)[1]
    lines = index.read_text().splitlines(keepends=True)
    changed = [json.dumps(json.loads(text) | {"captured_ms": -7_200_000}) + "\n" if "captured_ms" in text else text for text in lines]
    index.write_text("".join(changed))
    verdict = shelf.verify(NAME, {entries[-1].n: entries[-1].chain})
    assert verdict.finding is None
    assert {entry.captured_ms for entry in verdict.entries} == {None}
    assert shelf.delete_media(NAME) is not None
