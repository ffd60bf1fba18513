"""What comes over Kafka is believed only as far as it can be."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from chassis.bus import Received
from chassis.clock import stamp
from chassis.errors import PoisonError
from sightline.media.v1.chain_pb2 import ChainHead
from uuid_utils import uuid7

from services.evidence.events import HeadReader
from services.evidence.model import Segment

NOW = datetime.now(UTC)


class Takes:
    def __init__(self) -> None:
        self.heads: list[Segment] = []

    async def take_heads(self, heads: list[Segment]) -> None:
        self.heads += heads


def received(**changes: Any) -> Received:
    head = ChainHead(
        recording_id=str(uuid7()), segment_id="0001-live", piece=3, chain=bytes(32), bytes=9, received_at=stamp(NOW), relay_id="a"
    )
    head.MergeFrom(ChainHead(**changes))
    return Received("t", 0, 0, NOW, b"", head.SerializeToString(), {})


async def test_what_the_camera_cannot_have_taken_is_not_said() -> None:
    service = Takes()
    await HeadReader(service)([received(captured_from=stamp(NOW + timedelta(days=400)), captured_at=stamp(NOW))])  # type: ignore[arg-type]
    [head] = service.heads
    assert (head.captured_from, head.captured_until, head.pieces) == (None, NOW, 4)


@pytest.mark.parametrize("changes", [
    {"received_at": stamp(NOW + timedelta(days=2))}, {"segment_id": "foo"}, {"segment_id": "0001-live\0"}, {"relay_id": "A B"},
    {"chain": b"short"}, {"piece": 2**63}, {"bytes": 2**63}, {"recording_id": "x"},
])  # fmt: skip
async def test_impossible_heads_are_poison(changes: dict[str, Any]) -> None:
    with pytest.raises(PoisonError):
        await HeadReader(Takes())([received(**changes)])  # type: ignore[arg-type]
