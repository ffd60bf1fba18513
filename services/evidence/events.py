"""Sessions, chain heads, activations and emergencies in, recordings out; protobuf <-> model."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from chassis.bus import Received, Record, parse
from chassis.clock import stamp
from chassis.db import Transaction
from chassis.errors import PoisonError
from chassis.names import are_names, is_uuid, on_wire
from contracts.topics import ACTIVATION_RESULT, EMERGENCY_EVENT, EVIDENCE_RECORDING, MEDIA_CHAIN, STREAM_SESSION
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.activation.v1.activation_pb2 import ActivationResult
from sightline.common.v1.actor_pb2 import Actor
from sightline.emergency.v1.emergency_pb2 import (
    ALARM_STATUS_EXERCISE,
    DISPOSITION_EXERCISE,
    DISPOSITION_FALSE_ACTIVATION,
    DISPOSITION_SUPERSEDED_BY_ACTUAL,
    EmergencyEvent,
)
from sightline.evidence.v1 import recording_pb2 as pb
from sightline.media.v1.chain_pb2 import ChainHead
from sightline.streams.v1.session_pb2 import SessionEvent

from services.evidence.model import Activated, Hold, KnownEmergency, Recording, Segment, Streamed
from services.evidence.service import EvidenceService

_CHAIN, _NUMBER = 32, 2**62  # bytes of a chain value, and a count at the most
_HOLDS_TOLD, _SEGMENTS_TOLD = 20, 1000  # in one event, which has at most 256 KiB
_AHEAD = timedelta(days=1)  # a time that lies further in the future is none
_SEGMENT, _RELAY = re.compile(r"[0-9]{4}-(live|pre|late)"), re.compile(r"[a-z0-9-]{1,63}")
# Outcomes that hold nothing: the alarm was none, was a drill, or a real one has taken its place and holds by itself.
_SPARES = (DISPOSITION_EXERCISE, DISPOSITION_FALSE_ACTIVATION, DISPOSITION_SUPERSEDED_BY_ACTUAL)


def to_recording(r: Recording) -> pb.Recording:
    """The recording's wire form."""
    return pb.Recording(
        recording_id=r.recording_id, version=r.version, agency_id=r.agency_id, camera_id=r.camera_id, officer_id=r.officer_id,
        emergency_id=r.emergency_id, began_at=stamp(r.began_at), ended_at=stamp(r.ended_at),
        state=on_wire(pb.RecordingState, "RECORDING_STATE", r.state), retain_until=stamp(r.retain_until), held=r.held,
        delete_after=stamp(r.delete_after), deleted_at=stamp(r.deleted_at),
    )  # fmt: skip


def to_segment(s: Segment) -> pb.Segment:
    """The segment's wire form."""
    return pb.Segment(
        segment_id=s.segment_id, relay_id=s.relay_id, pieces=s.pieces, bytes=s.size, chain=s.chain, captured_from=stamp(s.captured_from),
        captured_until=stamp(s.captured_until), received_at=stamp(s.received_at), deleted_at=stamp(s.deleted_at),
    )  # fmt: skip


def to_hold(h: Hold) -> pb.Hold:
    """The hold's wire form."""
    return pb.Hold(
        hold_id=h.hold_id, reason=on_wire(pb.HoldReason, "HOLD_REASON", h.reason), note=h.note, placed_by=Actor.FromString(h.placed_by),
        placed_at=stamp(h.placed_at), released_by=Actor.FromString(h.released_by) if h.released_by else None,
        released_at=stamp(h.released_at), release_note=h.release_note,
    )  # fmt: skip


class RecordingAnnouncer:
    """Publishes recordings with the transaction that changed them."""

    def announce(self, tx: Transaction, recording: Recording, holds: Sequence[Hold], segments: Sequence[Segment]) -> None:
        """Publish the snapshot with the transaction."""
        there = [hold for hold in holds if hold.released_at is None][-_HOLDS_TOLD:]
        event = pb.RecordingEvent(
            recording=to_recording(recording), holds=map(to_hold, there), segments=map(to_segment, segments[:_SEGMENTS_TOLD])
        )
        key, subject = recording.recording_id.encode(), f"recordings/{recording.recording_id}"
        tx.emit(Record.of(EVIDENCE_RECORDING, key, event, source="evidence", subject=subject))


