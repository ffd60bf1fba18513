"""Which replica acts when: the one with the camera's link at once, the others when they see that nobody did."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from chassis.errors import Unavailable
from chassis.identity import Machine
from chassis.recent import Waiting
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from services.streams.model import Activation, Decision, KnownEmergency
from services.streams.service import StreamsService

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OPEN = KnownEmergency("e", 1, 1, "pd", True, False, "anna")
CLEARED = KnownEmergency("e", 2, 1, "pd", False, False, "anna")


def decision(answer: bytes = b"cam") -> Decision:
    return Decision("e", 1, "pd", "anna", ("cam",), "", NOW + timedelta(minutes=2), "joiner/a", answer, answer)


class Tables:
    """Stands for what both replicas share: a database whose every transaction commits."""

    def __init__(self) -> None:
        self.known: dict[str, KnownEmergency] = {}
        self.decided: dict[tuple[str, int], bytes] = {}
        self.rejected: list[bytes] = []
        self.transactions = 0
        self.raised: list[list[str]] = []
        self.added: list[Activation] = []
        self.emergency_is_ahead = timedelta(0)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        self.transactions += 1
        yield SimpleNamespace()

    @asynccontextmanager
    async def statements(self) -> AsyncIterator[Any]:
        yield None

    async def keep_emergency(self, tx: Any, known: KnownEmergency) -> bool:
        newer = known.emergency_id not in self.known or self.known[known.emergency_id].version < known.version
        self.known |= {known.emergency_id: known} if newer else {}
        return newer

    async def emergency(self, tx: Any, emergency_id: str) -> KnownEmergency | None:
        return self.known.get(emergency_id)

    async def versions(self, db: Any, ids: Iterable[str]) -> dict[str, int]:
        return {key: self.known[key].version for key in ids if key in self.known}

    async def answers(self, db: Any, names: Iterable[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
        return {name: self.decided.get(name, b"") for name in names if name[0] in self.known}

    async def accept(self, tx: Any, made: Decision, now: datetime) -> bool:
        first = (made.emergency_id, made.epoch) not in self.decided
        self.decided.setdefault((made.emergency_id, made.epoch), made.answer)
        return first

    async def accepted(self, db: Any, emergency_id: str, epoch: int | None = None) -> Any:
        answer = self.decided.get((emergency_id, epoch or 0))
        return {"answer": answer, "content": answer} if answer else None

    async def reject(self, tx: Any, made: Decision, why: str, now: datetime) -> bool:
        self.rejected.append(made.answer)
        return True

    async def nothing(self, *_: Any, **__: Any) -> list[Any]:
        return []

    async def raise_orders(self, tx: Any, camera_ids: Sequence[str], agency_id: str) -> None:
        self.raised.append(list(camera_ids))

    async def add(self, tx: Any, new: Sequence[Activation]) -> None:
        self.added += new

    of_emergency = save = link = nothing


def replica(tables: Tables) -> StreamsService:
    silent = SimpleNamespace(announce=lambda *_: None, announce_rejection=lambda *_: None, record=lambda *_: None)
    peers = SimpleNamespace(here=lambda at: at - tables.emergency_is_ahead)
    build: Any = StreamsService
    return cast(StreamsService, build(tables, tables, peers, silent, silent, SimpleNamespace(now=lambda: NOW), "replica"))


async def linked(tables: Tables) -> StreamsService:
    service = replica(tables)
    await service.open_link(Machine("td", "pd", "camera", "cam"), "link")
    return service


async def away(tx: Any, known: KnownEmergency) -> bool:
    raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "locked")


async def test_the_replica_with_the_link_decides_at_once_in_one_transaction() -> None:
    tables = Tables()
    service = await linked(tables)
    before = tables.transactions
    await service.take_emergency(OPEN)
    await service.take_decision(decision())
    assert tables.decided == {("e", 1): b"cam"}
    assert tables.known == {"e": OPEN}
    assert tables.transactions == before + 1


async def test_a_decision_that_comes_before_its_emergency_waits_for_it() -> None:
    tables = Tables()
    service = await linked(tables)
    await service.take_decision(decision())
    assert not tables.decided
    await service.take_emergency(OPEN)
    assert tables.decided == {("e", 1): b"cam"}


async def test_a_replica_without_the_link_leaves_it_to_the_other() -> None:
    tables = Tables()
    other = replica(tables)
    for service in (other, await linked(tables)):
        await service.take_emergency(OPEN)
        await service.take_decision(decision())
    before = tables.transactions
    await other.look_again(timedelta(0))
    assert tables.transactions == before  # it has seen that all is done
    await other.look_again(timedelta(0))
    await other.take_decision(decision())  # the second lane's
    assert tables.transactions == before


async def test_what_nobody_has_done_is_done_by_a_replica_without_the_link() -> None:
    tables = Tables()
    service = replica(tables)
    await service.take_emergency(OPEN)
    await service.take_decision(decision())
    await service.look_again()  # too early
    assert not tables.decided
    await service.look_again(timedelta(0))
    assert tables.decided == {("e", 1): b"cam"}
    await service.take_emergency(CLEARED)
    await service.look_again(timedelta(0))
    assert tables.known == {"e": CLEARED}


async def test_a_clear_is_kept_at_once_by_the_replica_with_the_link() -> None:
    tables = Tables()
    service = await linked(tables)
    await service.take_emergency(OPEN)
    await service.take_decision(decision())
    await service.take_emergency(CLEARED)
    assert tables.known == {"e": CLEARED}


async def test_a_clear_is_kept_at_once_also_after_a_restart() -> None:
    tables = Tables()
    tables.known, tables.decided = {"e": OPEN}, {("e", 1): b"cam"}
    service = await linked(tables)
    service._answers.put(("e", 1), b"cam")  # warmed up
    await service.take_decision(decision())
    await service.take_emergency(CLEARED)
    assert tables.known == {"e": CLEARED}


async def test_a_start_has_caught_up_only_when_all_it_heard_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables()
    service = replica(tables)
    await service.take_emergency(CLEARED)

    with monkeypatch.context() as locked:
        locked.setattr(tables, "keep_emergency", away)
        with pytest.raises(Unavailable):
            await service.catch_up()
    await service.catch_up()
    assert tables.known == {"e": CLEARED}


async def test_a_record_comes_again_when_there_is_no_room_to_remember_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables()
    service = replica(tables)
    service._news = Waiting(3)

    monkeypatch.setattr(tables, "keep_emergency", away)
    for n in range(3):
        await service.take_emergency(replace(CLEARED, emergency_id=f"e-{n}"))
    with pytest.raises(Unavailable):
        await service.take_emergency(replace(CLEARED, emergency_id="e-3"))
    assert len(service._news.all()) == 3


async def test_cameras_are_raised_once_in_a_transaction() -> None:
    """Two sorted lists one after the other are a deadlock with somebody who has them the other way round."""
    tables = Tables()
    service = await linked(tables)
    await service.take_emergency(OPEN)
    await service.take_decision(decision())
    assert tables.raised == [["cam"]]


async def test_an_equal_decision_is_no_difference_even_after_the_emergency_went_on() -> None:
    tables = Tables()
    service = await linked(tables)
    await service.take_emergency(OPEN)
    await service.take_decision(decision())
    bound = KnownEmergency("e", 2, 2, "pd", True, False, "ben")
    late = await linked(tables)
    await late.take_emergency(bound)
    await late.take_decision(decision())  # of the other lane, for the epoch before
    assert not tables.rejected
    await late.take_decision(decision(b"another camera"))
    assert tables.rejected == [b"another camera"]


async def test_one_that_cannot_be_handled_does_not_keep_the_others_waiting() -> None:
    tables = Tables()
    service = replica(tables)
    await service.take_emergency(KnownEmergency("bad", 1, 1, "pd", True, False, None))
    await service.take_emergency(OPEN)
    keep = tables.keep_emergency

    async def fail(tx: Any, known: KnownEmergency) -> bool:
        if known.emergency_id == "bad":
            raise RuntimeError("no such thing")
        return await keep(tx, known)

    cast(Any, tables).keep_emergency = fail
    await service.look_again(timedelta(0))
    assert tables.known == {"e": OPEN}


async def test_a_flood_is_worked_off_and_nothing_of_it_forgotten() -> None:
    tables = Tables()
    service = replica(tables)
    service._news, service._decisions = Waiting(10), Waiting(10)
    for n in range(35):
        await service.take_emergency(replace(OPEN, emergency_id=f"e-{n}"))
        await service.take_decision(replace(decision(), emergency_id=f"e-{n}"))
    await service.look_again(timedelta(0))
    assert len(tables.known) == len(tables.decided) == 35


def test_what_waits_keeps_its_place_and_the_oldest_gives_way() -> None:
    waiting: Waiting[str, int] = Waiting(2)
    waiting.put("a", 1, NOW)
    waiting.put("b", 2, NOW + timedelta(seconds=1))
    waiting.put("a", 3, NOW + timedelta(seconds=2))
    assert waiting.since(NOW) == [3]
    assert waiting.is_full
    waiting.put("c", 4, NOW + timedelta(seconds=3))
    assert waiting.all() == [2, 4]


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(minutes=5), timedelta(minutes=-5)])
async def test_what_travels_is_the_time_that_is_left(ahead: timedelta) -> None:
    """P15: hosts whose clocks are minutes apart; an absolute expiry would be over, or hours away."""
    tables = Tables()
    tables.emergency_is_ahead = ahead
    service = await linked(tables)
    await service.take_emergency(OPEN)
    await service.take_decision(replace(decision(), expires_at=NOW + ahead + timedelta(seconds=119)))
    assert [activation.expires_at for activation in tables.added] == [NOW + timedelta(seconds=119)]
