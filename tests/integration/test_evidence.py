"""`sightline evidence verify`, as somebody with nothing but the files runs it."""

import json
import random
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from media.chain import Entry, Name
from media.files import FileShelf
from media.fmp4 import Splitter
from testkit.footage import stream

SIGHTLINE = Path(sys.executable).with_name("sightline")


def verify(*arguments: object) -> tuple[int, list[dict[str, object]], str]:
    done = subprocess.run([SIGHTLINE, "evidence", "verify", "--json", *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout or "[]"), done.stderr


@pytest.fixture
def recording(tmp_path: Path) -> tuple[Path, list[Entry]]:
    entries: list[Entry] = []
    for number in (1, 2):
        segment = FileShelf(tmp_path).begin(Name("rec", f"000{number}-live"))
        entries = [segment.append(piece, datetime.now(UTC)) for piece in Splitter().feed(stream(20, random.Random(number)))]
        segment.close("CAMERA_STOPPED")
    return tmp_path / "rec", entries


def test_a_whole_recording_is_whole(recording: tuple[Path, list[Entry]]) -> None:
    code, found, _ = verify(recording[0])
    assert (code, [each["whole"] for each in found], [each["pieces"] for each in found]) == (0, [True, True], [21, 21])


def test_the_first_bad_piece_is_named(recording: tuple[Path, list[Entry]]) -> None:
    folder, entries = recording
    media = folder / "0002-live.mp4"
    content = bytearray(media.read_bytes())
    content[entries[13].offset] ^= 1
    media.write_bytes(content)
    code, found, said = verify(folder)
    assert (code, [each["first_bad_piece"] for each in found]) == (1, [None, 13])
    assert "piece 13: it is not what was kept" in " ".join(said.split())


def test_anchors_find_what_was_written_anew(recording: tuple[Path, list[Entry]], tmp_path: Path) -> None:
    folder, entries = recording
    anchors = tmp_path / "anchors"
    anchors.write_text(json.dumps({"recording_id": "rec", "segment_id": "0002-live", "piece": 20, "chain": entries[20].chain}) + "\n")
    assert verify(folder, "--anchors", anchors)[0] == 0
    shelf = FileShelf(tmp_path)
    shelf.delete_media(Name("rec", "0002-live"))
    (folder / "0002-live.jsonl").unlink()
    segment = shelf.begin(Name("rec", "0002-live"))
    for piece in Splitter().feed(stream(20, random.Random(3))):
        segment.append(piece, datetime.now(UTC))
    segment.close("CAMERA_STOPPED")
    assert verify(folder)[0] == 0
    code, found, _ = verify(folder / "0002-live.mp4", "--anchors", anchors)
    assert (code, found[0]["first_bad_piece"]) == (1, 20)


@pytest.mark.parametrize("content", ["nonsense", '{"n": 1}'])
def test_what_cannot_be_checked_says_what_to_do(tmp_path: Path, recording: tuple[Path, list[Entry]], content: str) -> None:
    anchors = tmp_path / "anchors"
    anchors.write_text(content)
    code, _, said = verify(recording[0], "--anchors", anchors)
    assert (code, "not an anchor" in said) == (2, True)
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, said = verify(empty)
    assert (code, "no segment here" in " ".join(said.split())) == (2, True)


def test_a_session_is_found_by_its_id_also_if_it_has_moved(recording: tuple[Path, list[Entry]], tmp_path: Path) -> None:
    for relay, segment in (("relay-a", "0001-live"), ("relay-b", "0002-live")):
        there = tmp_path / "data" / relay / "rec"
        there.mkdir(parents=True)
        for kind in (".mp4", ".jsonl"):
            (recording[0] / segment).with_suffix(kind).rename(there / f"{segment}{kind}")
    code, found, _ = verify("rec", "--data", tmp_path / "data")
    assert (code, [each["segment"] for each in found]) == (0, ["rec/0001-live", "rec/0002-live"])
    code, _, said = verify("rec-2", "--data", tmp_path / "data")
    assert (code, "no segment here" in " ".join(said.split())) == (2, True)
