"""Tracks in a real PostgreSQL: written twice they are there once, and each day goes as a whole when it is due."""

from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
from chassis.db import Database
from chassis.settings import DatabaseSettings
from sightline.location.v1.position_pb2 import Source, UnitKind

from services.location.model import Fix, Name, Point, Privacy
from services.location.store import Store

SCHEMA = "location"
NOW = datetime.now(UTC).replace(microsecond=0)
TODAY = NOW.date()
ANNA: Name = ("pd", UnitKind.UNIT_KIND_OFFICER, "anna")
ALWAYS = (NOW - timedelta(days=1), NOW + timedelta(days=1))
store = Store()


def point(ago_s: float, delete_on: date = TODAY + timedelta(days=8), visible_to: str = "") -> Point:
    fix = Fix(48.1, 11.5, 4.0, None, 90.0, NOW.timestamp() - ago_s)
    return Point(*ANNA[:1], UnitKind.UNIT_KIND_OFFICER, "anna", Source.SOURCE_RADIO, fix, NOW.timestamp(), False, False, "", visible_to,
                 delete_on)  # fmt: skip


async def keep(database: Database, points: list[Point]) -> None:
    async with database.transaction() as tx:
        for day in {each.delete_on for each in points}:
            await store.make_day(tx, day)
        keys = await store.unit_keys(tx, [ANNA])
        await store.keep(tx, [(keys[ANNA], each) for each in points])


async def times(database: Database, *groups: str, after: tuple[datetime, int] | None = None, limit: int = 100) -> list[float]:
    async with database.transaction() as tx:
        rows = await store.track(tx, ANNA, groups, ALWAYS, after, limit)
    return [(NOW - row["fixed_at"]).total_seconds() for row in rows]


async def test_a_track_is_in_order_once_and_without_what_others_may_not_see(database: Database) -> None:
    batch = [point(10), point(30), point(20), point(40, visible_to="narcotics")]
    await keep(database, batch)
    await keep(database, batch[::-1])
    # The same fix, kept for another time because its agency has changed its mind, is one point.
    await keep(database, [point(10, TODAY + timedelta(days=3))])
    assert await times(database) == [30, 20, 10]
    assert await times(database, "narcotics") == [40, 30, 20, 10]
    [first] = await times(database, limit=1)
    assert await times(database, after=(NOW - timedelta(seconds=first), Source.SOURCE_RADIO)) == [20, 10]


async def test_what_is_due_goes_as_whole_days_and_nothing_else_goes(database: Database, databases: DatabaseSettings) -> None:
    await keep(database, [point(1), point(2, TODAY + timedelta(days=1))])
    before = await times(database)
    with psycopg.connect(str(databases.url)) as owner:  # let a day pass
        name = f"position_{TODAY + timedelta(days=1):%Y%m%d}"
        owner.execute(f"ALTER TABLE location.{name} RENAME TO position_{TODAY - timedelta(days=1):%Y%m%d}")
    async with database.statements() as db:
        assert await store.drop_days(db) == [TODAY - timedelta(days=1)]
        assert await store.drop_days(db) == []
    assert await times(database) == [each for each in before if each != 2]


async def test_two_replicas_look_for_due_tracks_at_once_and_one_drops_them(database: Database, databases: DatabaseSettings) -> None:
    await keep(database, [point(3, TODAY + timedelta(days=2))])
    with psycopg.connect(str(databases.url)) as owner:
        owner.execute(f"ALTER TABLE location.position_{TODAY + timedelta(days=2):%Y%m%d} RENAME TO position_20200102")
    async with database.transaction() as one, database.transaction() as other:
        assert [row["drop_days"] for row in await one.all("SELECT drop_days()")] == [date(2020, 1, 2)]
        assert await other.all("SELECT drop_days()") == []


async def test_a_devices_newest_fix_goes_after_a_day(database: Database) -> None:
    async with database.transaction() as tx:
        await store.flush(tx, [(b"old", NOW - timedelta(hours=25), b"o"), (b"young", NOW - timedelta(hours=23), b"y")], [])
    async with database.statements() as db:
        assert await store.drop_latest(db) == 1
        assert {b"old", b"young"} & dict((await store.latest(db))[0]).keys() == {b"young"}


@pytest.mark.parametrize("days", [-1, 500])
async def test_the_service_can_make_days_of_the_near_future_only(database: Database, days: int) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="no points are kept until"):
        async with database.transaction() as tx:
            await store.make_day(tx, TODAY + timedelta(days=days))
    async with database.transaction() as tx:
        await tx.execute("SET LOCAL ROLE location")
        await store.make_day(tx, TODAY + timedelta(days=5))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await tx.execute("DROP TABLE position")
        await tx.execute("ROLLBACK")


async def test_the_newest_fix_of_a_device_is_kept_and_an_older_one_does_not_replace_it(database: Database) -> None:
    async with database.transaction() as tx:
        await store.flush(tx, [(b"a", NOW, b"new"), (b"b", NOW, b"other")], [])
        await store.flush(tx, [(b"a", NOW - timedelta(seconds=1), b"old")], [(b"b", NOW), (b"a", NOW - timedelta(seconds=1))])
        found, flushed_at = await store.latest(tx)
    assert (b"a", b"new") in found
    assert b"b" not in dict(found)
    assert datetime.now(UTC) - flushed_at < timedelta(minutes=1)


async def test_only_one_replica_flushes_at_a_time(database: Database) -> None:
    async with database.transaction() as one, database.transaction() as other:
        assert await store.only_one_flushes(one)
        assert not await store.only_one_flushes(other)


async def test_what_an_agency_wishes_is_kept(database: Database) -> None:
    async with database.transaction() as tx:
        await store.set_privacy(tx, "pd", Privacy(10, 5, 1))
        await store.set_privacy(tx, "pd", Privacy(15, 90, 31))
        assert (await store.privacies(tx))["pd"] == Privacy(15, 90, 31)
