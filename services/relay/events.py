"""Chain heads, and accounts of what was given out, to Kafka."""

import asyncio
from collections.abc import Hashable
from typing import TypeVar

from chassis import telemetry
from chassis.bus import TRANSIENT, Publisher, Record
from chassis.clock import stamp
from contracts.topics import MEDIA_CHAIN, MEDIA_SERVED
from google.protobuf.timestamp_pb2 import Timestamp
from media.chain import Entry, Name
from sightline.media.v1.chain_pb2 import ChainHead
from sightline.media.v1.served_pb2 import ServedAccount

from services.relay.service import Served

# A second's heads of some thousand sessions. What does not fit is not lost: the next head of a segment vouches for all before it, and
# that an account is missing is noticed.
_AT_MOST = 5000
_LAST_S = 1.0
K = TypeVar("K", bound=Hashable)


class RelayAnnouncer:
    """Publishes what this relay has to say. Without Kafka it waits, the newest of each thing; a dead relay's heads are in its index."""

    def __init__(self, publisher: Publisher, relay_id: str) -> None:
        self._publisher, self._relay_id = publisher, relay_id
        self._heads: dict[Name, tuple[Entry, int | None]] = {}
        self._served: dict[str, Served] = {}
        self._wake = asyncio.Event()

    def announce_head(self, name: Name, entry: Entry, captured_from_ms: int | None) -> None:
        """A chain value of what survives a power cut, and when the segment's first picture was taken; an older one changes nothing.

        Never blocks.
        """
        waiting = self._heads.pop(name, (entry, captured_from_ms))
        # Two threads may have kept and synced: what is told later is not always what came later.
        self._heads[name] = waiting if waiting[0].n > entry.n else (entry, captured_from_ms)
        if len(self._heads) > _AT_MOST:
            del self._heads[next(iter(self._heads))]
        self._wake.set()

    def announce_served(self, served: Served) -> None:
        """What a grant has come to so far. Never blocks."""
        self._served[served.grant.grant_id] = served
        if len(self._served) > _AT_MOST:
            lost = self._served.pop(next(iter(self._served)))
            telemetry.log().error("too much waits: the world is not told of a grant", grant=lost.grant.grant_id, bytes=lost.bytes)
        self._wake.set()

    async def publish(self) -> None:
        """Send what waits; what fails waits on, unless something newer does."""
        await self._wake.wait()
        self._wake.clear()
        heads, served = self._heads, self._served
        self._heads, self._served = {}, {}
        names = await self._publish({name: self._head(name, *head) for name, head in heads.items()})
        self._heads = {name: heads[name] for name in names} | self._heads
        grants = await self._publish({grant_id: self._account(each) for grant_id, each in served.items()})
        self._served = {grant_id: served[grant_id] for grant_id in grants} | self._served
        if self._heads or self._served:
            self._wake.set()

    async def publish_the_last(self) -> None:
        """What the end of this process has ended; nobody waits for an answer for long."""
        try:
            async with asyncio.timeout(_LAST_S):
                while self._heads or self._served:
                    await self.publish()
        except TimeoutError:
            telemetry.log().error("the world was not told of the last", heads=len(self._heads), grants=len(self._served))

    async def _publish(self, records: dict[K, Record]) -> list[K]:
        """Returns the names of those that failed for now."""
        answers = await asyncio.gather(*map(self._publisher.publish, records.values()), return_exceptions=True)
        failed = [(name, answer) for name, answer in zip(records, answers, strict=True) if isinstance(answer, BaseException)]
        for _, error in failed:
            if not isinstance(error, TRANSIENT):
                raise error
        if failed:
            telemetry.log().warning("what we have to say waits", count=len(failed), error=str(failed[0][1]))
        return [name for name, _ in failed]

    def _head(self, name: Name, entry: Entry, captured_from_ms: int | None) -> Record:
        head = ChainHead(
            recording_id=name.recording_id, segment_id=name.segment_id, piece=entry.n, chain=bytes.fromhex(entry.chain),
            bytes=entry.offset + entry.length, relay_id=self._relay_id, received_at=_stamp(entry.received_ms),
            captured_from=_stamp(captured_from_ms), captured_at=_stamp(entry.captured_ms),
        )  # fmt: skip
        return Record.of(MEDIA_CHAIN, name.recording_id.encode(), head, source="relay", subject=f"recordings/{name}")

    def _account(self, served: Served) -> Record:
        grant = served.grant
        account = ServedAccount(
            relay_id=self._relay_id, grant_id=grant.grant_id, session_id=grant.session_id, bytes=served.bytes,
            last_byte_at=stamp(served.last_byte_at), ended_at=stamp(served.ended_at),
        )  # fmt: skip
        return Record.of(MEDIA_SERVED, grant.grant_id.encode(), account, source="relay", subject=f"grants/{grant.grant_id}")


def _stamp(ms: int | None) -> Timestamp | None:
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000) if ms is not None else None
