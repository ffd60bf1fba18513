"""The emergency service's gRPC face: protobuf in, use case, protobuf out."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from chassis import telemetry
from chassis.bus import TRANSIENT
from chassis.clock import Clock, read_duration, read_time, stamp
from chassis.errors import Unavailable
from chassis.names import is_uuid, on_wire, readable
from chassis.paging import page_cursor, page_token
from chassis.rpc import caller, ignored
from sightline.activation.v1.activation_pb2 import ActivationResult
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from sightline.emergency.v1 import emergency_pb2
from sightline.emergency.v1 import emergency_service_pb2 as pb
from sightline.emergency.v1.emergency_service_pb2_grpc import EmergencyServiceServicer

from services.emergency.events import from_radio, to_emergency
from services.emergency.model import Disposition, Place, Press, Status, press_names, read_clocks
from services.emergency.service import EmergencyService, Seen, Viewed, who_of

_DEFAULT_PAGE, _SCAN_PAGE = 50, 2000
# Watchers are told of changes at once by their own replica, and of other replicas' within this time.
_LOOK_EVERY_S, _REST_S = 0.2, 0.04
# A look at what has just changed is cheap; one at everything, once in a while, finds what took long to commit.
_JUST_NOW, _LATELY = timedelta(seconds=3), timedelta(minutes=1)
_LOOK_AT_ALL_EVERY_S = 1.0
_WATCHERS_AT_MOST = 1000
_ALIAS, _NOTE = 64, 500  # characters at the most
_ZERO = timedelta(0)


class Watchtower:
    """Looks at the database for all watchers of this replica, once for all, so that banners outlive Kafka."""

    def __init__(self, service: EmergencyService) -> None:
        self._service = service
        self._shown: dict[str, tuple[Seen, Viewed]] = {}
        self._looked, self._looking, self._generation = asyncio.Condition(), asyncio.Lock(), 0
        self._watched, self._watchers = asyncio.Event(), 0

    async def look(self) -> None:
        """For ever, while anybody watches: find out what has changed, and wake the watchers."""
        looked_at_all = 0.0
        while True:
            await self._watched.wait()
            try:
                self._service.changed.clear()
                at_all = time.monotonic() - looked_at_all > _LOOK_AT_ALL_EVERY_S
                await self._look(at_all=at_all)
                looked_at_all = time.monotonic() if at_all else looked_at_all
            except TRANSIENT as error:
                telemetry.log().warning("watchers wait", error=str(error))
                await asyncio.sleep(_LOOK_EVERY_S)
            await asyncio.sleep(_REST_S)  # changes that come together are one look
            try:
                await asyncio.wait_for(self._service.changed.wait(), _LOOK_EVERY_S)
            except TimeoutError:
                continue

    async def _look(self, *, at_all: bool) -> None:
        """Read what has changed since the last look, and wake the watchers; one look at a time."""
        async with self._looking:
            if await self._read(at_all=at_all):
                async with self._looked:
                    self._generation += 1
                    self._looked.notify_all()

    async def _read(self, *, at_all: bool) -> bool:
        """True if anything has changed; what has long been cleared is forgotten."""
        # What we show as open is asked for by name: the commit of its clear may have waited for longer than anything counts as lately.
        open_here = [key for key, (_, (emergency, _)) in self._shown.items() if emergency.is_open] if at_all else []
        found = await self._service.seen(_LATELY if at_all else _JUST_NOW, and_open=at_all, also=open_here)
        seen = {each.emergency_id: each for each in found}
        changed = [key for key, each in seen.items() if key not in self._shown or self._shown[key][0].shown != each.shown]
        gone = [key for key in self._shown if key not in seen] if at_all else []
        for view in await self._service.viewed(changed) if changed else []:
            self._shown[view[0].emergency_id] = seen[view[0].emergency_id], view
        for key in gone:
            self._shown.pop(key, None)
        return bool(changed)

    async def changes(self, agency_id: str) -> AsyncIterator[list[Viewed]]:
        """First what is there, then what changes. A slow watcher gets the newest state, never a queue."""
        if self._watchers >= _WATCHERS_AT_MOST:
            raise Unavailable(Reason.ERROR_REASON_GOING_AWAY, "this replica has enough watchers; connect again")
        self._watchers += 1
        self._watched.set()
        known: dict[str, int] = {}
        try:
            await self._look(at_all=True)  # nobody may have looked for a while
            while True:
                generation = self._generation  # before we look: what comes while we send is not missed
                of_agency = {key: each for key, each in self._shown.items() if each[0].agency_id == agency_id}
                news = [view for key, (seen, view) in of_agency.items() if known.get(key) != seen.shown]
                # What left the picture while this watcher was slow has been cleared, and the watcher must hear it.
                missed = [key for key in known if key not in of_agency]
                unseen = await self._service.viewed(missed) if missed else []
                known = {key: seen.shown for key, (seen, _) in of_agency.items()}
                yield news + unseen
                async with self._looked:
                    await self._looked.wait_for(lambda seen=generation: self._generation != seen)  # type: ignore[misc]
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._watched.clear()


class EmergencyApi(EmergencyServiceServicer):
    """Serves sightline.emergency.v1.EmergencyService."""

    def __init__(self, service: EmergencyService, watchtower: Watchtower, clock: Clock) -> None:
        self._service, self._watchtower, self._clock = service, watchtower, clock

    async def RaiseAlarm(self, request: pb.RaiseAlarmRequest, context: Any) -> pb.RaiseAlarmResponse:
        """Take one press."""
        press = self._press(request)
        answer = await self._service.raise_alarm(press)
        outcome = on_wire(pb.PressOutcome, "PRESS_OUTCOME", answer.outcome)
        return pb.RaiseAlarmResponse(
            emergency_id=answer.emergency_id, version=answer.version, outcome=outcome, ignored_fields=press.ignored
        )

    def _press(self, request: pb.RaiseAlarmRequest) -> Press:
        times = {name: read_time(getattr(request, name)) for name in ("received_at", "sent_at", "source_time") if request.HasField(name)}
        waited, gateway, radio = _waited(request), who_of(caller().actor), from_radio(request.radio)
        alias, alias_is_whole = readable(request.radio_alias, _ALIAS)
        place = request.position
        accuracy = place.accuracy_m if place.HasField("accuracy_m") else None
        left_out = {
            **{name: at is None for name, at in times.items()},
            "waited": waited is None and request.HasField("waited"),
            "radio_alias": not alias_is_whole,
        }
        received, sent, source = (times.get(name) for name in ("received_at", "sent_at", "source_time"))
        return Press(
            names=press_names(gateway.agency_id, radio, request.request_id, _counter(request), received),
            request_id=request.request_id.lower(),
            radio=radio,
            clocks=read_clocks(
                received, sent, source, self._clock.now(), self._service.age_gate, waited=waited, unreadable=None in times.values()
            ),
            status=Status.EXERCISE if request.status == emergency_pb2.ALARM_STATUS_EXERCISE else Status.ACTUAL,
            gateway=gateway,
            radio_alias=alias,
            talkgroup_id=request.talkgroup_id,
            position=Place(place.latitude, place.longitude, accuracy) if request.HasField("position") else None,
            traceparent=telemetry.traceparent(),
            ignored=(*ignored(), *(name for name, is_so in left_out.items() if is_so)),
        )

    async def CancelAlarm(self, request: pb.CancelAlarmRequest, context: Any) -> pb.CancelAlarmResponse:
        """Note that the wearer took a press back."""
        radio, named = from_radio(request.radio), request.press_request_id.lower()
        gateway = who_of(caller().actor)
        note, note_is_whole = readable(request.note, _NOTE)
        found = await self._service.cancel_alarm(
            gateway, radio, press_names(gateway.agency_id, radio, named, _counter(request)), named if is_uuid(named) else "", note
        )
        return pb.CancelAlarmResponse(emergency_id=found, ignored_fields=[*ignored(), *([] if note_is_whole else ["note"])])

    async def Acknowledge(self, request: pb.AcknowledgeRequest, context: Any) -> pb.AcknowledgeResponse:
        """The caller takes the emergency."""
        emergency = await self._service.acknowledge(caller(), request.emergency_id, request.note)
        return pb.AcknowledgeResponse(emergency=to_emergency(emergency))

    async def Clear(self, request: pb.ClearRequest, context: Any) -> pb.ClearResponse:
        """The caller ends the emergency."""
        disposition = Disposition(emergency_pb2.Disposition.Name(request.disposition).removeprefix("DISPOSITION_"))
        emergency = await self._service.clear(caller(), request.emergency_id, disposition, request.note, request.expected_version)
        return pb.ClearResponse(emergency=to_emergency(emergency))

    async def BindSubject(self, request: pb.BindSubjectRequest, context: Any) -> pb.BindSubjectResponse:
        """The caller names the officer."""
        emergency = await self._service.bind_subject(
            caller(), request.emergency_id, request.officer_id, request.note, request.expected_version
        )
        return pb.BindSubjectResponse(emergency=to_emergency(emergency))

    async def MarkNotInvolved(self, request: pb.MarkNotInvolvedRequest, context: Any) -> pb.MarkNotInvolvedResponse:
        """The caller says that an earlier officer needs no help."""
        emergency = await self._service.mark_not_involved(
            caller(), request.emergency_id, request.officer_id, request.note, request.expected_version
        )
        return pb.MarkNotInvolvedResponse(emergency=to_emergency(emergency))

    async def GetEmergency(self, request: pb.GetEmergencyRequest, context: Any) -> pb.GetEmergencyResponse:
        """One emergency with its activations."""
        emergency, results = await self._service.get(caller(), request.emergency_id)
        return pb.GetEmergencyResponse(emergency=to_emergency(emergency), activations=map(ActivationResult.FromString, results))

    async def ListEmergencies(self, request: pb.ListEmergenciesRequest, context: Any) -> pb.ListEmergenciesResponse:
        """A page of emergencies, newest first; a Sightline service sees all agencies'."""
        agency = None if caller().machine.kind == "service" else caller().agency_id
        is_open = {emergency_pb2.EMERGENCY_STATE_OPEN: True, emergency_pb2.EMERGENCY_STATE_CLEARED: False}.get(request.state)
        query, size = f"ListEmergencies/{agency}/{is_open}", request.page_size or _DEFAULT_PAGE
        found = await self._service.page(agency, is_open, page_cursor(query, request.page_token), size)
        token = page_token(query, found[-1].emergency_id) if len(found) == size else ""
        return pb.ListEmergenciesResponse(emergencies=map(to_emergency, found), next_page_token=token)

    async def ScanOpenEmergencies(self, request: pb.ScanOpenEmergenciesRequest, context: Any) -> pb.ScanOpenEmergenciesResponse:
        """What is open in all agencies, in short."""
        found = await self._service.scan_open(request.after_emergency_id, _SCAN_PAGE)
        now = self._clock.now()
        response = pb.ScanOpenEmergenciesResponse(more=len(found) == _SCAN_PAGE, now=stamp(now))
        for each in found:
            short = response.emergencies.add(emergency_id=each.emergency_id, version=each.version, epoch=each.epoch)
            short.epoch_age.FromTimedelta(now - each.epoch_started_at)
        return response

    async def WatchEmergencies(self, request: pb.WatchEmergenciesRequest, context: Any) -> AsyncIterator[pb.WatchEmergenciesResponse]:
        """The caller's agency's emergencies: what is there, then what changes."""
        first = True
        async for changed in self._watchtower.changes(caller().agency_id):
            for emergency, results in changed:
                yield pb.WatchEmergenciesResponse(emergency=to_emergency(emergency), activations=map(ActivationResult.FromString, results))
            if first:
                yield pb.WatchEmergenciesResponse(snapshot_complete=True)
                first = False


def _waited(request: pb.RaiseAlarmRequest) -> timedelta | None:
    """How long the alarm lay at the gateway; None if it does not say, or nothing that can be."""
    waited = read_duration(request.waited) if request.HasField("waited") else None
    return waited if waited is not None and waited >= _ZERO else None


def _counter(request: pb.RaiseAlarmRequest | pb.CancelAlarmRequest) -> tuple[int, int] | None:
    return (request.press.counter, request.press.boot_epoch) if request.HasField("press") else None