class FactReader:
    """Takes in what decides how long something is kept: sessions, activations, emergencies."""

    topics = (STREAM_SESSION, ACTIVATION_RESULT, EMERGENCY_EVENT)

    def __init__(self, service: EvidenceService) -> None:
        self._service = service
        self._take = {STREAM_SESSION.name: self._session, ACTIVATION_RESULT.name: self._activation, EMERGENCY_EVENT.name: self._emergency}

    async def __call__(self, received: Received) -> None:
        """Handle one record of any of them."""
        await self._take[received.topic](received.value)

    async def _session(self, value: bytes) -> None:
        session = parse(SessionEvent, value).session
        _check_ids(session.session_id, session.emergency_id)
        _check_names(session.agency_id, session.camera_id, session.officer_id)
        began_at = _time(session.created_at, session.HasField("created_at"))
        if began_at is None:
            raise PoisonError("a session without a beginning")
        ended_at = _time(session.ended_at, session.HasField("ended_at"))
        if session.version > 1 and ended_at is None:
            return  # says nothing that matters here, and there are many
        media_at = _time(session.last_media_at, session.HasField("last_media_at"))
        streamed = Streamed(
            session.session_id, session.agency_id, session.camera_id, session.officer_id, session.emergency_id, began_at, ended_at, media_at
        )
        await self._service.take_session(streamed, is_first=session.version == 1)

    async def _activation(self, value: bytes) -> None:
        result = parse(ActivationResult, value)
        since = _time(result.requested_at, result.HasField("requested_at"))
        if not result.camera_id or result.version > 1:
            return  # the first one names the camera
        _check_ids(result.emergency_id)
        _check_names(result.agency_id, result.camera_id, result.officer_id)
        if since is None:
            raise PoisonError("an activation without its time")
        activated = Activated(result.emergency_id, result.agency_id, result.camera_id, result.officer_id, since)
        await self._service.take_activated(activated, is_first=result.version == 1)

    async def _emergency(self, value: bytes) -> None:
        emergency = parse(EmergencyEvent, value).emergency
        _check_ids(emergency.emergency_id)
        _check_names(emergency.agency_id)
        if not 0 < emergency.version < _NUMBER:
            raise PoisonError("an emergency without a version")
        cleared_at = _time(emergency.cleared.at, emergency.HasField("cleared"))
        spares = emergency.disposition in _SPARES if cleared_at else emergency.status == ALARM_STATUS_EXERCISE
        if cleared_at is None and not spares:
            return  # unknown is as good as open
        known = KnownEmergency(emergency.emergency_id, emergency.version, emergency.agency_id, cleared_at, spares)
        await self._service.take_emergency(known)


class HeadReader:
    """Takes in chain values of what was kept."""

    topics = (MEDIA_CHAIN,)

    def __init__(self, service: EvidenceService) -> None:
        self._service = service

    async def __call__(self, batch: Sequence[Received]) -> None:
        """Handle records of `media.chain`."""
        await self._service.take_heads([_head(parse(ChainHead, received.value)) for received in batch])


def _head(head: ChainHead) -> Segment:
    _check_ids(head.recording_id)
    if not _SEGMENT.fullmatch(head.segment_id) or not _RELAY.fullmatch(head.relay_id):
        raise PoisonError("a chain head of no segment or of no relay")
    received_at = _time(head.received_at, head.HasField("received_at"))
    if received_at is None or len(head.chain) != _CHAIN or head.piece >= _NUMBER or head.bytes >= _NUMBER:
        raise PoisonError("a chain head without its time or value")
    return Segment(
        head.recording_id, head.segment_id, head.relay_id, head.piece + 1, head.bytes, head.chain, received_at,
        _captured(head.captured_from, head.HasField("captured_from")), _captured(head.captured_at, head.HasField("captured_at")),
    )  # fmt: skip


def _time(at: Timestamp, there: bool) -> datetime | None:
    try:
        found = at.ToDatetime(UTC) if there else None
    except (ValueError, OverflowError) as error:
        raise PoisonError(f"an impossible time: {error}") from error
    if found is not None and found > datetime.now(UTC) + _AHEAD:
        raise PoisonError(f"a time in the future: {found}")
    return found


def _captured(at: Timestamp, there: bool) -> datetime | None:
    """The camera's clock may say anything: what it cannot have been is not said."""
    try:
        return _time(at, there)
    except PoisonError:
        return None


def _check_ids(*ids: str) -> None:
    if not all(map(is_uuid, ids)):
        raise PoisonError("an id that is no UUID")


def _check_names(*names: str) -> None:
    if not are_names(*names):
        raise PoisonError("an impossible name")
