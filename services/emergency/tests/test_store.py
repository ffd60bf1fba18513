"""Emergencies in a real PostgreSQL: what another release wrote, what took long to commit, what presses are told apart by."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from chassis.audit import Audit
from chassis.bus import Publisher
from chassis.clock import SystemClock
from chassis.db import Database
from contracts.topics import AUDIT_RECORD
from psycopg.types.json import Jsonb
from sightline.activation.v1.activation_pb2 import ActivationResult, ActivationState
from uuid_utils import uuid7

from services.emergency.api import Watchtower
from services.emergency.events import EmergencyAnnouncer, to_emergency
from services.emergency.model import (
    Disposition,
    Emergency,
    Fact,
    Holder,
    Outcome,
    Press,
    RadioId,
    Status,
    Subject,
    SubjectState,
    Who,
    open_emergency,
    press_names,
    read_clocks,
)
from services.emergency.service import EmergencyService, KnownPress, Result
from services.emergency.store import Store

SCHEMA = "emergency"
GATE = timedelta(seconds=120)
SUPERVISOR = Who(1, "supervisor", "pd")
store = Store()


def pressed(unit: int, request: str = "r", counter: tuple[int, int] | None = (1, 1), at: datetime | None = None) -> Press:
    radio, now = RadioId(1, 2, unit), datetime.now(UTC)
    clocks = read_clocks(now, now, None, now, GATE)
    return Press(press_names("pd", radio, request, counter, at), request, radio, clocks, Status.ACTUAL, Who(2, "gateway/g", "pd"))


@pytest.fixture
def unit() -> int:
    return int(str(uuid7().int)[-7:]) + 1


@pytest.fixture
def service(database: Database, publisher: Publisher) -> EmergencyService:
    audit = Audit("emergency", AUDIT_RECORD, database, publisher, SystemClock())
    nobody: Any = None  # no story here asks the registry
    return EmergencyService(database, database, store, nobody, EmergencyAnnouncer(), audit, SystemClock(), GATE)


async def opened(database: Database, press: Press) -> Emergency:
    """An emergency of a press, kept."""
    emergency = open_emergency(str(uuid7()), press, Subject(SubjectState.NOBODY), GATE, None, None)
    async with database.transaction() as tx:
        await store.insert(tx, emergency)
        await store.add_press(tx, press, KnownPress(emergency.emergency_id, 1, "OPENED"))
    return emergency


async def _documents(database: Database, emergency: Emergency, **changes: Any) -> None:
    async with database.transaction() as tx:
        await tx.execute(
            "UPDATE emergency SET document = document || %s, shown = shown + 1, shown_at = now() WHERE emergency_id = %s",
            [Jsonb(changes), emergency.emergency_id],
        )


async def test_what_only_another_release_knows_is_kept_and_shown_as_unknown(database: Database, unit: int) -> None:
    """P6: a disposition, a status or a subject of the next release, and a field that this one has never heard of."""
    e = await opened(database, pressed(unit))
    subject = {"state": "SHARED", "officer_id": "anna"}
    await _documents(database, e, disposition="TRANSFERRED", status="REHEARSAL", subject=subject, weather="fog")
    async with database.transaction() as tx:
        found = await store.get(tx, e.emergency_id, lock=True)
        assert found is not None
        await store.update(tx, found.acknowledge(Fact(SUPERVISOR, datetime.now(UTC))))
        row = await tx.one("SELECT document FROM emergency WHERE emergency_id = %s", [e.emergency_id])
    assert row is not None
    kept = row["document"]
    assert (kept["disposition"], kept["status"], kept["subject"]["state"], kept["weather"]) == ("TRANSFERRED", "REHEARSAL", "SHARED", "fog")
    shown = to_emergency(found)
    assert (shown.disposition, shown.status, shown.subject.state) == (0, 0, 0)
    assert shown.subject.officer_id == "anna"
    # Treated with the highest caution: neither settled, nor a drill.
    assert not found.is_settled(Outcome.STARTED)
    assert found.status != Status.EXERCISE


async def test_one_row_that_cannot_be_read_hides_no_other(database: Database, service: EmergencyService, unit: int) -> None:
    good, bad = await opened(database, pressed(unit)), await opened(database, pressed(unit + 1))
    await _documents(database, bad, epoch="many")
    watch = Watchtower(service).changes("pd")
    first = [each.emergency_id for each, _ in await anext(watch)]
    assert good.emergency_id in first
    assert bad.emergency_id not in first
    async with database.transaction() as tx:  # so that it is in nobody's way
        await tx.execute("DELETE FROM emergency WHERE emergency_id = %s AND NOT EXISTS (SELECT FROM press p WHERE p.emergency_id = %s)",
                         [bad.emergency_id, bad.emergency_id])  # fmt: skip
        await tx.execute("UPDATE emergency SET document = document || '{\"epoch\": 1}' WHERE emergency_id = %s", [bad.emergency_id])


async def _told(watch: AsyncIterator[Any], emergency_id: str) -> Emergency:
    """The next that a watcher hears of an emergency."""
    async with asyncio.timeout(20):
        async for changes in watch:
            for emergency, _ in changes:
                if emergency.emergency_id == emergency_id:
                    return cast(Emergency, emergency)
    raise AssertionError("the watch ended")


async def test_a_clear_that_took_long_to_commit_is_told_when_it_does(database: Database, service: EmergencyService, unit: int) -> None:
    """P16: its commit waited for more than a minute; until then nobody could see it, and then its time lay in the past."""
    e = await opened(database, pressed(unit))
    tower = Watchtower(service)
    looking = asyncio.create_task(tower.look())
    watch = tower.changes("pd")
    assert (await _told(watch, e.emergency_id)).is_open
    async with database.transaction() as tx:
        found = await store.get(tx, e.emergency_id, lock=True)
        assert found is not None
        await store.update(tx, found.clear(Fact(SUPERVISOR, datetime.now(UTC)), Disposition.RESOLVED))
        await tx.execute("UPDATE emergency SET shown_at = now() - interval '2 minutes' WHERE emergency_id = %s", [e.emergency_id])
    assert not (await _told(watch, e.emergency_id)).is_open
    looking.cancel()


async def test_a_press_is_known_by_all_that_tells_it_apart(database: Database, unit: int) -> None:
    """P2, against the table: however late a whole name, within half an hour one that says too little."""
    e, now = await opened(database, pressed(unit)), datetime.now(UTC)

    async def is_known(press: Press) -> bool:
        async with database.transaction() as tx:
            return await store.known_press(tx, press) is not None

    assert await is_known(pressed(unit))
    assert not await is_known(pressed(unit, counter=(2, 1)))
    assert not await is_known(pressed(unit, request="other"))
    assert not await is_known(pressed(unit, counter=None))
    assert not await is_known(pressed(unit, request=""))
    async with database.transaction() as tx:
        for press in (pressed(unit, request=""), pressed(unit, counter=None), pressed(unit, counter=None, at=now)):
            await store.add_press(tx, press, KnownPress(e.emergency_id, 1, "FOLDED"))
        await tx.execute("UPDATE press SET received_at = now() - interval '31 minutes' WHERE emergency_id = %s", [e.emergency_id])
    assert await is_known(pressed(unit))
    assert await is_known(pressed(unit, counter=None, at=now))
    assert not await is_known(pressed(unit, request=""))
    assert not await is_known(pressed(unit, counter=None))
    nameless = replace(pressed(unit), names=press_names("pd", RadioId(1, 2, unit), ""))
    assert not await is_known(nameless)


async def test_a_press_that_an_older_release_took_is_known(database: Database, unit: int) -> None:
    """Both run at once while a release is rolled out."""
    await opened(database, pressed(unit))
    async with database.transaction() as tx:
        await tx.execute("UPDATE press SET identity = NULL WHERE key = %s", [pressed(unit).names.key])
        assert await store.known_press(tx, pressed(unit)) is not None
        assert await store.known_press(tx, pressed(unit, counter=(2, 1))) is None


async def test_an_outcome_is_that_of_the_present_epoch(database: Database, service: EmergencyService, unit: int) -> None:
    e = await opened(database, pressed(unit))

    async def outcome() -> Outcome:
        async with database.transaction() as tx:
            officers, outcome = await store.came(tx, e)
            assert officers in ([], ["anna"])
            return outcome

    def result(epoch: int, camera: str, version: int, state: ActivationState.ValueType) -> Result:
        content = ActivationResult(officer_id="anna", state=state).SerializeToString()
        return Result(e.emergency_id, epoch, camera, version, content)

    assert await outcome() == Outcome.PENDING
    await service.keep_results([
        result(1, "cam-1", 1, ActivationState.ACTIVATION_STATE_REQUESTED),
        result(1, "cam-2", 1, ActivationState.ACTIVATION_STATE_REFUSED),
        result(2, "cam-1", 1, ActivationState.ACTIVATION_STATE_RECORDING),
    ])  # fmt: skip
    assert await outcome() == Outcome.PENDING
    await service.keep_results([result(1, "cam-1", 2, ActivationState.ACTIVATION_STATE_UNREACHABLE)])
    assert await outcome() == Outcome.NOT_STARTED
    await service.keep_results([result(1, "cam-1", 3, 99)])  # type: ignore[arg-type]  # of the release after this one
    assert await outcome() == Outcome.PENDING


class SlowRegistry:
    """Names whoever held the radio at the time that is asked for, after something else has happened meanwhile."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]], changed_at: datetime) -> None:
        self._meanwhile, self._changed_at = meanwhile, changed_at

    async def holder(self, radio: RadioId, at: datetime, agency_id: str) -> Holder:
        await self._meanwhile()
        return Holder(Subject(SubjectState.HELD, "anna" if at < self._changed_at else "bert", home_agency_id="pd"))


