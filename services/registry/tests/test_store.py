"""The registry's SQL against a real PostgreSQL."""

import asyncio
import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from chassis.db import Database, Transaction
from chassis.errors import AlreadyExists, Unavailable, WrongState

from services.registry.model import Agency, Camera, FixedCamera, Officer, Radio, RadioId, Span, Vehicle
from services.registry.store import Store

SCHEMA = "registry"
NOW = datetime.now(UTC).replace(microsecond=0)
_numbers = itertools.count(1)
store = Store()


async def _force(tx: Transaction) -> tuple[int, int, int, int]:
    """Keys of two officers, a radio and a camera, all new."""
    n = next(_numbers)
    await store.add_agency(tx, Agency("pd", "PD"))
    officers = []
    for name in (f"a-{n}", f"b-{n}"):
        await store.add_officer(tx, Officer(name, "pd", name))
        found = await store.officer(tx, name)
        assert found
        officers.append(found[0])
    radio = await store.add_radio(tx, Radio(RadioId(1, 2, n), "pd", ""))
    await store.add_camera(tx, Camera(f"cam-{n}", "pd", ""))
    camera = (await store.camera_keys(tx, [f"cam-{n}"]))[f"cam-{n}"][0]
    assert radio
    return officers[0], officers[1], radio, camera


def span(start: int, end: int | None) -> Span:
    return Span(NOW + timedelta(hours=start), None if end is None else NOW + timedelta(hours=end))


@pytest.mark.parametrize("thing", ["radio", "camera"])
async def test_the_database_refuses_two_holders_at_a_time(database: Database, thing: str) -> None:
    async with database.transaction() as tx:
        anna, bert, radio, camera = await _force(tx)
        things = ([radio], []) if thing == "radio" else ([], [camera])
        await store.hold(tx, anna, *things, "", span(0, 8))
        await store.hold(tx, bert, *things, "", span(8, None))  # half-open: the next begins where the last ends
    with pytest.raises(WrongState) as refused:
        async with database.transaction() as tx:
            await store.hold(tx, bert, *things, "", span(7, 9))
    about = refused.value.metadata
    assert (about["device"], about["since"]) == (thing, span(0, 8).start.isoformat(timespec="seconds"))
    assert about["holder"].startswith("a-")
    assert about["device_id"] in refused.value.message
    assert about["holder"] in refused.value.message


async def test_a_forgotten_check_in_is_taken_over(database: Database) -> None:
    """P13: the device goes to who takes it now; what the other one holds besides stays."""
    async with database.transaction() as tx:
        anna, bert, radio, camera = await _force(tx)
        await store.hold(tx, anna, [radio], [camera], "unit-1", span(0, None))
    async with database.transaction() as tx:
        assert await store.holders(tx, [radio], [], span(8, None).start) == [anna]
        taken = await store.take_over(tx, bert, [radio], [], span(8, None).start)
        await store.hold(tx, bert, [radio], [], "unit-2", span(8, None))
    assert [(each.kind, each.holder[:2], each.span.start) for each in taken] == [("radio", "a-", span(0, None).start)]
    async with database.transaction() as tx:
        assert await store.carried(tx, anna, span(9, None).start) == ((f"cam-{taken[0].holder[2:]}",), "unit-1")
        [duty] = await store.duties(tx, [radio], NOW)
    assert [(each.officer_id[:2], each.span.end) for each in duty.intervals] == [("a-", span(8, None).start), ("b-", None)]


async def test_what_began_later_is_not_taken_over(database: Database) -> None:
    """A planned shift is nobody's oversight."""
    async with database.transaction() as tx:
        anna, bert, radio, _ = await _force(tx)
        await store.hold(tx, anna, [radio], [], "", span(4, 8))
    async with database.transaction() as tx:
        assert await store.take_over(tx, bert, [radio], [], span(2, None).start) == []
        with pytest.raises(WrongState):
            await store.hold(tx, bert, [radio], [], "", span(2, None))


async def test_an_officers_own_forgotten_shift_is_taken_over(database: Database) -> None:
    async with database.transaction() as tx:
        anna, _, radio, camera = await _force(tx)
        await store.hold(tx, anna, [radio], [camera], "unit-1", span(0, None))
    with pytest.raises(WrongState) as refused:
        async with database.transaction() as tx:
            await store.hold(tx, anna, [], [], "unit-2", span(8, None))
    assert "unit-1" in refused.value.message
    async with database.transaction() as tx:
        await store.take_over(tx, anna, [radio], [camera], span(8, None).start)
        await store.hold(tx, anna, [radio], [camera], "unit-2", span(8, None))
        assert (await store.carried(tx, anna, span(9, None).start))[1] == "unit-2"


async def test_only_one_of_many_concurrent_check_outs_gets_the_radio(database: Database) -> None:
    async with database.transaction() as tx:
        anna, bert, radio, _ = await _force(tx)

    async def attempt(officer: int) -> bool:
        try:
            async with database.transaction() as tx:
                await store.hold(tx, officer, [radio], [], "", span(0, None))
        except (WrongState, Unavailable):
            return False
        return True

    won = await asyncio.gather(*(attempt(anna if n % 2 else bert) for n in range(8)))
    assert sum(won) == 1


