"""What the simulated cameras see: a moving test picture with a clock burnt in, for people and for machines, as live H.264.

One encoder for all cameras of a simulator: a hundred of them on a laptop would leave no time for anything else.
"""

import asyncio
import subprocess
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from types import TracebackType
from typing import Self, cast

import imageio_ffmpeg
from media.fmp4 import Fragment, Init, Splitter

WIDTH, HEIGHT, FRAMES_PER_S, KEYFRAME_EVERY, BITRATE_KBIT = 640, 360, 20, 20, 1200
# The machines' clock: a strip of blocks along the lower edge, white for one, black for nought, highest bit first:
# 48 bits of milliseconds since 1970, 8 bits of their sum of bytes.
BLOCK, CLOCK_BITS, SUM_BITS = 10, 48, 8
# A camera's own store, in seconds: for what it saw before it recorded, and while it had no link.
KEPT_S = 120.0
_WHITE, _BLACK = 235, 16
# For a page that shows it on the canvas `picture`: milliseconds since the burnt-in time; null if the strip cannot be read.
READ_CLOCK = """() => { const now = Date.now(), c = document.getElementById("picture"), n = 56, size = 10;
    const p = c.getContext("2d").getImageData(0, c.height - size / 2, n * size, 1).data;
    const bits = Array.from({ length: n }, (_, at) => p[(at * size + size / 2) * 4] > 128 ? 1 : 0);
    const bytes = Array.from({ length: 7 }, (_, at) => bits.slice(8 * at, 8 * at + 8).reduce((sum, bit) => 2 * sum + bit, 0));
    const time = bytes.slice(0, 6).reduce((sum, byte) => 256 * sum + byte, 0);
    return bytes.slice(0, 6).reduce((sum, byte) => sum + byte, 0) % 256 === bytes[6] ? now - time : null; }"""
_SCENE_FRAMES = 40
_WAITING_AT_MOST = 400
# The people's clock: 5 x 7 dots a sign, a row of bits each.
_SIGNS = {
    "0": "0e11131519110e", "1": "040c040404040e", "2": "0e11010204081f", "3": "1f02040201110e", "4": "02060a121f0202",
    "5": "1f101e0101110e", "6": "0608101e11110e", "7": "1f010204080808", "8": "0e11110e11110e", "9": "0e11110f01020c",
    ":": "000c0c000c0c00", ".": "00000000000c0c",
}  # fmt: skip
_DOT = 4


