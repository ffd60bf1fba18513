"""The registry's use cases. What the store must offer is `store.Store`, which speaks all the SQL."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Protocol

from chassis.audit import Audit, Entry
from chassis.clock import Clock
from chassis.db import Database, Transaction
from chassis.errors import AlreadyExists, Forbidden, InvalidRequest, NotFound, Unavailable, WrongState
from chassis.identity import Caller
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from services.registry.model import (
    HIDDEN_LOOK_BACK,
    LOOK_BACK,
    Agency,
    Camera,
    Change,
    Conflict,
    Duty,
    FixedCamera,
    Officer,
    OnDuty,
    Radio,
    RadioId,
    RosterEntry,
    Span,
    Vehicle,
    change,
    shift,
)

_TRICKLE_BATCH = 200


class Registry(Protocol):
    """What the use cases need of the store; `store.Store` describes each."""

    async def add_agency(self, tx: Transaction, agency: Agency) -> bool: ...
    async def add_officer(self, tx: Transaction, officer: Officer) -> bool: ...
    async def add_camera(self, tx: Transaction, camera: Camera) -> bool: ...
    async def add_radio(self, tx: Transaction, radio: Radio) -> int | None: ...
    async def kept(self, tx: Transaction, thing: Officer | Radio | Camera) -> Officer | Radio | Camera | None: ...
    async def rename(self, tx: Transaction, thing: Officer | Radio | Camera) -> None: ...
    async def put_device(self, tx: Transaction, device: Vehicle | FixedCamera) -> int | None: ...
    async def agency_exists(self, tx: Transaction, agency_id: str) -> bool: ...
    async def officer(self, tx: Transaction, officer_id: str, *, lock: bool = False) -> tuple[int, Officer] | None: ...
    async def lock_officers(self, tx: Transaction, officers: Sequence[int]) -> None: ...
    async def radio_keys(self, tx: Transaction, identities: Sequence[RadioId]) -> list[tuple[int, str] | None]: ...
    async def camera_keys(self, tx: Transaction, camera_ids: Sequence[str]) -> dict[str, tuple[int, str]]: ...
    async def hold(
        self, tx: Transaction, officer: int, radios: Sequence[int], cameras: Sequence[int], unit: str, span: Span, visible_to: str = ""
    ) -> None: ...
    async def release(self, tx: Transaction, officer: int, at: datetime) -> tuple[list[int], list[str]]: ...
    async def holders(self, tx: Transaction, radios: Sequence[int], cameras: Sequence[int], at: datetime) -> list[int]: ...
    async def take_over(
        self, tx: Transaction, officer: int, radios: Sequence[int], cameras: Sequence[int], at: datetime
    ) -> list[Conflict]: ...
    async def touch(self, tx: Transaction, officers: Sequence[int], since: datetime, also: Sequence[int] = ()) -> list[int]: ...
    async def duties(
        self, tx: Transaction, radio_keys: Sequence[int], since: datetime, hidden_since: datetime | None = None
    ) -> list[Duty]: ...
    async def duty_of(self, tx: Transaction, radio: RadioId, agency_id: str, since: datetime) -> tuple[Duty | None, bool]: ...
    async def due(self, tx: Transaction, before: datetime, limit: int) -> list[int]: ...
    async def carried(self, tx: Transaction, officer: int, at: datetime) -> tuple[tuple[str, ...], str]: ...
    async def on_duty(self, tx: Transaction, agency_id: str, after: str, limit: int, at: datetime) -> list[OnDuty]: ...


class Announcer(Protocol):
    """Tells the world about duty and device records."""

    def announce(self, tx: Transaction, duties: Sequence[Duty], now: datetime) -> None:
        """Publish with the transaction."""
        ...

    def announce_device(self, tx: Transaction, device: Vehicle | FixedCamera, version: int) -> None:
        """Publish with the transaction."""
        ...


class RegistryService:
    """Agencies, officers, devices and shifts."""

    def __init__(self, database: Database, store: Registry, announcer: Announcer, audit: Audit, clock: Clock) -> None:
        self._database, self._store, self._announcer = database, store, announcer
        self._audit, self._clock = audit, clock

    async def create_agency(self, caller: Caller, agency: Agency) -> None:
        """Register an agency."""
        async with self._database.transaction() as tx:
            if await self._store.add_agency(tx, agency):
                self._note(tx, caller, "agency.created", f"agencies/{agency.agency_id}", agency.agency_id)

    async def create_officer(self, caller: Caller, officer: Officer) -> None:
        """Register an officer."""
        async with self._database.transaction() as tx:
            await self._require_agency(tx, caller, officer.agency_id)
            if await self._store.add_officer(tx, officer):
                self._note(tx, caller, "officer.created", f"officers/{officer.officer_id}", officer.agency_id)

    async def register_radio(self, caller: Caller, radio: Radio) -> None:
        """Register a radio and announce its (empty) duty record."""
        async with self._database.transaction() as tx:
            await self._require_agency(tx, caller, radio.agency_id)
            key = await self._store.add_radio(tx, radio)
            if key is not None:
                await self._announce(tx, [key])
                self._note(tx, caller, "radio.registered", f"radios/{radio.identity}", radio.agency_id)

    async def register_camera(self, caller: Caller, camera: Camera) -> None:
        """Register a camera."""
        async with self._database.transaction() as tx:
            await self._require_agency(tx, caller, camera.agency_id)
            if await self._store.add_camera(tx, camera):
                self._note(tx, caller, "camera.registered", f"cameras/{camera.camera_id}", camera.agency_id)

    async def register_device(self, caller: Caller, device: Vehicle | FixedCamera) -> None:
        """Register a vehicle or a fixed camera, or what has changed about it."""
        kind, name = ("vehicle", device.vehicle_id) if isinstance(device, Vehicle) else ("fixed_camera", device.camera_id)
        async with self._database.transaction() as tx:
            await self._require_agency(tx, caller, device.agency_id)
            version = await self._store.put_device(tx, device)
            if version is not None:
                self._announcer.announce_device(tx, device, version)
                details = {"unit": device.unit_id} if isinstance(device, Vehicle) else {"at": f"{device.latitude} {device.longitude}"}
                self._note(tx, caller, f"{kind}.registered", f"{kind}s/{name}", device.agency_id, details)

    async def import_roster(
        self, caller: Caller, agency_id: str, entries: Sequence[RosterEntry], *, update: bool = False
    ) -> tuple[dict[int, str], int]:
        """Register what is not there yet; what is wrong with an entry, by its place, and how many things are new.

        With `update` what is there with another name, alias or model gets the entry's.
        """
        problems: dict[int, str] = {}
        created = 0
        async with self._database.transaction() as tx:
            await self._require_agency(tx, caller, agency_id)
            for place, entry in enumerate(entries):
                if entry.agencies() - {agency_id}:
                    problems[place] = f"not of agency {agency_id}"
                    continue
                try:
                    async with tx.part():
                        if update:
                            await self._rename(tx, caller, entry)
                        created += await self._import(tx, caller, entry)
                except AlreadyExists as error:
                    problems[place] = error.message
        return problems, created

    async def preview_roster(
        self, caller: Caller, agency_id: str, entries: Sequence[RosterEntry], *, update: bool = False
    ) -> tuple[dict[int, str], list[tuple[int, Change]]]:
        """What an import would find wrong with entries, by their place, and what it would add or finds different; changes nothing."""
        problems: dict[int, str] = {}
        changes: list[tuple[int, Change]] = []
        async with self._database.transaction() as tx:
            with suppress(NotFound):  # an agency that is not there yet has nothing
                await self._require_agency(tx, caller, agency_id)
            for place, entry in enumerate(entries):
                try:
                    found = [change(thing, await self._store.kept(tx, thing)) for thing in entry.things()]
                except AlreadyExists as error:
                    problems[place] = error.message
                    continue
                if entry.agencies() - {agency_id}:
                    problems[place] = f"not of agency {agency_id}"
                    continue
                if not update and (other := [each.what for each in found if each and each.before is not None]):
                    problems[place] = f"{', '.join(other)}: there with other content, which only an update changes"
                changes += [(place, each) for each in found if each]
        return problems, changes

    async def _rename(self, tx: Transaction, caller: Caller, entry: RosterEntry) -> None:
        for thing in entry.things():
            found = change(thing, await self._store.kept(tx, thing))
            if found and found.before is not None:
                await self._store.rename(tx, thing)
                about = {"before": found.before, "after": found.after}
                self._note(tx, caller, "roster.renamed", found.what, thing.agency_id, about)

    async def _import(self, tx: Transaction, caller: Caller, entry: RosterEntry) -> int:
        """One entry, whole or not at all; returns how many things are new."""
        created = 0
        if entry.officer and await self._store.add_officer(tx, entry.officer):
            created += 1
            self._note(tx, caller, "officer.created", f"officers/{entry.officer.officer_id}", entry.officer.agency_id)
        if entry.radio and (key := await self._store.add_radio(tx, entry.radio)) is not None:
            created += 1
            await self._announce(tx, [key])
            self._note(tx, caller, "radio.registered", f"radios/{entry.radio.identity}", entry.radio.agency_id)
        for camera in entry.cameras:
            if await self._store.add_camera(tx, camera):
                created += 1
                self._note(tx, caller, "camera.registered", f"cameras/{camera.camera_id}", camera.agency_id)
        return created

    async def check_out(
        self,
        caller: Caller,
        officer_id: str,
        radios: Sequence[RadioId],
        cameras: Sequence[str],
        unit: str,
        times: tuple[datetime | None, datetime | None],
        visible_to: str = "",
        *,
        take_over: bool = False,
    ) -> tuple[list[int], list[Conflict]]:
        """Start a shift; returns the new duty version of each radio asked for, and what was taken over.

        `visible_to` alone may see where the officer is. With `take_over` whoever still holds one of these things, as after a forgotten
        check-in, holds it no longer than until this shift's start.
        """
        span = shift(*times, self._clock.now())
        taken: list[Conflict] = []
        async with self._database.transaction() as tx:
            key, officer = await self._officer(tx, caller, officer_id)
            radio_keys = self._of_agency(officer, "radio", radios, await self._store.radio_keys(tx, radios))
            known = await self._store.camera_keys(tx, cameras)
            camera_keys = self._of_agency(officer, "camera", cameras, [known.get(camera) for camera in cameras])
            officers = {key, *(await self._store.holders(tx, radio_keys, camera_keys, span.start) if take_over else ())}
            await self._store.lock_officers(tx, sorted(officers))
            if take_over:
                if not officers >= set(await self._store.holders(tx, radio_keys, camera_keys, span.start)):
                    raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "these things have just changed hands; look again")
                taken = await self._store.take_over(tx, key, radio_keys, camera_keys, span.start)
            await self._store.hold(tx, key, radio_keys, camera_keys, unit, span, visible_to)
            duties = await self._announce(tx, await self._store.touch(tx, sorted(officers), self._window(), radio_keys))
            for each in taken:
                about = {
                    "officer": each.holder,
                    "by": officer_id,
                    "from": span.start.isoformat(),
                    "held_since": each.span.start.isoformat(),
                }
                self._note(tx, caller, "shift.taken_over", f"{each.kind}s/{each.name}", officer.agency_id, about)
            details = {"radios": str(len(radios)), "cameras": ",".join(cameras), "unit": unit, "from": span.start.isoformat()}
            if visible_to:
                details["visible_to"] = visible_to
            self._note(tx, caller, "shift.checked_out", f"officers/{officer_id}", officer.agency_id, details)
        versions = {duty.radio: duty.version for duty in duties}
        return [versions.get(radio, 0) for radio in radios], taken

    async def check_in(self, caller: Caller, officer_id: str, at: datetime | None) -> tuple[list[RadioId], list[str]]:
        """End a shift; returns what was given back."""
        now = self._clock.now()
        at = at or now
        if at > now + timedelta(seconds=1):
            raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, "at: lies in the future", violations={"at": "lies in the future"})
        async with self._database.transaction() as tx:
            key, officer = await self._officer(tx, caller, officer_id, lock=True)
            radio_keys, cameras = await self._store.release(tx, key, at)
            if not radio_keys and not cameras:
                raise WrongState(Reason.ERROR_REASON_SHIFT_STATE, "the officer holds nothing at that time")
            await self._announce(tx, await self._store.touch(tx, [key], self._window(), radio_keys))
            radios = [duty.radio for duty in await self._store.duties(tx, radio_keys, now)]
            details = {"radios": str(len(radios)), "cameras": ",".join(cameras), "at": at.isoformat()}
            self._note(tx, caller, "shift.checked_in", f"officers/{officer_id}", officer.agency_id, details)
        return radios, cameras

    async def list_officers(self, caller: Caller, agency_id: str, after: str, limit: int) -> list[OnDuty]:
        """A page of an agency's officers, ordered by id, that come after an id."""
        if not _may_manage(caller, agency_id):
            raise Forbidden(Reason.ERROR_REASON_OTHER_AGENCY, "you do not act for this agency")
        async with self._database.transaction() as tx:
            return await self._store.on_duty(tx, agency_id, after, limit, self._clock.now())

    async def resolve_radio(self, radio: RadioId, at: datetime, agency_id: str) -> tuple[Duty | None, bool]:
        """The radio's duty, None if it is not registered; and whether the agency is registered."""
        async with self._database.transaction(snapshot=True) as tx:  # version and holds must be of one moment
            return await self._store.duty_of(tx, radio, agency_id, min(at, self._window()))

    async def resolve_officer(self, officer_id: str, at: datetime) -> tuple[Officer, tuple[str, ...], str]:
        """An officer, his or her cameras and unit at an instant."""
        async with self._database.transaction() as tx:
            found = await self._store.officer(tx, officer_id)
            if found is None:
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such officer")
            cameras, unit = await self._store.carried(tx, found[0], at)
            return found[1], cameras, unit

    async def trickle(self, period: timedelta) -> None:
        """Announce again the radios that are due. Heals whatever a reader has lost."""
        more = True
        while more:
            async with self._database.transaction() as tx:
                keys = await self._store.due(tx, self._clock.now() - period, _TRICKLE_BATCH)
                await self._announce(tx, keys)
            more = len(keys) == _TRICKLE_BATCH

    def _window(self) -> datetime:
        return self._clock.now() - LOOK_BACK

    async def _announce(self, tx: Transaction, keys: Sequence[int]) -> list[Duty]:
        now = self._clock.now()
        duties = await self._store.duties(tx, keys, now - LOOK_BACK, now - HIDDEN_LOOK_BACK) if keys else []
        self._announcer.announce(tx, duties, now)
        return duties

    async def _officer(self, tx: Transaction, caller: Caller, officer_id: str, *, lock: bool = False) -> tuple[int, Officer]:
        found = await self._store.officer(tx, officer_id, lock=lock)
        # The same answer for "not there" and "not yours", so that nobody can try out names.
        if found is None or not _may_manage(caller, found[1].agency_id):
            raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such officer")
        return found

    async def _require_agency(self, tx: Transaction, caller: Caller, agency_id: str) -> None:
        if not _may_manage(caller, agency_id):
            raise Forbidden(Reason.ERROR_REASON_OTHER_AGENCY, "you do not act for this agency")
        if not await self._store.agency_exists(tx, agency_id):
            raise NotFound(Reason.ERROR_REASON_AGENCY_UNKNOWN, f"agency {agency_id} is not registered")

    @staticmethod
    def _of_agency(officer: Officer, what: str, asked: Sequence[object], found: Sequence[tuple[int, str] | None]) -> list[int]:
        """Keys of the devices; NotFound unless all of them are of the officer's agency."""
        for name, device in zip(asked, found, strict=True):
            if device is None or device[1] != officer.agency_id:
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, f"no such {what}: {name}")
        return [device[0] for device in found if device]

    def _note(self, tx: Transaction, caller: Caller, action: str, target: str, agency: str, details: dict[str, str] | None = None) -> None:
        self._audit.record(tx, Entry(action, caller.actor, target, agency, details=details))


def _may_manage(caller: Caller, agency_id: str) -> bool:
    return caller.agency_id == agency_id or (caller.person is not None and "platform-admin" in caller.person.roles)
