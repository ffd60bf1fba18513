"""Sessions and grants to protobuf, and out to Kafka; who wears which camera, in."""

from collections.abc import Sequence
from datetime import UTC, datetime

from chassis.bus import Received, Record, parse
from chassis.clock import Clock, stamp
from chassis.db import Transaction
from chassis.errors import PoisonError
from chassis.names import on_wire
from contracts.topics import REGISTRY_DUTY, STREAM_GRANT, STREAM_SESSION
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from sightline.registry.v1.duty_pb2 import DutyRecord
from sightline.streams.v1 import session_pb2 as pb

from services.streams.sessions.model import Grant, Holding, Session
from services.streams.sessions.service import SessionsService

_ID = 63  # characters of a name at the most


def to_session(s: Session) -> pb.Session:
    """The session's wire form; without its token."""
    return pb.Session(
        session_id=s.session_id,
        version=s.version,
        agency_id=s.agency_id,
        camera_id=s.camera_id,
        officer_id=s.officer_id,
        emergency_id=s.emergency_id,
        epoch=s.epoch,
        relay_id=s.relay_id,
        state=on_wire(pb.SessionState, "SESSION_STATE", s.state),
        degraded=s.degraded,
        created_at=stamp(s.created_at),
        live_at=stamp(s.live_at),
        last_media_at=stamp(s.last_media_at),
        ended_at=stamp(s.ended_at),
        end_cause=on_wire(pb.SessionEndCause, "SESSION_END_CAUSE", s.end_cause),
        audio_muted=s.audio_muted,
        not_kept_at=stamp(s.not_kept_at),
        gaps=[pb.SessionGap(**{"from": stamp(since), "until": stamp(until)}) for since, until in s.gaps],
    )


def to_grant(g: Grant) -> pb.Grant:
    """The grant's wire form; without anything of its token."""
    return pb.Grant(
        grant_id=g.grant_id,
        version=g.version,
        session_id=g.session_id,
        camera_id=g.camera_id,
        emergency_id=g.emergency_id,
        agency_id=g.agency_id,
        viewer=Actor(kind=ActorKind.ACTOR_KIND_PERSON, id=g.viewer, agency_id=g.agency_id),
        issued_at=stamp(g.issued_at),
        redeemed_at=stamp(g.redeemed_at),
        expires_at=stamp(g.expires_at),
        revoked_at=stamp(g.revoked_at),
        end_cause=to_cause(g.end_cause),
        ended_at=stamp(g.ended_at),
        last_byte_at=stamp(g.last_byte_at),
        bytes=g.bytes,
        skipped=g.skipped,
    )


def to_cause(cause: str) -> pb.GrantEndCause.ValueType:
    """Wire form of why a grant is over; empty: it is not."""
    found: pb.GrantEndCause.ValueType = on_wire(pb.GrantEndCause, "GRANT_END_CAUSE", cause)
    return found


class SessionAnnouncer:
    """Publishes sessions and grants with the transaction that changed them; both by session, so that they stay in order."""

    def announce_session(self, tx: Transaction, session: Session) -> None:
        """Publish the snapshot with the transaction."""
        key, subject = session.session_id.encode(), f"sessions/{session.session_id}"
        tx.emit(Record.of(STREAM_SESSION, key, pb.SessionEvent(session=to_session(session)), source="streams", subject=subject))

    def announce_grant(self, tx: Transaction, grant: Grant) -> None:
        """Publish the snapshot with the transaction."""
        key, subject = grant.session_id.encode(), f"grants/{grant.grant_id}"
        tx.emit(Record.of(STREAM_GRANT, key, pb.GrantEvent(grant=to_grant(grant)), source="streams", subject=subject))


class DutyReader:
    """Takes in who holds what."""

    topics = (REGISTRY_DUTY,)

    def __init__(self, service: SessionsService, clock: Clock) -> None:
        self._service, self._clock = service, clock

    async def __call__(self, batch: Sequence[Received]) -> None:
        """Handle records of `registry.duty`; what a record says of now is compared with what streams."""
        now = self._clock.now()
        if holdings := [holding for received in batch for holding in _holdings(parse(DutyRecord, received.value), now)]:
            await self._service.hold(holdings)


def _holdings(record: DutyRecord, now: datetime) -> list[Holding]:
    names = [record.agency_id, *(name for each in record.intervals for name in (each.officer_id, *each.camera_ids))]
    if not all(len(name) <= _ID and "\0" not in name for name in names):
        raise PoisonError("a duty record with impossible names")
    told_at = record.published_at.ToDatetime(UTC)
    return [
        Holding(record.agency_id, camera_id, each.officer_id, told_at)
        for each in record.intervals
        if getattr(each, "from").ToDatetime(UTC) <= now and not (each.HasField("to") and each.to.ToDatetime(UTC) <= now)
        for camera_id in each.camera_ids
    ]
