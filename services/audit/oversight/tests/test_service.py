"""From signed leaves and accounts to alerts, each once, and to what people make of them; on a real PostgreSQL."""

import random
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
from chassis.audit import Audit
from chassis.bus import Publisher
from chassis.clock import SystemClock
from chassis.db import Database, Transaction
from chassis.errors import Forbidden, NotFound, WrongState
from chassis.identity import Caller, Machine, Person
from chassis.sealing import Sealer
from contracts.topics import AUDIT_RECORD
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from figures import recount
from sightline.audit.v1.record_pb2 import AUDIT_OUTCOME_DONE, AuditRecord
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from tlog.note import SignedNote, Signer
from uuid_utils import uuid7

from services.audit.events import to_arrived
from services.audit.model import Signed
from services.audit.oversight.model import Alert, Granted, Outcome, Rule, Served
from services.audit.oversight.service import OversightService
from services.audit.oversight.store import Store as OversightStore
from services.audit.service import AuditService
from services.audit.store import FileCopies, Store

SCHEMA = "audit"
LOG, SEALER = Signer("test.example/audit", Ed25519PrivateKey.generate()), Sealer(bytes(range(32)))
START = datetime.now(UTC) - timedelta(days=2)


def person(name: str, agency: str = "pd") -> Caller:
    return Caller(Machine("t", "platform", "console", "c"), Person(name, agency, frozenset({"auditor"})))


class Clock:
    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class Told:
    def __init__(self) -> None:
        self.alerts: list[Alert] = []

    def announce(self, tx: Transaction, told: Alert | Signed) -> None:
        if isinstance(told, Alert):
            self.alerts.append(told)


class Desk:
    """A log, and oversight over it."""

    def __init__(self, database: Database, publisher: Publisher, folder: Path) -> None:
        self.clock, self.told, self._numbers = Clock(), Told(), count(1)
        audit = Audit("audit", AUDIT_RECORD, database, publisher, SystemClock())
        self.log = AuditService(database, Store(), SEALER, LOG, FileCopies(folder), self.told, audit)
        self.oversight = OversightService(
            database, Store(), OversightStore(), SEALER, LOG, self.told, audit, self.clock, timedelta(minutes=1), timedelta(minutes=15)
        )
        self._waiting: list[AuditRecord] = []

    def note(self, action: str, who: str, target: str, details: Mapping[str, str], *, emergency: str = "", at: datetime = START) -> None:
        kind = ActorKind.ACTOR_KIND_PERSON if who else ActorKind.ACTOR_KIND_SERVICE
        record = AuditRecord(
            record_id=str(uuid7()), producer="streams", producer_seq=next(self._numbers), action=action, outcome=AUDIT_OUTCOME_DONE,
            actor=Actor(kind=kind, id=who or "service/streams", agency_id="pd" if who else "platform"), target=target, agency_id="pd",
            emergency_id=emergency, details=details,
        )  # fmt: skip
        record.at.FromDatetime(at)
        self._waiting.append(record)

    def watch(self, who: str, emergency: str, lasts: timedelta) -> str:
        """All that is recorded of a view in an alarm that was none; returns the grant."""
        grant, session = str(uuid7()), str(uuid7())
        self.note("session.begun", "", f"sessions/{session}", {"officer": "doe", "camera": "cam-1"}, emergency=emergency)
        self.note("grant.issued", who, f"grants/{grant}", {"session": session, "viewer": who}, emergency=emergency)
        self.note("grant.redeemed", "", f"grants/{grant}", {"session": session, "bytes": "0"}, emergency=emergency)
        self.note("grant.ended", "", f"grants/{grant}", {"bytes": "700"}, emergency=emergency, at=START + lasts)
        self.note("emergency.cleared", "chief", f"emergencies/{emergency}", {"disposition": "FALSE_ACTIVATION"}, emergency=emergency)
        return grant

    async def go_on(self) -> list[Alert]:
        """Everything is taken, signed, looked at and judged; returns the alerts that this raised."""
        before = len(self.told.alerts)
        await self.log.take([to_arrived(each, random.randbytes(32)) for each in self._waiting])
        self._waiting.clear()
        await self.log.integrate()
        while await self.oversight.observe():
            pass
        await self.oversight.judge()
        return self.told.alerts[before:]


