"""Use cases of the map: who watches an area gets it whole and then what changes; units by name, and by distance."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from chassis.audit import Audit, Entry
from chassis.clock import Clock
from chassis.db import Database, Statements, Transaction
from chassis.errors import InvalidRequest, NotFound, Unavailable
from chassis.identity import Caller
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from sightline.location.v1 import map_service_pb2 as pb
from sightline.location.v1.position_pb2 import Source, UnitKind, UnitOnMap

from services.location.model import Name, Taken
from services.location.picture.model import Newest, Picture, Place, Unit, cells_of, encoded, sees

# Units that a turn shows before it lets others have the loop; bytes that a watcher gets at once, about.
_AT_ONCE, _CHUNK = 500, 256 * 1024
# A box of so many cells is a large county; who wants more watches everywhere.
_WATCHERS_AT_MOST, _CELLS_AT_MOST = 500, 5_000
# A turn that takes long is followed by a longer pause: bulk never has the process to itself.
_REST = 1.0


class Store(Protocol):
    """What the use cases need of the store; `store.Store` describes each."""

    async def flush(
        self, tx: Transaction, newest: Sequence[tuple[bytes, datetime, bytes]], gone: Sequence[tuple[bytes, datetime]]
    ) -> None: ...
    async def only_one_flushes(self, tx: Transaction) -> bool: ...
    async def latest(self, db: Statements) -> tuple[list[tuple[bytes, bytes]], datetime]: ...


@dataclass(eq=False)
class Watcher:
    """Somebody who watches. What is not read in time is a set of places, and no queue."""

    agency_id: str
    groups: frozenset[str]
    cells: frozenset[int] | None
    missed: set[Place] = field(default_factory=set)
    ready: list[bytes] = field(default_factory=list)
    ready_of: set[Place] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def push(self, places: set[Place], parts: list[bytes]) -> None:
        """A turn's changes. The same list goes to all who see the same."""
        if self.ready or self.missed:
            self.miss(places)
        else:
            self.ready, self.ready_of = parts, places
        self.wake.set()

    def miss(self, places: Iterable[Place]) -> None:
        """Places to be sent whole, with what waits."""
        self.missed |= self.ready_of.union(places)
        self.ready, self.ready_of = [], set()


