"""Chain heads, out to Kafka."""

import asyncio

from chassis import telemetry
from chassis.bus import TRANSIENT, Publisher, Record
from contracts.topics import MEDIA_CHAIN
from google.protobuf.timestamp_pb2 import Timestamp
from media.chain import Entry, Name
from sightline.media.v1.chain_pb2 import ChainHead

# A second's heads of some thousand sessions. What does not fit is not lost: the next head of a segment vouches for all before it.
_AT_MOST = 5000


class HeadAnnouncer:
    """Publishes chain values. Without Kafka they wait, the newest of each segment; a dead relay's are in its index."""

    def __init__(self, publisher: Publisher, relay_id: str) -> None:
        self._publisher, self._relay_id = publisher, relay_id
        self._waiting: dict[Name, tuple[Entry, int | None]] = {}
        self._wake = asyncio.Event()

    def announce_head(self, name: Name, entry: Entry, captured_from_ms: int | None) -> None:
        """A chain value of what survives a power cut, and when the segment's first picture was taken; an older one changes nothing.

        Never blocks.
        """
        waiting = self._waiting.pop(name, (entry, captured_from_ms))
        # Two threads may have kept and synced: what is told later is not always what came later.
        self._waiting[name] = waiting if waiting[0].n > entry.n else (entry, captured_from_ms)
        if len(self._waiting) > _AT_MOST:
            del self._waiting[next(iter(self._waiting))]
        self._wake.set()

    async def publish(self) -> None:
        """Send what waits; what fails waits on, unless something newer does."""
        await self._wake.wait()
        self._wake.clear()
        heads, self._waiting = self._waiting, {}
        answers = await asyncio.gather(
            *(self._publisher.publish(self._record(name, *head)) for name, head in heads.items()), return_exceptions=True
        )
        failed = [(head, answer) for head, answer in zip(heads.items(), answers, strict=True) if isinstance(answer, BaseException)]
        for (name, head), error in failed:
            if not isinstance(error, TRANSIENT):
                raise error
            self._waiting.setdefault(name, head)
        if failed:
            telemetry.log().warning("chain heads wait", count=len(failed), error=str(failed[0][1]))
            self._wake.set()

    def _record(self, name: Name, entry: Entry, captured_from_ms: int | None) -> Record:
        head = ChainHead(
            recording_id=name.recording_id, segment_id=name.segment_id, piece=entry.n, chain=bytes.fromhex(entry.chain),
            bytes=entry.offset + entry.length, relay_id=self._relay_id, received_at=_stamp(entry.received_ms),
            captured_from=_stamp(captured_from_ms), captured_at=_stamp(entry.captured_ms),
        )  # fmt: skip
        return Record.of(MEDIA_CHAIN, name.recording_id.encode(), head, source="relay", subject=f"recordings/{name}")


def _stamp(ms: int | None) -> Timestamp | None:
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000) if ms is not None else None
