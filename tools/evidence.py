"""`sightline evidence`: what is kept and why; the chain of recorded segments, from nothing but the files; what was published of it."""

import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from chassis.bus import client_config
from chassis.settings import KafkaSettings
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from contracts.topics import MEDIA_CHAIN
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from media.chain import Verdict
from media.files import verify_file
from rich.progress import Progress
from sightline.evidence.v1 import recording_pb2 as pb
from sightline.evidence.v1.evidence_service_pb2 import GetRecordingResponse
from sightline.media.v1.chain_pb2 import ChainHead

_SEPARATORS = {os.sep, "."}
_BROKER_S = 10.0


class Unreadable(Exception):
    """There is nothing to check."""


@dataclass(frozen=True)
class Checked:
    """One segment and what its check has seen."""

    index: Path
    verdict: Verdict

    @property
    def result(self) -> str:
        """In words."""
        finding = self.verdict.finding
        if finding:
            return f"piece {finding.n}: {finding.what}"
        return "whole" if self.verdict.end else "whole so far; it has no end, so it is still written or was cut off"

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        verdict = self.verdict
        times = [datetime.fromtimestamp(entry.received_ms / 1000, UTC) for entry in (verdict.entries[:1] + verdict.entries[-1:])]
        span = f"{times[0]:%Y-%m-%d %H:%M:%S} to {times[-1]:%H:%M:%S} UTC" if times else ""
        name = str(verdict.name or self.index.name)
        return name, str(verdict.pieces), f"{verdict.bytes:,}", span, verdict.end or "–", self.result

    def summary(self) -> dict[str, object]:
        """For JSON."""
        verdict, finding = self.verdict, self.verdict.finding
        return {
            "file": str(self.index),
            "segment": str(verdict.name) if verdict.name else None,
            "pieces": verdict.pieces,
            "bytes": verdict.bytes,
            "chain": verdict.chain,
            "end": verdict.end or None,
            "whole": finding is None,
            "first_bad_piece": finding.n if finding else None,
            "result": self.result,
        }


def check(what: str, data: Path, anchors: Path | None, bar: Progress) -> list[Checked]:
    """Check a segment, all in a folder, or all of a session that the local stack has kept.

    Unreadable if there is none, or if the anchors are none.
    """
    known = _anchors(anchors) if anchors else {}
    path = Path(what)
    if path.exists() or _SEPARATORS & set(what):
        indexes = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path.with_suffix(".jsonl")]
    else:
        # Relays each have a folder; a session that moved has segments in several.
        indexes = sorted(data.glob(f"relay-*/{glob.escape(what)}/*.jsonl"), key=lambda index: index.name)
    if not indexes or not indexes[0].exists():
        raise Unreadable(
            f"{what}: no segment here. Name a segment (a .mp4 with its index, a .jsonl of the same name, beside it), a folder of them,"
            f" or a session that the stack in {data} has kept"
        )

    def read(media: Path) -> BinaryIO:
        return bar.open(media, "rb", description=media.stem)

    return [Checked(index, verify_file(index, known.get((index.parent.name, index.stem)), read)) for index in indexes]


def _anchors(path: Path) -> dict[tuple[str, str], dict[int, str]]:
    found: dict[tuple[str, str], dict[int, str]] = {}
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            content = json.loads(text)
            found.setdefault((content["recording_id"], content["segment_id"]), {})[int(content["piece"])] = str(content["chain"])
        except (ValueError, KeyError, TypeError) as error:
            raise Unreadable(f"{path} line {number}: not an anchor: {error!r}") from error
    return found