class PictureService:
    """The map of this replica."""

    def __init__(
        self, database: Database, store: Store, picture: Picture, key_of: Callable[[str, Source.ValueType, str], bytes], audit: Audit,
        clock: Clock, watch_s: float = 3600.0,
    ) -> None:  # fmt: skip
        """`key_of` names a device as its positions' key does; a watch ends after `watch_s` seconds."""
        self._database, self._store, self._picture, self._key_of = database, store, picture, key_of
        self._audit, self._clock, self._watch_s = audit, clock, watch_s
        self._watchers: set[Watcher] = set()
        self._newest: dict[bytes, tuple[float, bytes]] = {}
        self._gone: dict[bytes, float] = {}

    # --- what comes in -----------------------------------------------------------------------------------------------

    def take(self, key: bytes, record: bytes, taken: Taken) -> None:
        """A position; `key` and `record` are as they came, to be kept if it is the device's newest."""
        if self._picture.take(taken):
            self._newest[key] = taken.fix.fixed_at, record

    async def flush(self) -> None:
        """Keep each device's newest fix, for the next start; one replica at a time does it for all."""
        newest, self._newest = self._newest, {}
        gone, self._gone = self._gone, {}
        rows = [(key, datetime.fromtimestamp(at, UTC), record) for key, (at, record) in sorted(newest.items())]
        try:
            async with self._database.transaction() as tx:
                if await self._store.only_one_flushes(tx):
                    await self._store.flush(tx, rows, [(key, datetime.fromtimestamp(at, UTC)) for key, at in sorted(gone.items())])
        except Unavailable:
            self._newest = {key: kept for key, kept in newest.items() if kept[0] > self._gone.get(key, 0.0)} | self._newest
            self._gone |= {key: max(at, self._gone.get(key, 0.0)) for key, at in gone.items()}
            raise

    async def newest(self) -> tuple[list[tuple[bytes, bytes]], datetime]:
        """Devices' keys and records as they were last kept, and when."""
        async with self._database.statements() as db:
            return await self._store.latest(db)

    # --- turns -------------------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Show what changed to everybody who watches."""
        began = asyncio.get_running_loop().time()
        updates: dict[Place, pb.CellUpdate] = {}
        names, now = list(self._picture.changed()), self._clock.now().timestamp()
        for start in range(0, len(names), _AT_ONCE):
            for unit, newest in self._picture.turn(names[start : start + _AT_ONCE], now, updates):
                self._forget(unit, newest)
            await asyncio.sleep(0)
        if updates and self._watchers:
            await self._push(updates)
        await asyncio.sleep((asyncio.get_running_loop().time() - began) * _REST)

    def _forget(self, unit: Unit, newest: Newest) -> None:
        """Forget a device's fix, and older ones; a newer one may be another officer's."""
        key, at = self._key_of(unit.agency_id, newest.source, newest.device_id), newest.fix.fixed_at
        if key in self._newest and self._newest[key][0] <= at:
            del self._newest[key]
        self._gone[key] = max(self._gone.get(key, 0.0), at)

    async def _push(self, updates: dict[Place, pb.CellUpdate]) -> None:
        """Encode each cell once; who sees the same cells gets the same bytes."""
        parts = {place: encoded(update) for place, update in updates.items()}
        alike: defaultdict[tuple[str, frozenset[str], frozenset[int] | None], list[Watcher]] = defaultdict(list)
        for watcher in self._watchers:
            alike[watcher.agency_id, watcher.groups, watcher.cells].append(watcher)
        for audience, watchers in alike.items():
            places = {place for place in parts if sees(place, *audience)}
            if places:
                chunks = list(_chunks(parts[place] for place in places))
                for watcher in watchers:
                    watcher.push(places, chunks)
            await asyncio.sleep(0)

    # --- what people ask ---------------------------------------------------------------------------------------------

    async def watch(self, caller: Caller, box: tuple[float, float, float, float] | None) -> AsyncIterator[bytes]:
        """Encoded responses: all there is, then what changes. `box`: south, west, north, east in degrees."""
        cells = cells_of(box, _CELLS_AT_MOST) if box else None
        if box and cells is None:
            text = "the box is too large: ask for a smaller one, or for everywhere by leaving it out"
            raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, text, violations={"box": "too large"})
        if len(self._watchers) >= _WATCHERS_AT_MOST:
            raise Unavailable(Reason.ERROR_REASON_GOING_AWAY, "too many watch here; connect again, to another replica")
        where = " ".join(f"{edge:.5f}" for edge in box) if box else "everywhere"
        until = asyncio.get_running_loop().time() + self._watch_s
        watcher = Watcher(caller.agency_id, _groups(caller), cells)
        self._watchers.add(watcher)
        try:
            await self._note(caller, "map.watched", f"agencies/{caller.agency_id}", {"box": where})
            watcher.miss(self._picture.places(watcher.agency_id, watcher.groups, cells))
            async for chunk in self._send(watcher, until):
                yield chunk
        finally:
            self._watchers.discard(watcher)

    async def _send(self, watcher: Watcher, until: float) -> AsyncIterator[bytes]:
        """What a watcher gets until a time of the loop's clock, however slowly it reads."""
        loop, is_complete = asyncio.get_running_loop(), False
        while True:
            watcher.wake.clear()
            for chunk in self._take(watcher):
                yield chunk
                if loop.time() >= until:
                    raise _over()
            if not is_complete:
                yield pb.WatchAreaResponse(complete=True).SerializeToString()
                is_complete = True
            try:
                await asyncio.wait_for(watcher.wake.wait(), until - loop.time())
            except TimeoutError:
                raise _over() from None

    def _take(self, watcher: Watcher) -> Iterable[bytes]:
        """What waits for a watcher: the last turn's bytes, or what was missed, whole."""
        ready, watcher.ready, watcher.ready_of = watcher.ready, [], set()
        missed, watcher.missed = watcher.missed, set()
        yield from ready
        yield from _chunks(self._picture.whole(place) for place in missed)

    async def get(self, caller: Caller, kind: UnitKind.ValueType, unit_id: str) -> tuple[UnitOnMap, list[Newest], int]:
        """One unit as shown, its sources, and the resolution for their places; that somebody asked is recorded.

        NotFound also if the caller must not see it.
        """
        name: Name = (caller.agency_id, kind, unit_id)
        unit = self._picture.units.get(name)
        seen = unit is not None and unit.place is not None and sees(unit.place, caller.agency_id, _groups(caller), None)
        details = {"kind": UnitKind.Name(kind).removeprefix("UNIT_KIND_"), "found": str(seen)}
        await self._note(caller, "position.read", f"units/{unit_id}", details)
        if unit is None or unit.shown is None or not seen:
            raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such unit is on duty, or not for you")
        return unit.shown, self._picture.sources(unit, unit.shown.visible_to), self._picture.resolution(unit.shown)

    def nearest(
        self, caller: Caller, at: tuple[float, float], kinds: Collection[int], within_m: float, max_age_s: float, count: int
    ) -> list[tuple[float, UnitOnMap]]:  # fmt: skip
        """Units by metres from a point, the nearest first."""
        oldest = self._clock.now().timestamp() - max_age_s
        fixed = UnitKind.UNIT_KIND_FIXED_CAMERA

        def wanted(unit: UnitOnMap) -> bool:
            return (not kinds or unit.kind in kinds) and (unit.kind == fixed or unit.taken_at.seconds >= oldest)

        return self._picture.nearest(at, within_m, caller.agency_id, _groups(caller), wanted, count)

    async def _note(self, caller: Caller, action: str, target: str, details: dict[str, str]) -> None:
        async with self._database.transaction() as tx:
            self._audit.record(tx, Entry(action, caller.actor, target, caller.agency_id, details=details))


def _over() -> Unavailable:
    """What the caller may see is settled by the token at the beginning; that does not hold for ever."""
    return Unavailable(Reason.ERROR_REASON_GOING_AWAY, "this watch has lasted an hour; connect again")


def _groups(caller: Caller) -> frozenset[str]:
    return caller.person.groups if caller.person else frozenset()


def _chunks(parts: Iterable[bytes]) -> Iterable[bytes]:
    """Parts joined to pieces of a size that a client takes."""
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= _CHUNK:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