@pytest.mark.parametrize("subject", [Subject(SubjectState.UNPINNED), Subject(SubjectState.HELD, "carl", home_agency_id="pd")])
async def test_a_late_answer_is_only_an_answer_to_what_was_asked(
    database: Database, service: EmergencyService, unit: int, subject: Subject
) -> None:
    """Anna pressed and nobody named her; while the registry thinks, bert presses the same radio: her name is no answer to his press."""
    e = await opened(database, pressed(unit))
    first = replace(e, subject=subject, unsettled_press_at=None if subject.state == SubjectState.UNPINNED else e.epoch_started_at)
    later = e.epoch_started_at + timedelta(minutes=30)
    if first.unsettled_press_at:
        second = replace(first, version=3, unsettled_press_at=later)
    else:
        second = replace(first, version=3, epoch=2, epoch_started_at=later)
    await keep(database, replace(first, version=2))
    service._registry = SlowRegistry(lambda: keep(database, second), later)  # type: ignore[assignment]
    assert await service._settle_late(replace(first, version=2))
    async with database.transaction() as tx:
        assert await store.get(tx, e.emergency_id) == second
    service._registry = SlowRegistry(nothing, later)  # type: ignore[assignment]
    await service._settle_late(second)
    async with database.transaction() as tx:
        settled = await store.get(tx, e.emergency_id)
    assert settled is not None
    assert settled.subject.officer_id == "bert"


async def nothing() -> None:
    """Happens meanwhile."""


async def keep(database: Database, emergency: Emergency) -> None:
    async with database.transaction() as tx:
        await store.update(tx, emergency)