async def test_a_change_raises_the_version_of_every_radio_that_it_touches(database: Database) -> None:
    async with database.transaction() as tx:
        anna, _, radio, camera = await _force(tx)
        await store.hold(tx, anna, [radio], [], "", span(-1, None))
        await store.touch(tx, [anna], NOW - timedelta(minutes=30))
        before = (await store.duties(tx, [radio], NOW))[0]
        await store.hold(tx, anna, [], [camera], "unit-1", span(0, None))
        assert await store.touch(tx, [anna], NOW - timedelta(minutes=30)) == [radio]
        after = (await store.duties(tx, [radio], NOW))[0]
    assert after.version == before.version + 1
    held = after.at(NOW)
    assert held
    assert (held.unit_id, len(held.camera_ids)) == ("unit-1", 1)


async def test_release_ends_what_is_held_now_and_keeps_what_is_planned(database: Database) -> None:
    async with database.transaction() as tx:
        anna, _, radio, camera = await _force(tx)
        await store.hold(tx, anna, [radio], [camera], "", span(-2, None))
        radios, cameras = await store.release(tx, anna, NOW)
        assert (radios, len(cameras)) == ([radio], 1)
        duty = (await store.duties(tx, [radio], NOW - timedelta(hours=1)))[0]
    assert duty.at(NOW - timedelta(seconds=1)) is not None
    assert duty.at(NOW) is None


async def test_a_check_in_in_retrospect_is_a_new_version_too(database: Database) -> None:
    async with database.transaction() as tx:
        anna, _, radio, _ = await _force(tx)
        await store.hold(tx, anna, [radio], [], "", span(-5, None))
        released, _ = await store.release(tx, anna, NOW - timedelta(hours=2))
        assert await store.touch(tx, [anna], NOW - timedelta(minutes=30), released) == [radio]


async def test_the_same_again_is_harmless_and_another_is_refused(database: Database) -> None:
    async with database.transaction() as tx:
        await store.add_agency(tx, Agency("twice", "A"))
        assert not await store.add_agency(tx, Agency("twice", "A"))
    with pytest.raises(AlreadyExists):
        async with database.transaction() as tx:
            await store.add_agency(tx, Agency("twice", "B"))


async def test_the_trickle_is_shared_and_comes_round(database: Database) -> None:
    async with database.transaction() as tx:
        radios = [(await _force(tx))[2] for _ in range(3)]
        assert set(radios) <= set(await store.due(tx, datetime.now(UTC) + timedelta(minutes=1), 1000))
        assert not set(radios) & set(await store.due(tx, datetime.now(UTC) - timedelta(minutes=1), 1000))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Vehicle("car-1", "pd", "Car 1", ""), Vehicle("car-1", "pd", "Car 1", "unit-7")),
        (FixedCamera("fix-1", "pd", "Market", 48.1, 11.5), FixedCamera("fix-1", "pd", "Market", 48.2, 11.5)),
    ],
)
async def test_a_vehicle_or_fixed_camera_gets_a_version_for_every_change(
    database: Database, first: Vehicle | FixedCamera, second: Vehicle | FixedCamera
) -> None:
    async with database.transaction() as tx:
        await _force(tx)
        await store.add_agency(tx, Agency("other", "Other"))
        assert [await store.put_device(tx, each) for each in (first, first, second, second, first)] == [1, None, 2, None, 3]
        with pytest.raises(AlreadyExists, match="another agency's"):
            await store.put_device(tx, replace(first, agency_id="other"))


async def test_who_alone_may_see_an_officer_goes_with_the_duty_record(database: Database) -> None:
    async with database.transaction() as tx:
        anna, _, radio, _ = await _force(tx)
        await store.hold(tx, anna, [radio], [], "unit-1", span(-1, None), "narcotics")
        [duty] = await store.duties(tx, [radio], NOW - timedelta(hours=2))
    assert [interval.visible_to for interval in duty.intervals] == ["narcotics"]


async def test_a_covert_shift_is_told_of_for_long_with_its_cameras_and_with_what_the_officer_did_since(database: Database) -> None:
    window, hidden = NOW - timedelta(minutes=30), NOW - timedelta(hours=24)
    async with database.transaction() as tx:
        anna, bert, radio, camera = await _force(tx)
        await store.hold(tx, anna, [radio], [camera], "unit-1", span(-30, -25), "narcotics")
        await store.hold(tx, anna, [radio], [camera], "unit-1", span(-9, -6), "narcotics")
        await store.hold(tx, anna, [radio], [], "unit-1", span(-6, -5))
        await store.hold(tx, bert, [radio], [camera], "unit-2", span(-5, -2))
        await store.hold(tx, bert, [radio], [], "unit-2", span(-1, None))
        [told] = await store.duties(tx, [radio], window, hidden)
        [usual] = await store.duties(tx, [radio], window)
    shown = [(each.visible_to, each.unit_id, len(each.camera_ids)) for each in told.intervals]
    assert shown == [("narcotics", "unit-1", 1), ("", "unit-1", 0), ("", "unit-2", 0)]
    assert usual.intervals == told.intervals[2:]
