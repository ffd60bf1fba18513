"""Accounts of relays and grants, in; alerts, out; protobuf <-> model."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from chassis.bus import Received, Record, parse
from chassis.clock import stamp
from chassis.db import Transaction
from chassis.errors import PoisonError
from chassis.names import are_names, is_uuid, on_wire
from contracts.topics import AUDIT_ALERT, MEDIA_SERVED, STREAM_GRANT
from sightline.audit.v1 import alert_pb2 as pb
from sightline.media.v1.served_pb2 import ServedAccount
from sightline.streams.v1.session_pb2 import GrantEndCause, GrantEvent

from services.audit.oversight.model import Alert, Granted, Served
from services.audit.oversight.service import OversightService

_BYTES = 2**63


def to_served(account: ServedAccount) -> Served:
    """A relay's word; PoisonError if it is none."""
    _check(account.grant_id, account.bytes)
    return Served(account.grant_id, account.bytes, _time(account, "last_byte_at"), account.HasField("ended_at"))


def to_granted(event: GrantEvent) -> Granted:
    """What is said of a grant; PoisonError if it is none."""
    grant = event.grant
    _check(grant.grant_id, grant.bytes, grant.version)
    if not are_names(grant.agency_id):
        raise PoisonError("a grant of no agency")
    known = grant.end_cause in GrantEndCause.values()
    cause = GrantEndCause.Name(grant.end_cause).removeprefix("GRANT_END_CAUSE_") if known else str(grant.end_cause)
    revoked_at, ended_at = _time(grant, "revoked_at"), _time(grant, "ended_at")
    return Granted(grant.grant_id, grant.version, grant.agency_id, grant.bytes, revoked_at, cause, ended_at)


def _check(grant_id: str, *numbers: int) -> None:
    if not is_uuid(grant_id) or not all(number < _BYTES for number in numbers):
        raise PoisonError("an account of no grant, or of impossible numbers")


def _time(message: Any, name: str) -> datetime | None:
    try:
        found: datetime | None = getattr(message, name).ToDatetime(UTC) if message.HasField(name) else None
    except (ValueError, OverflowError) as error:
        raise PoisonError(f"{name} is no time: {error}") from error
    return found


class AccountReader:
    """Takes in what relays and the giver of grants say."""

    topics = (MEDIA_SERVED, STREAM_GRANT)

    def __init__(self, service: OversightService) -> None:
        self._service = service

    async def __call__(self, batch: Sequence[Received]) -> None:
        """Handle records of `media.served` and `stream.grant`."""
        served = [to_served(parse(ServedAccount, each.value)) for each in batch if each.topic == MEDIA_SERVED.name]
        granted = [to_granted(parse(GrantEvent, each.value)) for each in batch if each.topic == STREAM_GRANT.name]
        if served:
            await self._service.take_served(served)
        if granted:
            await self._service.take_granted(granted)


def to_alert(alert: Alert) -> pb.Alert:
    """The alert's wire form: whom it concerns is not in it."""
    return pb.Alert(
        alert_id=alert.alert_id,
        rule=on_wire(pb.AlertRule, "ALERT_RULE", alert.rule),
        agency_id=alert.agency_id,
        explanation=alert.explanation,
        evidence=alert.evidence,
        raised_at=stamp(alert.raised_at),
        due_at=stamp(alert.due_at),
        reviewer=alert.reviewer,
        outcome=on_wire(pb.AlertOutcome, "ALERT_OUTCOME", alert.outcome),
        resolved_at=stamp(alert.resolved_at),
        resolved_by=alert.resolved_by,
    )


class AlertAnnouncer:
    """Publishes alerts with the transaction that changed them."""

    def announce(self, tx: Transaction, alert: Alert) -> None:
        """Publish the snapshot with the transaction."""
        event, subject = pb.AlertEvent(alert=to_alert(alert)), f"alerts/{alert.alert_id}"
        tx.emit(Record.of(AUDIT_ALERT, alert.alert_id.encode(), event, source="audit", subject=subject))
