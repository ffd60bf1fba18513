"""Chain heads, out to Kafka."""

import asyncio

from chassis import telemetry
from chassis.bus import TRANSIENT, Publisher, Record
from contracts.topics import MEDIA_CHAIN
from media.chain import Entry, Name
from sightline.media.v1.chain_pb2 import ChainHead

# A second's heads of some thousand sessions. What does not fit is not lost: the next head of a segment vouches for all before it.
_AT_MOST = 5000


class HeadAnnouncer:
    """Publishes chain values. Without Kafka they wait, the newest of each segment; a dead relay's are in its index."""

    def __init__(self, publisher: Publisher, relay_id: str) -> None:
        self._publisher, self._relay_id = publisher, relay_id
        self._waiting: dict[Name, Entry] = {}
        self._wake = asyncio.Event()

    def announce_head(self, name: Name, entry: Entry) -> None:
        """A chain value of what survives a power cut. Never blocks."""
        self._waiting.pop(name, None)
        self._waiting[name] = entry
        if len(self._waiting) > _AT_MOST:
            del self._waiting[next(iter(self._waiting))]
        self._wake.set()

    async def publish(self) -> None:
        """Send what waits; what fails waits on, unless something newer does."""
        await self._wake.wait()
        self._wake.clear()
        heads, self._waiting = self._waiting, {}
        answers = await asyncio.gather(*(self._publisher.publish(self._record(n, e)) for n, e in heads.items()), return_exceptions=True)
        failed = [(head, answer) for head, answer in zip(heads.items(), answers, strict=True) if isinstance(answer, BaseException)]
        for (name, entry), error in failed:
            if not isinstance(error, TRANSIENT):
                raise error
            self._waiting.setdefault(name, entry)
        if failed:
            telemetry.log().warning("chain heads wait", count=len(failed), error=str(failed[0][1]))
            self._wake.set()

    def _record(self, name: Name, entry: Entry) -> Record:
        head = ChainHead(
            recording_id=name.recording_id, segment_id=name.segment_id, piece=entry.n, chain=bytes.fromhex(entry.chain),
            bytes=entry.offset + entry.length, relay_id=self._relay_id,
        )  # fmt: skip
        head.received_at.FromMilliseconds(entry.received_ms)
        return Record.of(MEDIA_CHAIN, name.recording_id.encode(), head, source="relay", subject=f"recordings/{name}")