def published(kafka: KafkaSettings, recording_id: str, bar: Progress) -> Iterator[dict[str, object]]:
    """Chain values that are on the topic now, of one recording or, with an empty id, of all. Unreadable if Kafka does not answer."""
    consumer = Consumer(client_config(kafka) | {"group.id": "sightline-anchors", "enable.auto.commit": False, "enable.partition.eof": True})
    try:
        partitions = consumer.list_topics(MEDIA_CHAIN.name, timeout=_BROKER_S).topics[MEDIA_CHAIN.name].partitions
        spans = {
            number: consumer.get_watermark_offsets(TopicPartition(MEDIA_CHAIN.name, number), timeout=_BROKER_S) for number in partitions
        }
        task = bar.add_task("chain heads", total=sum(high - low for low, high in spans.values()))
        consumer.assign([TopicPartition(MEDIA_CHAIN.name, number, low) for number, (low, high) in spans.items() if high > low])
        waiting = {number for number, (low, high) in spans.items() if high > low}
        while waiting:
            messages = consumer.consume(500, timeout=_BROKER_S)
            if not messages:
                raise Unreadable(f"Kafka at {kafka.bootstrap} is silent; what was written is not all")
            for message in messages:
                number, offset, error = message.partition() or 0, message.offset() or 0, message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise Unreadable(f"Kafka at {kafka.bootstrap}: {error}; what was written is not all")
                if error is None and offset < spans[number][1]:
                    bar.advance(task)
                    if (head := _head(message.value())) is not None and recording_id in ("", head.recording_id):
                        yield {
                            "recording_id": head.recording_id, "segment_id": head.segment_id, "piece": head.piece,
                            "chain": head.chain.hex(), "received_at": head.received_at.ToJsonString(),
                        }  # fmt: skip
                if error is not None or offset + 1 >= spans[number][1]:
                    waiting.discard(number)
    except KafkaException as error:
        raise Unreadable(f"Kafka at {kafka.bootstrap} does not answer: {error}") from error
    finally:
        consumer.close()


def _head(value: bytes | None) -> ChainHead | None:
    """A record; None for one that is none, which every topic may have."""
    try:
        return ChainHead.FromString(value or b"")
    except DecodeError:
        return None


def in_words(found: GetRecordingResponse) -> list[str]:
    """A recording in lines: what becomes of it, who holds it, what is missing."""
    recording = found.recording
    state = pb.RecordingState.Name(recording.state).removeprefix("RECORDING_STATE_").lower()
    fate = {
        pb.RECORDING_STATE_KEPT: "held, whatever its age" if recording.held else f"kept until {_when(recording.retain_until)}",
        pb.RECORDING_STATE_MARKED: f"marked; deleted after {_when(recording.delete_after)} unless somebody holds it",
        pb.RECORDING_STATE_DELETED: f"deleted {_when(recording.deleted_at)}",
    }.get(recording.state, state)
    lines = [f"{recording.camera_id} of {recording.officer_id}, begun {_when(recording.began_at)}: {fate}"]
    for hold in found.holds:
        reason = pb.HoldReason.Name(hold.reason).removeprefix("HOLD_REASON_").lower()
        end = f", released {_when(hold.released_at)} by {hold.released_by.id}: {hold.release_note}" if hold.HasField("released_at") else ""
        lines.append(f"hold {hold.hold_id} ({reason}: {hold.note}) by {hold.placed_by.id} {_when(hold.placed_at)}{end}")
    lines += [f"nothing from {_when(getattr(gap, 'from'))} to {_when(gap.until)}" for gap in found.gaps]
    return lines


def segment_cells(segment: pb.Segment) -> tuple[str, ...]:
    """A row of the table."""
    seen = f"{_when(segment.captured_from)} to {_when(segment.captured_until)}" if segment.HasField("captured_from") else "not said"
    gone = _when(segment.deleted_at) if segment.HasField("deleted_at") else ""
    return segment.segment_id, f"relay-{segment.relay_id}", str(segment.pieces), f"{segment.bytes:,}", seen, segment.chain.hex()[:16], gone


def _when(at: Timestamp) -> str:
    return f"{at.ToDatetime(UTC):%Y-%m-%d %H:%M:%S}"