@pytest_asyncio.fixture(loop_scope="session")
async def desk(database: Database, publisher: Publisher, tmp_path: Path) -> AsyncIterator[Desk]:
    async with database.statements() as db:
        await db.execute(
            "TRUNCATE leaf, node, checkpoint, cosignature, subject_key, forgotten, producer, observation, account, alert, reviewer"
        )
        await db.execute("UPDATE progress SET observed = 0, judged = 0")
    yield Desk(database, publisher, tmp_path)


async def test_what_is_noticed_is_a_task_of_somebody_whom_it_does_not_concern(desk: Desk) -> None:
    await desk.oversight.set_reviewers(person("admin"), ["eve", "ada"])
    desk.watch("eve", str(uuid7()), timedelta(minutes=20))
    [alert] = await desk.go_on()
    assert (alert.rule, alert.agency_id, alert.reviewer) == (Rule.NO_INCIDENT, "pd", "ada")
    assert alert.due_at - alert.raised_at == timedelta(days=3)
    assert await desk.go_on() == []  # noticed once
    [listed] = await desk.oversight.alerts(person("ada"), None, 10, resolved_too=False)
    assert listed == alert
    read, concerns = await desk.oversight.alert(person("ada"), alert.alert_id)
    assert concerns is not None
    assert (read, concerns.id) == (alert, "eve")
    # Neither is she told, nor has another agency anything of it.
    for other in (person("eve"), person("ada", "elsewhere-pd")):
        assert await desk.oversight.alerts(other, None, 10, resolved_too=True) == []
        with pytest.raises(NotFound):
            await desk.oversight.alert(other, alert.alert_id)
        with pytest.raises(NotFound):
            await desk.oversight.resolve(other, alert.alert_id, Outcome.JUSTIFIED, "it was me")
    with pytest.raises(Forbidden):
        await desk.oversight.resolve(person("bob"), alert.alert_id, Outcome.JUSTIFIED, "no reviewer")
    resolved = await desk.oversight.resolve(person("ada"), alert.alert_id, Outcome.MISUSE, "she had no reason")
    assert (resolved.outcome, resolved.resolved_by) == (Outcome.MISUSE, "ada")
    with pytest.raises(WrongState):
        await desk.oversight.resolve(person("ada"), alert.alert_id, Outcome.JUSTIFIED, "on second thoughts")
    assert await desk.oversight.alerts(person("ada"), None, 10, resolved_too=False) == []
    assert await desk.oversight.alerts(person("ada"), None, 10, resolved_too=True) == [resolved]


async def test_an_alert_without_a_reviewer_waits_for_one(desk: Desk) -> None:
    desk.watch("eve", str(uuid7()), timedelta(minutes=20))
    [alert] = await desk.go_on()
    assert alert.reviewer == ""
    await desk.oversight.set_reviewers(person("admin"), ["eve"])
    assert desk.told.alerts == [alert]  # it is about her
    await desk.oversight.set_reviewers(person("admin"), ["eve", "ada"])
    assert [each.reviewer for each in desk.told.alerts] == ["", "ada"]
    assert await desk.oversight.reviewers(person("admin")) == ["ada", "eve"]


async def test_who_was_forgotten_is_not_named(desk: Desk) -> None:
    desk.watch("eve", str(uuid7()), timedelta(minutes=20))
    [alert] = await desk.go_on()
    await desk.log.forget(person("admin"), "pd", "eve", "the law says so")
    read, concerns = await desk.oversight.alert(person("ada"), alert.alert_id)
    assert (read.alert_id, concerns) == (alert.alert_id, None)


