"""A stream is cut byte for byte, and nonsense is refused with its name, however it arrives."""

import random
import struct
from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from media.fmp4 import MAX_FRAGMENT, MAX_INIT, BadMedia, Fault, Fragment, Init, Splitter
from testkit.footage import box, fragment, from_ffmpeg, init, stream


def pieces(data: bytes, step: int = 1 << 20) -> list[Init | Fragment]:
    splitter = Splitter()
    found = [piece for start in range(0, len(data), step) for piece in splitter.feed(data[start : start + step])]
    splitter.finish()
    return found


@given(seed=st.integers(0, 2**32), cuts=st.integers(1, 5000))
def test_every_byte_is_in_exactly_one_piece_however_it_arrives(seed: int, cuts: int) -> None:
    data = stream(12, random.Random(seed))
    found = pieces(data, cuts)
    assert b"".join(piece.data for piece in found) == data
    assert [type(piece) for piece in found] == [Init] + [Fragment] * 12


def test_what_a_decoder_and_a_late_viewer_need_is_read() -> None:
    first, *rest = pieces(stream(25, random.Random(1), keyframe_every=10))
    assert isinstance(first, Init)
    assert (first.codec, first.width, first.height, first.has_audio) == ("avc1.42c01f", 1280, 720, False)
    fragments = [piece for piece in rest if isinstance(piece, Fragment)]
    assert [n for n, each in enumerate(fragments) if each.is_keyframe] == [0, 10, 20]
    assert fragments[20].at == timedelta(seconds=20 / 25)
    assert fragments[0].captured_at is not None


def test_what_ffmpeg_makes_is_understood() -> None:
    data = from_ffmpeg()
    first, *rest = pieces(data, 1000)
    assert isinstance(first, Init)
    assert first.codec.startswith("avc1.42c0")
    assert (first.width, first.height) == (320, 180)
    fragments = [piece for piece in rest if isinstance(piece, Fragment)]
    assert len(fragments) == 20
    assert [n for n, each in enumerate(fragments) if each.is_keyframe] == [0, 10]
    assert all(each.captured_at is not None for each in fragments)


def bad_streams() -> Iterator[tuple[str, bytes, Fault]]:
    good = init()
    yield "text", b"GET / HTTP/1.1\r\n\r\n" * 10, Fault.NOT_MP4
    yield "a picture", b"\xff\xd8\xff\xe0" + bytes(100), Fault.NOT_MP4
    yield "a box of 1 GiB", good + struct.pack(">I4s", 1 << 30, b"mdat"), Fault.NOT_MP4
    yield "a fragment of 1 GiB", good + fragment(0, key=True)[:-13] + struct.pack(">I4s", 1 << 30, b"mdat"), Fault.BOX_TOO_LARGE
    yield "a moof of 1 GiB", good + struct.pack(">I4s", 1 << 30, b"moof"), Fault.BOX_TOO_LARGE
    yield "an endless moov", good[: good.index(b"moov") - 4] + struct.pack(">I4s", (1 << 32) - 1, b"moov"), Fault.BOX_TOO_LARGE
    yield "free boxes without end", good[:20] + box(b"free", bytes(2000)) * 40, Fault.BOX_TOO_LARGE
    yield "a length of nought", good + struct.pack(">I4s", 0, b"moof"), Fault.BOX_LENGTH
    yield "a 64 bit length", good + struct.pack(">I4sQ", 1, b"moof", 100), Fault.BOX_LENGTH
    yield (
        "a length that lies inside",
        good + fragment(0, key=True).replace(struct.pack(">I4s", 16, b"tfhd"), struct.pack(">I4s", 4000, b"tfhd")),
        Fault.BOX_LENGTH,
    )
    yield "no keyframe first", good + fragment(0, key=False), Fault.NO_KEYFRAME
    yield "no keyframe again", good + fragment(0, key=True) + fragment(25 * 11, key=False), Fault.NO_KEYFRAME
    yield "another codec", good.replace(b"avc1", b"hvc1"), Fault.WRONG_CODEC
    yield "only sound", good.replace(b"vide", b"soun"), Fault.NO_VIDEO
    yield "mdat first", good + box(b"mdat", bytes(10)), Fault.NOT_MP4
    yield "a second moov", good + good, Fault.NOT_MP4
    yield "cut off", good + fragment(0, key=True)[:-1], Fault.TRUNCATED


@pytest.mark.parametrize(("data", "fault"), [pytest.param(data, fault, id=name) for name, data, fault in bad_streams()])
def test_bad_media_is_refused_by_its_name(data: bytes, fault: Fault) -> None:
    with pytest.raises(BadMedia) as refused:
        pieces(data, 7)
    assert refused.value.fault == fault


@given(st.binary(max_size=4000))
def test_no_bytes_make_it_fail_otherwise_or_wait_without_bound(noise: bytes) -> None:
    for data in (noise, init() + noise, init() + fragment(0, key=True) + noise):
        splitter = Splitter()
        try:
            for start in range(0, len(data), 100):
                list(splitter.feed(data[start : start + 100]))
                assert len(splitter._waiting) <= max(MAX_FRAGMENT, MAX_INIT)
        except BadMedia:
            continue


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_flipped_bytes_are_refused_or_cut_but_never_change_what_is_kept(seed: int, flips: int) -> None:
    dice = random.Random(seed)
    data = bytearray(stream(5, dice))
    for _ in range(flips):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    splitter, kept = Splitter(), b""
    try:
        for piece in splitter.feed(bytes(data)):
            kept += piece.data
    except BadMedia:
        pass
    assert bytes(data).startswith(kept)


def test_a_piece_of_countless_boxes_is_refused_before_it_costs_anything() -> None:
    with pytest.raises(BadMedia, match="boxes in a piece") as error:
        pieces(init() + box(b"free") * 100_000)
    assert error.value.fault == Fault.NOT_MP4
