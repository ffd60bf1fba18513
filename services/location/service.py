"""Use cases of positions: fixes are taken or refused by name, kept as tracks for their time, and read by whom they concern."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from typing import NamedTuple, Protocol

from chassis import telemetry
from chassis.audit import Audit, Entry
from chassis.clock import Clock
from chassis.db import Database, Row, Statements, Transaction
from chassis.errors import NotFound
from chassis.identity import Caller
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from sightline.location.v1.position_pb2 import Refusal, Source, UnitKind

from services.location.model import Directory, Fix, Name, Point, Privacy, Taken, judge, points

Refused = tuple[int, Refusal.ValueType]  # place in the batch, why


class Report(NamedTuple):
    """What a device, or whoever speaks for it, tells; times in seconds since 1970. `ignored` are values that could not be right."""

    agency_id: str
    source: Source.ValueType
    device_id: str
    fix: Fix
    reported_at: float
    ignored: tuple[str, ...] = ()


class Store(Protocol):
    """What the use cases need of the store; `store.Store` describes each."""

    async def unit_keys(self, tx: Transaction, names: Iterable[Name]) -> dict[Name, int]: ...
    async def make_day(self, tx: Transaction, day: date) -> None: ...
    async def drop_days(self, db: Statements) -> list[date]: ...
    async def drop_latest(self, db: Statements) -> int: ...
    async def keep(self, tx: Transaction, rows: Sequence[tuple[int, Point]]) -> None: ...
    async def track(
        self, tx: Transaction, name: Name, groups: Sequence[str], span: tuple[datetime, datetime], after: tuple[datetime, int] | None,
        limit: int,
    ) -> list[Row]: ...  # fmt: skip
    async def unit_exists(self, tx: Transaction, name: Name) -> bool: ...
    async def privacies(self, db: Statements) -> dict[str, Privacy]: ...
    async def set_privacy(self, tx: Transaction, agency_id: str, privacy: Privacy) -> None: ...


class Publisher(Protocol):
    """Where taken positions go."""

    async def publish(self, positions: Sequence[Taken]) -> None:
        """Return once all are durable."""
        ...


class LocationService:
    """Intake, tracks, privacy."""

    def __init__(
        self, database: Database, store: Store, directory: Directory, publisher: Publisher, audit: Audit, clock: Clock, late_s: float
    ) -> None:
        """A fix may be `late_s` seconds old when it comes."""
        self._database, self._store, self._directory, self._publisher = database, store, directory, publisher
        self._audit, self._clock, self._late_s = audit, clock, late_s
        self._privacies: dict[str, Privacy] = {}
        self._keys: dict[Name, int] = {}
        self._days: set[date] = set()
        self.refused: Counter[Refusal.ValueType] = Counter()

    # --- intake ------------------------------------------------------------------------------------------------------

    async def take(self, reports: Sequence[Report | None], may: Callable[[Report], bool] = lambda _: True) -> list[Refused]:
        """Publish what can be taken, with who had the device; what is refused, and why. Off duty nothing is kept anywhere."""
        now = self._clock.now().timestamp()
        taken: list[Taken] = []
        refused: list[Refused] = []
        for place, report in enumerate(reports):
            if report is None:
                refused.append((place, Refusal.REFUSAL_INCOMPLETE))
            elif not may(report):
                refused.append((place, Refusal.REFUSAL_NOT_YOURS))
            else:
                agency, source, device, fix, reported_at, _ = report
                timeless = not fix.fixed_at  # counts as now; as nobody knows that, it is not shown
                fix = fix._replace(fixed_at=now) if timeless else fix
                found = judge(self._directory, source, agency, device, fix, now, self._late_s)
                if isinstance(found, tuple):
                    taken.append(Taken(agency, source, device, found[0], fix, reported_at or now, now, found[1] or timeless))
                else:
                    refused.append((place, found))
        await self._publisher.publish(taken)
        self.refused.update(why for _, why in refused)
        return refused

    async def report_refusals(self) -> None:
        """Say how many fixes have been refused since the last time, and why; never whose."""
        counts, self.refused = self.refused, Counter()
        if counts:
            telemetry.log().warning("fixes refused", **{Refusal.Name(why).removeprefix("REFUSAL_"): n for why, n in counts.items()})

    # --- tracks ------------------------------------------------------------------------------------------------------

    async def keep(self, batch: Sequence[Taken]) -> None:
        """Add to the tracks. The same positions again change nothing."""
        today = self._clock.now().date()
        found = [point for taken in batch for point in points(taken, self.privacy(taken.agency_id)) if point.delete_on > today]
        async with self._database.transaction() as tx:
            days = {point.delete_on for point in found} - self._days
            for day in sorted(days):
                await self._store.make_day(tx, day)
            new = {name for point in found if (name := (point.agency_id, point.kind, point.unit_id)) not in self._keys}
            keys = self._keys | await self._store.unit_keys(tx, new) if new else self._keys
            await self._store.keep(tx, [(keys[point.agency_id, point.kind, point.unit_id], point) for point in found])
        self._days |= days
        self._keys = keys

    async def sweep(self) -> None:
        """Delete the tracks that are due, and newest fixes that nobody has renewed for a day."""
        async with self._database.statements() as db:
            if dropped := await self._store.drop_days(db):
                telemetry.log().info("tracks deleted", days=[day.isoformat() for day in dropped])
            if forgotten := await self._store.drop_latest(db):
                telemetry.log().info("newest fixes deleted", devices=forgotten)

    async def track(
        self, caller: Caller, kind: UnitKind.ValueType, unit_id: str, span: tuple[datetime, datetime], reason: str,
        after: tuple[datetime, int] | None, limit: int,
    ) -> list[Row]:  # fmt: skip
        """A page of a unit's track. That it was read is recorded, also when there is none."""
        name = (caller.agency_id, int(kind), unit_id)
        async with self._database.transaction() as tx:
            groups = sorted(caller.person.groups) if caller.person else []
            rows = await self._store.track(tx, name, groups, span, after, limit)
            known = bool(rows) or await self._store.unit_exists(tx, name)
            details = {
                "kind": UnitKind.Name(kind).removeprefix("UNIT_KIND_"), "from": span[0].isoformat(), "to": span[1].isoformat(),
                "reason": reason, "points": str(len(rows)),
            }  # fmt: skip
            self._audit.record(tx, Entry("track.read", caller.actor, f"units/{unit_id}", caller.agency_id, details=details))
        if not known:
            raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "nothing has been kept of such a unit")
        return rows

    # --- what agencies wish ------------------------------------------------------------------------------------------

    def privacy(self, agency_id: str) -> Privacy:
        """How an agency wants its positions kept and shown."""
        return self._privacies.get(agency_id) or Privacy()

    async def read_privacies(self) -> None:
        """Learn what agencies have said, here or at another replica."""
        async with self._database.statements() as db:
            self._privacies = await self._store.privacies(db)

    async def set_privacy(self, caller: Caller, privacy: Privacy) -> None:
        """From now on; other replicas follow within seconds."""
        async with self._database.transaction() as tx:
            await self._store.set_privacy(tx, caller.agency_id, privacy)
            details = {"idle_resolution": privacy.idle_resolution, "keep_days": privacy.keep_days, "keep_idle_days": privacy.keep_idle_days}
            text = {key: str(value) for key, value in details.items()}
            self._audit.record(tx, Entry("privacy.set", caller.actor, f"agencies/{caller.agency_id}", caller.agency_id, details=text))
        await self.read_privacies()
