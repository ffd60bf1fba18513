"""What a viewer is sent and what not; no I/O.

A viewer gets pieces of a segment in order, from a keyframe on. It acknowledges the bytes that it got; more than a window of
unacknowledged ones is never under way, because only that bounds what waits in kernels and proxies. Who falls behind skips to
the next keyframe: an old picture is worth less than none.
"""

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from media.fmp4 import Init

# Measured on a throttled link (docs/decisions/0011): the window is under a half second at 2 Mbit/s.
WINDOW_BYTES, AGE_LIMIT_S, QUEUE_BYTES = 96 * 1024, 0.6, 4 * 1024 * 1024
# Pieces since the last keyframe that a late viewer is given at once; a camera that sends more of them waits for its next keyframe.
GROUP_BYTES = 16 * 1024 * 1024
_KINDS = {"init": 0, "key": 1, "delta": 2}
_HEAD = struct.Struct(">BBHIQ32s")
_VERSION = 1


@dataclass(frozen=True)
class Frame:
    """A kept piece on its way to viewers: the n-th of its segment, the chain's value before it, when it was received (ms since 1970).

    `init` describes the segment, if this is its init.
    """

    n: int
    kind: str
    previous: bytes
    received_ms: int
    data: bytes
    init: Init | None = None

    def message(self) -> bytes:
        """One binary WebSocket message: version, kind (0 init, 1 key, 2 delta), 2 bytes of nought, n, received_ms, previous, the piece.

        Big-endian, 48 bytes before the piece: sha256(previous ‖ piece) is the chain's value after it.
        """
        return _HEAD.pack(_VERSION, _KINDS[self.kind], 0, self.n, self.received_ms, self.previous) + self.data


class Group:
    """The init and all pieces since the last keyframe: what a late viewer begins with."""

    def __init__(self) -> None:
        self._init: Frame | None = None
        self._pieces: list[Frame] = []
        self._bytes = 0

    def add(self, frame: Frame) -> None:
        """The next piece of the stream."""
        if frame.kind == "init":
            self._init, self._pieces, self._bytes = frame, [], 0
        elif frame.kind == "key":
            self._pieces, self._bytes = [frame], len(frame.data)
        elif self._pieces:
            self._pieces.append(frame)
            self._bytes += len(frame.data)
            if self._bytes > GROUP_BYTES:
                self._pieces, self._bytes = [], 0

    def frames(self) -> Iterator[Frame]:
        """In order; nothing before the first init."""
        if self._init is not None:
            yield self._init
            yield from self._pieces


class Viewer:
    """What one viewer is sent next. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Frame, float]] = deque()
        self._queued = 0
        self._waits_for_key = True
        self._sent = self._acknowledged = 0
        self.skipped = 0

    @property
    def sent(self) -> int:
        """Bytes of messages that were given out."""
        return self._sent

    def offer(self, frame: Frame, now: float) -> None:
        """A new piece of the stream; what a viewer cannot use or is too late for is skipped."""
        if frame.kind == "init":
            self._clear()  # another segment has begun: what waits of the old one is old
            self._waits_for_key = True
        elif frame.kind == "key":
            self._waits_for_key = False
        elif self._waits_for_key:
            self.skipped += 1
            return
        self._queue.append((frame, now))
        self._queued += len(frame.data)
        if self._queued > QUEUE_BYTES:
            self._skip()

    def next(self, now: float) -> Frame | None:
        """The piece to send now; None while there is none or the window is full."""
        while self._queue:
            if self._sent - self._acknowledged >= WINDOW_BYTES:
                break
            frame, since = self._queue[0]
            if frame.kind != "init" and now - since > AGE_LIMIT_S:
                self._skip()
                continue
            self._queue.popleft()
            self._queued -= len(frame.data)
            self._sent += _HEAD.size + len(frame.data)
            return frame
        return None

    def acknowledge(self, total: int) -> bool:
        """The viewer has got so many bytes of messages in all; False if that cannot be."""
        if not self._acknowledged <= total <= self._sent:
            return False
        self._acknowledged = total
        return True

    def _skip(self) -> None:
        """Go on at the newest keyframe that waits behind the first piece; without one at the next that comes. An init is never skipped."""
        waiting = list(self._queue)
        first = next((frame for frame, _ in waiting if frame.kind == "init"), None)
        newest = max((at for at, (frame, _) in enumerate(waiting) if frame.kind == "key" and at > 0), default=None)
        kept = waiting[newest:] if newest is not None else []
        self.skipped += len(waiting) - len(kept) - (first is not None)
        self._clear()
        if first is not None:
            self._push(first, waiting[0][1])
        for frame, since in kept:
            self._push(frame, since)
        self._waits_for_key = newest is None

    def _push(self, frame: Frame, since: float) -> None:
        self._queue.append((frame, since))
        self._queued += len(frame.data)

    def _clear(self) -> None:
        self._queue.clear()
        self._queued = 0
