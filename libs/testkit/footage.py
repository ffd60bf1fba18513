"""Small streams of fragmented MP4, made by hand and by ffmpeg, and a camera that sends them."""

import asyncio
import random
import struct
import subprocess
from collections.abc import AsyncIterator
from functools import cache

import imageio_ffmpeg

FRAMES_PER_S = 25


def box(kind: bytes, *content: bytes) -> bytes:
    """A box of ISO/IEC 14496-12."""
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def init() -> bytes:
    """One H.264 track of 1280 x 720, 25 ticks a second."""
    avcc = box(b"avcC", bytes([1, 0x42, 0xC0, 0x1F, 0xFF, 0xE0, 0]))
    entry = box(b"avc1", bytes(24), struct.pack(">HH", 1280, 720), bytes(50), avcc)
    stbl = box(b"stbl", box(b"stsd", struct.pack(">II", 0, 1), entry))
    hdlr = box(b"hdlr", struct.pack(">II4s", 0, 0, b"vide"), bytes(12))
    mdhd = box(b"mdhd", struct.pack(">IIIIII", 0, 0, 0, FRAMES_PER_S, 0, 0))
    trak = box(b"trak", box(b"tkhd", struct.pack(">IIII", 0, 0, 0, 1), bytes(68)), box(b"mdia", mdhd, hdlr, box(b"minf", stbl)))
    trex = box(b"trex", struct.pack(">IIIIII", 0, 1, 1, 1, 0, 0x10000))
    return box(b"ftyp", b"cmfc", bytes(4), b"cmfc") + box(b"moov", trak, box(b"mvex", trex))


def fragment(n: int, *, key: bool, content: bytes = b"frame") -> bytes:
    """The n-th frame."""
    flags = 0x2000000 if key else 0x1010000
    tfhd = box(b"tfhd", struct.pack(">II", 0x20000, 1))
    tfdt = box(b"tfdt", struct.pack(">IQ", 0x1000000, n))
    trun = box(b"trun", struct.pack(">IIIII", 0x205, 1, 0, flags, len(content)))
    prft = box(b"prft", struct.pack(">IIIIQ", 0x1000000, 1, 3_900_000_000 + n // FRAMES_PER_S, 0, n))
    return prft + box(b"moof", box(b"mfhd", struct.pack(">II", 0, n + 1)), box(b"traf", tfhd, tfdt, trun)) + box(b"mdat", content)


def stream(frames: int, dice: random.Random, keyframe_every: int = 10) -> bytes:
    """A segment with frames of random content."""
    return init() + b"".join(fragment(n, key=n % keyframe_every == 0, content=dice.randbytes(dice.randint(1, 900))) for n in range(frames))


@cache
def from_ffmpeg() -> bytes:
    """A second of a test picture, as the simulated camera makes it: 20 frames a second, a keyframe every half."""
    line = (
        "-loglevel error -f lavfi -i testsrc2=s=320x180:r=20 -t 1 -c:v libx264 -preset ultrafast -tune zerolatency"
        " -profile:v baseline -g 10 -pix_fmt yuv420p -write_prft wallclock"
        " -f mp4 -movflags cmaf+frag_every_frame+empty_moov+default_base_moof pipe:1"
    )
    return subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *line.split()], check=True, capture_output=True).stdout


class Feed:
    """A camera's stream that grows as it is told; iterate over it."""

    def __init__(self, *data: bytes) -> None:
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        for chunk in data:
            self.send(chunk)

    def send(self, chunk: bytes) -> None:
        """The camera sends bytes."""
        self._chunks.put_nowait(chunk)

    def stop(self) -> None:
        """The camera ends its stream."""
        self._chunks.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """What is sent, as it is sent."""
        while (chunk := await self._chunks.get()) is not None:
            yield chunk