async def test_bytes_that_nobody_can_explain_are_an_alert(desk: Desk) -> None:
    honest = desk.watch("sam", str(uuid7()), timedelta(minutes=1))
    hidden = str(uuid7())
    await desk.oversight.take_served([
        Served(honest, 700, START + timedelta(minutes=1), is_over=True), Served(hidden, 90_000, START, is_over=False),
    ])  # fmt: skip
    ended = Granted(honest, 3, "pd", 700, START + timedelta(minutes=1), "VIEWER_LEFT", START + timedelta(minutes=1))
    await desk.oversight.take_granted([ended])
    assert await desk.go_on() == []  # the other may be on its way
    desk.clock.ahead = timedelta(minutes=2)
    [alert] = await desk.go_on()
    assert (alert.rule, alert.agency_id) == (Rule.UNEXPLAINED_VIEWING, "platform")
    assert "90,000 bytes for a grant that nobody gave" in alert.explanation
    # A relay that goes on after the last word was judged is looked at again.
    later = START + timedelta(minutes=3)
    await desk.oversight.take_served([Served(honest, 900, later, is_over=True)])
    assert {each.rule for each in await desk.go_on()} == {Rule.SERVED_AFTER_END, Rule.ACCOUNTS_DIFFER}
    assert desk.told.alerts[-1].agency_id == "pd"


async def test_accounts_told_again_or_in_another_order_change_nothing(desk: Desk) -> None:
    grant = desk.watch("sam", str(uuid7()), timedelta(minutes=1))
    end = START + timedelta(minutes=1)
    served = [Served(grant, n * 100, START, is_over=n == 7) for n in range(1, 8)]
    granted = [Granted(grant, n, "pd", 700 if n == 3 else 0, end if n == 3 else None, "VIEWER_LEFT" if n == 3 else "UNSPECIFIED",
                       end if n == 3 else None) for n in range(1, 4)]  # fmt: skip
    dice = random.Random(4)
    for _ in range(5):
        await desk.oversight.take_served([*dice.sample(served, 5), served[-1]])
        await desk.oversight.take_granted([*dice.sample(granted, 2), granted[-1]])
    desk.clock.ahead = timedelta(hours=1)
    assert [each for each in await desk.go_on() if each.rule != Rule.PRODUCER_SILENT] == []


async def test_a_number_that_does_not_come_and_a_silent_producer(desk: Desk) -> None:
    desk.note("shift.checked_out", "sam", "officers/doe", {})
    next(desk._numbers)
    desk.note("shift.checked_in", "sam", "officers/doe", {})
    assert await desk.go_on() == []
    desk.clock.ahead = timedelta(minutes=2)
    [gap] = await desk.go_on()
    assert (gap.rule, gap.explanation) == (Rule.NUMBERS_MISSING, "1 numbers of streams below 3 are in no leaf: 2")
    desk.clock.ahead = timedelta(minutes=16)
    [silent] = await desk.go_on()
    assert silent.rule == Rule.PRODUCER_SILENT
    # What concerns all is shown to every agency, and closed by none of them.
    assert len(await desk.oversight.alerts(person("ada", "elsewhere-pd"), None, 10, resolved_too=False)) == 2
    with pytest.raises(Forbidden):
        await desk.oversight.resolve(person("ada"), gap.alert_id, Outcome.DEFECT, "not ours")


async def test_a_dispute_is_an_alert_once(desk: Desk) -> None:
    for _ in range(3):
        await desk.oversight.dispute("w has seen a log of 9 leaves, and this one has 7")
    assert [each.rule for each in desk.told.alerts] == [Rule.LOG_DISPUTED]


async def test_the_report_can_be_counted_again_and_is_signed(desk: Desk) -> None:
    emergencies = [str(uuid7()) for _ in range(6)]
    for emergency in emergencies:
        desk.note("emergency.raised", "", f"emergencies/{emergency}", {"status": "ACTUAL", "stale": "False"}, emergency=emergency)
        desk.watch("sam", emergency, timedelta(minutes=1))
    await desk.go_on()
    period = f"{START.year}H{1 if START.month <= 6 else 2}"
    figures, note, checkpoint = await desk.oversight.report(person("ada"), period)
    assert b'"FALSE_ACTIVATION": 6' in figures
    assert b"doe" not in figures
    LOG.verifier.check(SignedNote.parse(note))
    assert checkpoint.split("\n")[2] in note
    again, _, _ = await desk.oversight.report(person("ada"), period)
    assert again == figures
    entries = [entry.leaf async for some, _ in _first(desk) for entry in some]
    recount(entries, figures)
    assert b'"all": 0' in (await desk.oversight.report(person("ada", "elsewhere-pd"), period))[0]


async def _first(desk: Desk):  # type: ignore[no-untyped-def]
    async for found in desk.log.watch(person("ada"), 0):
        yield found
        return
