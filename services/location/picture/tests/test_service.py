"""Who watches: everything at first, the same bytes for all who see the same, and never a backlog."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from chassis.audit import Audit
from chassis.bus import Publisher
from chassis.clock import SystemClock
from chassis.db import Database
from chassis.errors import InvalidRequest, NotFound, Unavailable
from chassis.identity import Caller, Machine, Person
from contracts.topics import AUDIT_RECORD
from sightline.location.v1 import map_service_pb2 as pb
from sightline.location.v1.position_pb2 import Source, UnitKind

from services.location.events import device_key
from services.location.model import Directory, Fix, Holder, Interval, Privacy, Taken
from services.location.picture.model import Picture
from services.location.picture.service import PictureService
from services.location.store import Store

SCHEMA = "location"
NOW = datetime.now(UTC).timestamp()
DESK = Caller(Machine("t", "pd", "console", "c"), Person("eve", "pd", frozenset({"supervisor"})))
OFFICERS = [f"o-{number:03d}" for number in range(200)]


def taken(officer: str, step: int) -> Taken:
    fix = Fix(48.0 + int(officer[-3:]) * 0.002 + step * 1e-5, 11.5, 5.0, None, None, NOW + step)
    return Taken("pd", Source.SOURCE_RADIO, f"radio-{officer}", Holder((officer,), "", "", ""), fix, NOW, NOW - 60 + step, False)


def service_of(directory: Directory, database: Database, publisher: Publisher, watch_s: float = 3600.0) -> PictureService:
    clock, picture = SystemClock(), Picture(directory, lambda _: Privacy(idle_resolution=15))
    audit = Audit("location", AUDIT_RECORD, database, publisher, clock)
    return PictureService(database, Store(), picture, device_key, audit, clock, watch_s)


@pytest_asyncio.fixture(loop_scope="session")
async def service(database: Database, publisher: Publisher) -> PictureService:
    directory = Directory(7200)
    for officer in OFFICERS:
        directory.learn_duty(f"radio-{officer}", "pd", 1, [Interval(0, float("inf"), officer, "", (), "")], NOW)
    return service_of(directory, database, publisher)


async def step(service: PictureService, number: int) -> None:
    for officer in OFFICERS:
        service.take(b"", b"", taken(officer, number))
    await service.turn()


async def read(watching: AsyncIterator[bytes], until_complete: bool = False) -> tuple[bytes, pb.WatchAreaResponse]:
    """What a watcher gets next."""
    everything = b""
    async for chunk in watching:
        everything += chunk
        if not until_complete or pb.WatchAreaResponse.FromString(chunk).complete:
            break
    return everything, pb.WatchAreaResponse.FromString(everything)


async def test_all_who_see_the_same_get_the_same_bytes(service: PictureService) -> None:
    await step(service, 0)
    one, other = service.watch(DESK, None), service.watch(DESK, None)
    for watching in (one, other):
        _, first = await read(watching, until_complete=True)
        assert sorted(unit.id for cell in first.cells for unit in cell.units) == OFFICERS
        assert all(cell.whole for cell in first.cells)
    await step(service, 1)
    (bytes_of_one, turn), (bytes_of_other, _) = await read(one), await read(other)
    assert bytes_of_one is bytes_of_other
    assert not any(cell.whole for cell in turn.cells)


async def test_who_reads_too_slowly_gets_the_newest_of_what_was_missed_and_no_backlog(service: PictureService) -> None:
    await step(service, 0)
    watching = service.watch(DESK, None)
    await read(watching, until_complete=True)
    for number in range(1, 50):
        await step(service, number)
    [watcher] = service._watchers
    assert not watcher.ready
    places = {cell.cell for cell in (await read(service.watch(DESK, None), until_complete=True))[1].cells}
    assert len(watcher.missed) <= len(places) * 2
    _, caught_up = await read(watching)
    newest = {unit.id: unit.fix.latitude for cell in caught_up.cells if cell.whole for unit in cell.units}
    assert newest == {officer: pytest.approx(taken(officer, 49).fix.latitude) for officer in OFFICERS}


async def test_only_what_is_in_the_box_is_sent(service: PictureService) -> None:
    await step(service, 0)
    _, first = await read(service.watch(DESK, (48.0, 11.49, 48.05, 11.51)), until_complete=True)
    seen = {unit.id for cell in first.cells for unit in cell.units}
    assert set(OFFICERS[:26]) <= seen < set(OFFICERS)
    with pytest.raises(InvalidRequest, match="too large"):
        await read(service.watch(DESK, (-80.0, -170.0, 80.0, 170.0)))


async def test_another_agencys_desk_sees_nobody(service: PictureService) -> None:
    await step(service, 0)
    stranger = Caller(DESK.machine, Person("mallory", "other", frozenset({"supervisor"})))
    _, first = await read(service.watch(stranger, None), until_complete=True)
    assert (list(first.cells), first.complete) == ([], True)
    with pytest.raises(NotFound):
        await service.get(stranger, UnitKind.UNIT_KIND_OFFICER, OFFICERS[0])
    assert service.nearest(stranger, (48.0, 11.5), (), 50_000, 300, 5) == []


async def test_what_is_flushed_is_the_map_after_a_restart(service: PictureService, database: Database) -> None:
    await service.flush()
    for officer in OFFICERS[:3]:
        service.take(f"key-{officer}".encode(), officer.encode(), taken(officer, 1))
    await service.flush()
    kept, _ = await service.newest()
    assert {(f"key-{officer}".encode(), officer.encode()) for officer in OFFICERS[:3]} <= set(kept)


async def test_a_watch_ends_after_its_time_although_nothing_happens(database: Database, publisher: Publisher) -> None:
    watching = service_of(Directory(7200), database, publisher, watch_s=0.05).watch(DESK, None)
    assert (await read(watching))[1].complete
    with pytest.raises(Unavailable, match="connect again"):
        await read(watching)


async def test_a_watch_ends_after_its_time_also_for_who_reads_slowly(
    service: PictureService, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    await step(service, 0)
    monkeypatch.setattr("services.location.picture.service._CHUNK", 1)
    monkeypatch.setattr(service, "_watch_s", 0.0)
    watching = service.watch(DESK, None)
    assert not (await read(watching))[1].complete
    with pytest.raises(Unavailable, match="connect again"):
        await read(watching)


async def test_only_so_many_watch_at_a_time(service: PictureService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.location.picture.service._WATCHERS_AT_MOST", 1)
    one, other = await asyncio.gather(*(read(service.watch(DESK, None)) for _ in range(2)), return_exceptions=True)
    assert not isinstance(one, BaseException)
    assert isinstance(other, Unavailable)


async def test_what_happens_while_a_watch_is_recorded_is_not_missed(service: PictureService, monkeypatch: pytest.MonkeyPatch) -> None:
    await step(service, 0)
    note = service._note

    async def note_slowly(*arguments: Any) -> None:
        await note(*arguments)
        await step(service, 1)
        await step(service, 2)

    monkeypatch.setattr(service, "_note", note_slowly)
    _, first = await read(service.watch(DESK, None), until_complete=True)
    assert all(cell.whole for cell in first.cells)
    newest = {unit.id: unit.fix.latitude for cell in first.cells for unit in cell.units}
    assert newest == {officer: pytest.approx(taken(officer, 2).fix.latitude) for officer in OFFICERS}


async def test_who_goes_off_duty_is_not_kept_for_the_next_start(database: Database, publisher: Publisher) -> None:
    directory = Directory(7200)
    service = service_of(directory, database, publisher)
    shift = Interval(0, float("inf"), "o-009", "", (), "")
    directory.learn_duty("radio-o-009", "pd", 1, [shift], NOW)
    key = device_key("pd", Source.SOURCE_RADIO, "radio-o-009")
    service.take(key, b"record", taken("o-009", 0))
    directory.learn_duty("radio-o-009", "pd", 2, [shift._replace(end=NOW - 1)], NOW)
    await service.turn()
    await service.flush()
    assert key not in dict((await service.newest())[0])
    # Who is back before the next flush is kept.
    service.take(key, b"record", taken("o-009", 0))
    await service.turn()
    directory.learn_duty("radio-o-009", "pd", 3, [shift], NOW)
    service.take(key, b"again", taken("o-009", 1))
    await service.flush()
    assert dict((await service.newest())[0])[key] == b"again"


async def test_a_radio_that_goes_from_hand_to_hand_is_kept_for_who_has_it_now(database: Database, publisher: Publisher) -> None:
    directory = Directory(7200)
    service = service_of(directory, database, publisher)
    key, first, second = device_key("pd", Source.SOURCE_RADIO, "radio-h"), taken("o-010", 0), taken("o-011", 1)
    anna, bert = Interval(0, float("inf"), "o-010", "", (), ""), Interval(NOW + 0.5, float("inf"), "o-011", "", (), "")
    directory.learn_duty("radio-h", "pd", 1, [anna], NOW)
    service.take(key, b"first", first._replace(device_id="radio-h"))
    await service.turn()
    service._picture.look_at(directory.learn_duty("radio-h", "pd", 2, [anna._replace(end=NOW + 0.5), bert], NOW))
    service.take(key, b"second", second._replace(device_id="radio-h"))
    await service.flush()
    await service.turn()  # Anna goes, and with her what was known of the radio then
    await service.flush()
    assert dict((await service.newest())[0])[key] == b"second"


async def test_a_camera_of_two_is_kept_when_one_of_them_goes(database: Database, publisher: Publisher) -> None:
    directory = Directory(7200)
    service = service_of(directory, database, publisher)
    shifts = [Interval(0, float("inf"), officer, "", ("cam-s",), "") for officer in ("o-012", "o-013")]
    for number, shift in enumerate(shifts):
        directory.learn_duty(f"radio-{number}", "pd", 1, [shift], NOW)
    key = device_key("pd", Source.SOURCE_CAMERA, "cam-s")
    both = Holder(("o-012", "o-013"), "", "", "")
    service.take(key, b"both", taken("o-012", 0)._replace(source=Source.SOURCE_CAMERA, device_id="cam-s", holder=both))
    await service.turn()
    service._picture.look_at(directory.learn_duty("radio-1", "pd", 2, [shifts[1]._replace(end=NOW - 1)], NOW))
    await service.turn()
    await service.flush()
    assert dict((await service.newest())[0])[key] == b"both"