class Footage:
    """Use as an async context manager; iterate over `stream()` for the bytes that a camera sends."""

    def __init__(self, kbit_s: int = BITRATE_KBIT) -> None:
        self._kbit_s = kbit_s
        self._init = b""
        self._group: list[Fragment] = []
        self._past: deque[tuple[float, Fragment]] = deque()
        self._viewers: set[asyncio.Queue[bytes | None]] = set()
        self._begun = asyncio.Event()

    async def __aenter__(self) -> Self:
        scene = await asyncio.to_thread(_scene)
        self._encoder = await asyncio.create_subprocess_exec(
            imageio_ffmpeg.get_ffmpeg_exe(),
            *_encoding(self._kbit_s),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        stdin, stdout = cast(asyncio.StreamWriter, self._encoder.stdin), cast(asyncio.StreamReader, self._encoder.stdout)
        self._tasks = [asyncio.create_task(self._film(scene, stdin)), asyncio.create_task(self._read(stdout))]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(ProcessLookupError):
            self._encoder.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(OSError):  # frames that were on their way
            await cast(asyncio.StreamWriter, self._encoder.stdin).wait_closed()
        await self._encoder.wait()

    async def _film(self, scene: list[bytes], stdin: asyncio.StreamWriter) -> None:
        """A frame every 50 ms, with the time at which it is made."""
        start, n = time.monotonic(), 0
        while True:
            # A camera that is late leaves frames out.
            n = max(n + 1, int((time.monotonic() - start) * FRAMES_PER_S))
            await asyncio.sleep(start + n / FRAMES_PER_S - time.monotonic())
            stdin.write(with_clock(scene[n % len(scene)], time.time_ns() // 1_000_000))
            await stdin.drain()

    async def _read(self, stdout: asyncio.StreamReader) -> None:
        splitter = Splitter()
        while chunk := await stdout.read(65536):
            for piece in splitter.feed(chunk):
                self._take(piece)
        for viewer in self._viewers:
            viewer.put_nowait(None)

    def _take(self, piece: Init | Fragment) -> None:
        if isinstance(piece, Init):
            self._init = piece.data
            return
        self._group = [piece] if piece.is_keyframe else [*self._group, piece]
        self._past.append((time.monotonic(), piece))
        while self._past[0][0] < time.monotonic() - KEPT_S:
            self._past.popleft()
        self._begun.set()
        for viewer in list(self._viewers):
            if viewer.qsize() < _WAITING_AT_MOST:
                viewer.put_nowait(piece.data)
            else:
                self._viewers.discard(viewer)
                viewer.put_nowait(None)

    def between(self, since: float, until: float) -> list[bytes]:
        """What was seen between two times of the monotonic clock, as a segment: the init, then from the last keyframe before on."""
        seen = [(at, fragment) for at, fragment in self._past if at <= until]
        first = max((n for n, (at, fragment) in enumerate(seen) if fragment.is_keyframe and at <= since), default=None)
        if first is None:
            first = next((n for n, (_, fragment) in enumerate(seen) if fragment.is_keyframe), len(seen))
        return [self._init, *(fragment.data for _, fragment in seen[first:])] if seen[first:] else []

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """From the last keyframe on, as a camera with a buffer sends it; ends for one that does not keep up."""
        await self._begun.wait()
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        first = b"".join([self._init, *(fragment.data for fragment in self._group)])
        self._viewers.add(queue)
        try:
            yield first
            while (data := await queue.get()) is not None:
                yield data
        finally:
            self._viewers.discard(queue)


def _encoding(kbit_s: int) -> list[str]:
    line = (
        f"-loglevel error -f rawvideo -pix_fmt yuv420p -s {WIDTH}x{HEIGHT} -r {FRAMES_PER_S} -i pipe:0"
        f" -c:v libx264 -preset ultrafast -tune zerolatency -profile:v baseline -g {KEYFRAME_EVERY} -b:v {kbit_s}k"
        " -f mp4 -movflags cmaf+frag_every_frame+empty_moov+default_base_moof -write_prft wallclock -flush_packets 1 pipe:1"
    )
    return line.split()


def _scene() -> list[bytes]:
    """Two seconds of ffmpeg's test picture, a frame each; planar YUV 4:2:0."""
    source = f"testsrc2=s={WIDTH}x{HEIGHT}:r={FRAMES_PER_S}"
    line = f"-loglevel error -f lavfi -i {source} -frames:v {_SCENE_FRAMES} -pix_fmt yuv420p -f rawvideo pipe:1"
    raw = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *line.split()], check=True, capture_output=True).stdout
    size = WIDTH * HEIGHT * 3 // 2
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def with_clock(frame: bytes, ms: int) -> bytes:
    """The frame with the time on it."""
    picture = bytearray(frame)
    total = sum(ms.to_bytes(CLOCK_BITS // 8, "big")) % (1 << SUM_BITS)
    bits = ms << SUM_BITS | total
    row = b"".join(bytes([_WHITE if bits >> (CLOCK_BITS + SUM_BITS - 1 - n) & 1 else _BLACK]) * BLOCK for n in range(CLOCK_BITS + SUM_BITS))
    for y in range(HEIGHT - BLOCK, HEIGHT):
        picture[y * WIDTH : y * WIDTH + len(row)] = row
    _grey(picture, HEIGHT - BLOCK, BLOCK, len(row))
    _write(picture, time.strftime("%H:%M:%S", time.gmtime(ms // 1000)) + f".{ms % 1000 // 100}")
    return bytes(picture)


def _write(picture: bytearray, text: str) -> None:
    """White on black in the upper left corner."""
    width = (6 * len(text) + 1) * _DOT
    for y in range(9):
        row = bytearray([_BLACK]) * width
        for n, sign in enumerate(text):
            bits = bytes.fromhex(_SIGNS[sign])[y - 1] if 0 < y < 8 else 0
            for x in range(5):
                if bits >> (4 - x) & 1:
                    at = (6 * n + 1 + x) * _DOT
                    row[at : at + _DOT] = bytes([_WHITE]) * _DOT
        for line in range(y * _DOT, (y + 1) * _DOT):
            picture[line * WIDTH : line * WIDTH + width] = row
    _grey(picture, 0, 9 * _DOT, width)


def _grey(picture: bytearray, top: int, height: int, width: int) -> None:
    """Take the colour out of a part at the left edge."""
    for plane in (WIDTH * HEIGHT, WIDTH * HEIGHT * 5 // 4):
        for y in range(top // 2, (top + height) // 2):
            at = plane + y * WIDTH // 2
            picture[at : at + width // 2] = bytes([128]) * (width // 2)
