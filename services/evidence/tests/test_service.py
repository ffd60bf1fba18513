"""Holds, marks and deletions against a real PostgreSQL, with a clock that can be moved."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from chassis.audit import Audit
from chassis.bus import Publisher
from chassis.db import Database, Transaction
from chassis.errors import AlreadyExists, Forbidden, NotFound, WrongState
from chassis.identity import Caller, Machine, Person
from contracts.topics import AUDIT_RECORD
from sightline.audit.v1.record_pb2 import AuditRecord
from uuid_utils import uuid7

from services.evidence.model import (
    Activated,
    Deleted,
    DeletionResult,
    Hold,
    HoldReason,
    KnownEmergency,
    Recording,
    RecordingState,
    Segment,
    Streamed,
)
from services.evidence.service import EvidenceService
from services.evidence.store import Store

SCHEMA = "evidence"
GRACE = timedelta(days=7)
_numbers = itertools.count(1)


class MovableClock:
    def __init__(self) -> None:
        self.at = datetime.now(UTC).replace(microsecond=0)

    def now(self) -> datetime:
        return self.at

    def pass_days(self, days: float) -> None:
        self.at += timedelta(days=days)


class Told:
    """Keeps what was announced."""

    def __init__(self) -> None:
        self.states: list[tuple[str, int, RecordingState]] = []

    def announce(self, tx: Transaction, recording: Recording, holds: Sequence[Hold], segments: Sequence[Segment]) -> None:
        self.states.append((recording.recording_id, recording.version, recording.state))


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def evidence(database: Database, publisher: Publisher, clock: MovableClock, told: Told) -> EvidenceService:
    audit = Audit("evidence", AUDIT_RECORD, database, publisher, clock)
    return EvidenceService(database, Store(), told, audit, clock, 31, GRACE)


def person(agency: str = "pd") -> Caller:
    return Caller(Machine("t", "platform", "console", "c"), Person("sam", agency, frozenset({"supervisor"})))


def streamed(clock: MovableClock, camera: str = "", agency: str = "pd", emergency: str = "") -> Streamed:
    camera = camera or f"cam-{next(_numbers)}"
    return Streamed(str(uuid7()), agency, camera, "anna", emergency or str(uuid7()), clock.now(), None, None)


def spared(session: Streamed) -> KnownEmergency:
    """Its emergency, as a drill."""
    return KnownEmergency(session.emergency_id, 1, session.agency_id, None, spares=True)


def head(session: Streamed, clock: MovableClock, piece: int = 9, segment: str = "0001-live", relay: str = "a") -> Segment:
    return Segment(session.recording_id, segment, relay, piece + 1, 1000 * piece, bytes([piece]) * 32, clock.now())


def gone(segment: Segment, result: DeletionResult = DeletionResult.DELETED) -> Deleted:
    return Deleted(segment.segment_id, result, segment.pieces, segment.size, segment.chain, None)


async def kept(evidence: EvidenceService, session: Streamed) -> Recording:
    return (await evidence.get_recording(person(session.agency_id), session.recording_id))[0]


async def begun(evidence: EvidenceService, clock: MovableClock, *, held: bool = False) -> tuple[Streamed, Segment]:
    """A recording with a segment, whose emergency holds it or not."""
    session = streamed(clock)
    if not held:
        await evidence.take_emergency(spared(session))
    await evidence.take_session(session, is_first=True)
    segment = head(session, clock)
    await evidence.take_heads([segment])
    await evidence.take_session(replace(session, ended_at=clock.now()), is_first=False)
    return session, segment


async def actions(database: Database, target: str) -> list[tuple[str, dict[str, str]]]:
    async with database.statements() as db:
        rows = await db.all("SELECT record FROM audit_record ORDER BY id")
    records = [AuditRecord.FromString(bytes(row["record"])) for row in rows]
    return [(record.action, dict(record.details)) for record in records if record.target.startswith(target)]


async def test_a_recording_of_an_emergency_is_held_at_once_and_released_only_by_a_person_after_its_end(
    evidence: EvidenceService, clock: MovableClock, told: Told
) -> None:
    session, _ = await begun(evidence, clock, held=True)
    recording, _, [hold] = await evidence.get_recording(person(), session.recording_id)
    assert (recording.held, hold.reason, hold.emergency_id) == (True, HoldReason.EMERGENCY, session.emergency_id)
    clock.pass_days(1000)
    await evidence.sweep()
    assert (await kept(evidence, session)).state == RecordingState.KEPT
    with pytest.raises(WrongState):
        await evidence.release_hold(person(), hold.hold_id, "too early", although_open=False)
    await evidence.take_emergency(KnownEmergency(session.emergency_id, 2, "pd", clock.now(), spares=False))
    assert (await kept(evidence, session)).held
    with pytest.raises(NotFound):
        await evidence.release_hold(person("other"), hold.hold_id, "not mine", although_open=False)
    released, _ = await evidence.release_hold(person(), hold.hold_id, "case closed", although_open=False)
    assert not released.held
    # What comes again does not hold again.
    await evidence.take_session(session, is_first=True)
    await evidence.sweep()
    assert (await kept(evidence, session)).state == RecordingState.MARKED
    versions = [version for recording_id, version, _ in told.states if recording_id == session.recording_id]
    assert versions == sorted(set(versions))


@pytest.mark.parametrize("emergency_first", [True, False])
async def test_a_drill_holds_nothing(evidence: EvidenceService, clock: MovableClock, *, emergency_first: bool) -> None:
    session = streamed(clock)
    steps: list[Callable[[], Coroutine[Any, Any, None]]] = [
        lambda: evidence.take_emergency(spared(session)),
        lambda: evidence.take_session(session, is_first=True),
    ]
    for step in steps if emergency_first else reversed(steps):
        await step()
    assert not (await kept(evidence, session)).held


@pytest.mark.parametrize("recording_first", [True, False])
async def test_a_second_emergency_holds_what_runs_already(evidence: EvidenceService, clock: MovableClock, *, recording_first: bool) -> None:
    """The camera recorded for a drill; then the officer pressed in earnest."""
    session = streamed(clock)
    await evidence.take_emergency(spared(session))
    real = Activated(str(uuid7()), "pd", session.camera_id, "anna", clock.now() + timedelta(minutes=1))
    other = Activated(str(uuid7()), "pd", session.camera_id, "bert", clock.now() + timedelta(minutes=1))
    for step in (0, 1) if recording_first else (1, 0):
        if step == 0:
            await evidence.take_session(session, is_first=True)
        else:
            await evidence.take_activated(real, is_first=True)
            await evidence.take_activated(other, is_first=True)
    _, _, [hold] = await evidence.get_recording(person(), session.recording_id)
    assert hold.emergency_id == real.emergency_id
    found = await evidence.list_recordings("pd", "", 50, real.emergency_id, None)
    assert [recording.recording_id for recording in found] == [session.recording_id]


async def test_what_was_over_before_is_not_held(evidence: EvidenceService, clock: MovableClock) -> None:
    session, _ = await begun(evidence, clock)
    clock.pass_days(1)
    await evidence.take_activated(Activated(str(uuid7()), "pd", session.camera_id, "anna", clock.now()), is_first=True)
    assert not (await kept(evidence, session)).held


async def test_two_phases_then_the_relay_is_asked_and_its_word_is_audited_with_the_chain(
    evidence: EvidenceService, clock: MovableClock, database: Database
) -> None:
    session, segment = await begun(evidence, clock)
    late = head(session, clock, piece=3, segment="0002-late", relay="b")
    await evidence.take_heads([late])
    names = [session.recording_id]
    for days, state in (
        (30.9, RecordingState.KEPT),
        (0.2, RecordingState.MARKED),
        (6.9, RecordingState.MARKED),
        (0.2, RecordingState.DELETING),
    ):
        assert session.recording_id not in await evidence.deletions("a", names)
        clock.pass_days(days)
        await evidence.sweep()
        assert (await kept(evidence, session)).state == state
    assert (await evidence.deletions("a", names))[session.recording_id] == [segment]
    assert session.recording_id in await evidence.deletions("b", [])  # one that it should have, also if it does not name it
    with pytest.raises(WrongState, match="too late"):
        await evidence.place_hold(person(), str(uuid7()), session.recording_id, "please")
    for _ in range(2):  # the relay died before it heard our answer
        await evidence.confirm("a", session.recording_id, [gone(segment)])
    assert (await kept(evidence, session)).state == RecordingState.DELETING
    await evidence.confirm("b", session.recording_id, [gone(late, DeletionResult.MISSING)])
    assert (await kept(evidence, session)).state == RecordingState.DELETED
    found = await actions(database, f"recordings/{session.recording_id}")
    assert [action for action, _ in found] == ["recording.marked", "recording.deletion_ordered", "recording.deleted", "recording.deleted"]
    assert found[2][1]["chain"] == found[2][1]["published_chain"] == segment.chain.hex()
    assert found[3][1]["result"] == "MISSING"
    # What was missing turns up: its deletion is a record with its chain.
    for _ in range(2):
        await evidence.confirm("b", session.recording_id, [gone(late)])
    found = await actions(database, f"recordings/{session.recording_id}")
    assert [details["result"] for _, details in found[2:]] == ["DELETED", "MISSING", "DELETED"]
    assert found[4][1]["chain"] == late.chain.hex()
    # A relay that has something of it after all is told to delete it, and that is audited too.
    assert await evidence.deletions("c", names) == {session.recording_id: []}
    await evidence.confirm("c", session.recording_id, [gone(head(session, clock, piece=1, segment="0009-live"))])
    assert (await actions(database, f"recordings/{session.recording_id}"))[-1][1]["relay"] == "c"


async def test_what_differs_from_what_was_published_is_kept_for_somebody_to_look(evidence: EvidenceService, clock: MovableClock) -> None:
    session, segment = await begun(evidence, clock)
    for days in (32, 8):
        clock.pass_days(days)
        await evidence.sweep()
    await evidence.confirm("a", session.recording_id, [gone(segment, DeletionResult.DIFFERS)])
    recording, _, holds = await evidence.get_recording(person(), session.recording_id)
    assert (recording.state, recording.held) == (RecordingState.KEPT, True)
    assert [hold.reason for hold in holds] == [HoldReason.INTEGRITY]
    assert session.recording_id not in await evidence.deletions("a", [session.recording_id])
    # Another relay had its order already: what it did is noted, and what it did not is nothing.
    with pytest.raises(WrongState):
        await evidence.confirm("b", session.recording_id, [gone(segment, DeletionResult.MISSING)])
    # Once somebody has looked, it is deleted as it is.
    await evidence.release_hold(person(), holds[0].hold_id, "the disk was exchanged", although_open=False)
    for days in (0, 8):
        clock.pass_days(days)
        await evidence.sweep()
    assert await evidence.deletions("a", [session.recording_id]) == {session.recording_id: [replace(segment, chain=b"")]}
    await evidence.confirm("a", session.recording_id, [gone(segment)])
    assert (await kept(evidence, session)).state == RecordingState.DELETED


async def test_a_drill_that_turned_out_to_be_real_is_held_whatever_comes_late(evidence: EvidenceService, clock: MovableClock) -> None:
    session = streamed(clock)
    drill = spared(session)
    await evidence.take_session(session, is_first=True)
    await evidence.take_emergency(drill)
    assert not (await kept(evidence, session)).held
    await evidence.take_emergency(replace(drill, version=2, cleared_at=clock.now(), spares=False))
    assert (await kept(evidence, session)).held
    await evidence.take_emergency(drill)  # again, from before
    await evidence.take_session(session, is_first=True)
    assert (await kept(evidence, session)).held


async def test_only_an_admin_releases_a_hold_of_an_emergency_that_nobody_saw_end(evidence: EvidenceService, clock: MovableClock) -> None:
    session, _ = await begun(evidence, clock, held=True)
    _, _, [hold] = await evidence.get_recording(person(), session.recording_id)
    with pytest.raises(Forbidden):
        await evidence.release_hold(person(), hold.hold_id, "it was long ago", although_open=True)
    admin = Caller(Machine("t", "platform", "console", "c"), Person("al", "pd", frozenset({"admin"})))
    released, _ = await evidence.release_hold(admin, hold.hold_id, "it was long ago", although_open=True)
    assert not released.held


async def test_one_request_is_one_hold_also_for_two_recordings_at_once(evidence: EvidenceService, clock: MovableClock) -> None:
    one, two = (await begun(evidence, clock))[0], (await begun(evidence, clock))[0]
    name = str(uuid7())
    answers = await asyncio.gather(
        *(evidence.place_hold(person(), name, session.recording_id, "needed in court") for session in (one, two)), return_exceptions=True
    )
    assert [type(answer) for answer in answers].count(AlreadyExists) == 1
    held = [(await kept(evidence, session)).held for session in (one, two)]
    assert sorted(held) == [False, True]


async def test_a_hold_in_the_same_moment_as_the_last_look_wins_or_is_told_that_it_is_late(
    evidence: EvidenceService, clock: MovableClock
) -> None:
    """Fifty times both at once; never is a recording deleted that is held."""
    sessions = [(await begun(evidence, clock))[0] for _ in range(50)]
    for days in (32, 8):
        clock.pass_days(days)
        if days == 32:
            await evidence.sweep()

    async def hold(session: Streamed) -> bool:
        try:
            await evidence.place_hold(person(), str(uuid7()), session.recording_id, "needed in court")
        except WrongState:
            return False
        return True

    answers, _, _ = await asyncio.gather(asyncio.gather(*map(hold, sessions)), evidence.sweep(limit=7), evidence.sweep(limit=5))
    for session, won in zip(sessions, answers, strict=True):
        recording = await kept(evidence, session)
        assert recording.held == won
        assert (recording.state == RecordingState.KEPT) == won


async def test_a_hold_is_placed_once(evidence: EvidenceService, clock: MovableClock) -> None:
    session, _ = await begun(evidence, clock)
    name = str(uuid7())
    for _ in range(2):
        recording, hold = await evidence.place_hold(person(), name, session.recording_id, "needed in court")
        assert (recording.held, hold.hold_id) == (True, name)
    with pytest.raises(AlreadyExists):
        await evidence.place_hold(person(), name, session.recording_id, "something else")
    with pytest.raises(NotFound):
        await evidence.place_hold(person("other"), str(uuid7()), session.recording_id, "needed in court")


async def test_media_moves_the_time_on_and_older_heads_change_nothing(evidence: EvidenceService, clock: MovableClock) -> None:
    session, segment = await begun(evidence, clock)
    clock.pass_days(30)
    newer = head(session, clock, piece=20)
    await evidence.take_heads([newer, segment])
    await evidence.take_heads([segment])
    recording, segments, _ = await evidence.get_recording(person(), session.recording_id)
    assert recording.retain_until == clock.now() + timedelta(days=31)
    assert segments == [newer]


async def test_heads_before_their_session_count(evidence: EvidenceService, clock: MovableClock) -> None:
    session = streamed(clock)
    clock.pass_days(2)
    await evidence.take_heads([head(session, clock)])
    await evidence.take_session(session, is_first=False)
    assert (await kept(evidence, session)).retain_until == clock.now() + timedelta(days=31)


async def test_a_longer_retention_counts_for_all_and_a_shorter_one_for_what_comes(evidence: EvidenceService, clock: MovableClock) -> None:
    agency = f"agency-{next(_numbers)}"
    there = streamed(clock, agency=agency)
    await evidence.take_session(there, is_first=True)
    assert await evidence.get_retention(agency) == 31
    assert await evidence.set_retention(person(agency), 90) == 1
    assert (await kept(evidence, there)).retain_until == clock.now() + timedelta(days=90)
    assert await evidence.set_retention(person(agency), 10) == 0
    assert (await kept(evidence, there)).retain_until == clock.now() + timedelta(days=90)
    later = streamed(clock, agency=agency)
    await evidence.take_session(later, is_first=True)
    await evidence.take_heads([head(later, clock)])
    assert (await kept(evidence, later)).retain_until == clock.now() + timedelta(days=10)
    assert await evidence.get_retention(agency) == 10
