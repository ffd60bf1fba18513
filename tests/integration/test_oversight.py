"""Who watches is watched: accounts are compared, what cannot be explained is somebody's task, and the public can count again."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import pytest_asyncio
from chassis.bus import Publisher, Record
from chassis.rpc import reason_of
from contracts.topics import MEDIA_SERVED
from psycopg.rows import dict_row
from sightline.audit.v1 import audit_service_pb2 as audit_pb
from sightline.audit.v1 import oversight_service_pb2 as pb
from sightline.audit.v1.alert_pb2 import Alert, AlertOutcome, AlertRule
from sightline.audit.v1.leaf_pb2 import AuditPersonal
from sightline.media.v1.served_pb2 import ServedAccount
from uuid_utils import uuid7

from tools.desk import Desk
from tools.local.stack import Stack
from tools.roster import AGENCY, Member
from tools.world import World, until

Someone = Callable[..., Member]


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="world")
async def _world(stack: Stack) -> AsyncIterator[World]:
    async with World(stack, video=True) as world:
        yield world


def _sightline(stack: Stack, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tools.cli", "--plain", "audit", *arguments]
    environment = os.environ | {"PYTHONPATH": "libs", "SIGHTLINE_DATA": str(stack.data)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


async def _alert(auditor: Desk, words: str, *, resolved_too: bool = False) -> Alert:
    """The alert that says so, once it is there."""

    async def there() -> Alert | None:
        request = pb.ListAlertsRequest(page_size=200, resolved_too=resolved_too)
        answer = await auditor.call(auditor.oversight.ListAlerts, request)
        return next((alert for alert in answer.alerts if words in alert.explanation), None)

    return await until(there, f"an alert of {words}")


async def test_an_honest_view_is_three_accounts_that_agree_and_no_alert(world: World, someone: Someone, stack: Stack) -> None:
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    given = await world.grant(pressed.emergency_id, officer.camera_ids[0])
    async with await world.watch(pressed.emergency_id, officer.camera_ids[0]) as viewer:

        async def came() -> bool:
            return len(viewer.pieces) > 10

        await until(came, "pictures")
    await world.clear(pressed.emergency_id)
    connection = await psycopg.AsyncConnection.connect(stack.database, autocommit=True, row_factory=dict_row)
    async with connection:

        async def settled() -> list[dict[str, Any]] | None:
            query = (
                "SELECT served_bytes, bytes, recorded_bytes, end_cause FROM audit.account a JOIN audit.observation o"
                " ON o.index = a.issued_index WHERE o.emergency_id = %s AND a.is_judged"
            )
            rows = await (await connection.execute(query, [pressed.emergency_id])).fetchall()
            return rows if len(rows) == 2 else None

        views = {row["end_cause"]: row for row in await until(settled, "two accounts that were judged")}
        assert given.grant.grant_id
        watched, unused = views["VIEWER_LEFT"], views["EMERGENCY_CLEARED"]
        assert watched["served_bytes"] == watched["bytes"] == watched["recorded_bytes"] > 0
        assert (unused["served_bytes"], unused["bytes"]) == (None, 0)
        query = "SELECT a.rule FROM audit.alert a JOIN audit.observation o ON o.index = ANY(a.evidence) WHERE o.emergency_id = %s"
        assert await (await connection.execute(query, [pressed.emergency_id])).fetchall() == []


async def test_pictures_for_a_grant_that_nobody_gave_are_a_task_with_an_outcome(stack: Stack, world: World, publisher: Publisher) -> None:
    def sightline(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return _sightline(stack, *arguments)

    account = ServedAccount(relay_id="b", grant_id=str(uuid7()), session_id=str(uuid7()), bytes=123_456_789)
    account.last_byte_at.FromDatetime(datetime.now(UTC))
    await publisher.publish(
        Record.of(MEDIA_SERVED, account.grant_id.encode(), account, source="relay", subject=f"grants/{account.grant_id}")
    )
    async with Desk(stack, "auditor@platform") as auditor, Desk(stack, "admin@platform") as admin:
        alert = await _alert(auditor, "123,456,789 bytes")
        assert (alert.rule, alert.agency_id, alert.reviewer) == (AlertRule.ALERT_RULE_UNEXPLAINED_VIEWING, "platform", "")
        request = pb.ResolveAlertRequest(alert_id=alert.alert_id, outcome=AlertOutcome.ALERT_OUTCOME_DEFECT, note="no reviewer yet")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await auditor.call(auditor.oversight.ResolveAlert, request)
        assert reason_of(refused.value) == "CALLER_NOT_ALLOWED"
        await admin.call(admin.oversight.SetReviewers, pb.SetReviewersRequest(reviewers=["auditor"]))
        shown = await asyncio.to_thread(sightline, "alerts", "--user", "auditor@platform")
        assert alert.alert_id in shown.stdout
        arguments = (alert.alert_id, "defect", "made up by a test", "--user", "auditor@platform")
        resolved = await asyncio.to_thread(sightline, "resolve", *arguments)
        assert (resolved.returncode, "auditor has said what it was" in resolved.stdout) == (0, True), resolved.stderr
        again = await asyncio.to_thread(sightline, "resolve", *arguments)
        assert (again.returncode, "has said what it was" in again.stderr) == (1, True)
        after = await _alert(auditor, "123,456,789 bytes", resolved_too=True)
        assert (after.outcome, after.reviewer) == (AlertOutcome.ALERT_OUTCOME_DEFECT, "auditor")

        async def recorded() -> set[str] | None:
            search = audit_pb.SearchEntriesRequest(target=f"alerts/{alert.alert_id}")
            entries = (await auditor.call(auditor.audit.SearchEntries, search)).entries
            found = {entry.content.action for entry in entries}
            return found if {"alert.raised", "alert.assigned", "alert.resolved"} <= found else None

        await until(recorded, "each step in the log")
    # What concerns the platform is shown to every agency's auditors; other people see nothing.
    async with Desk(stack, f"auditor@{AGENCY}") as auditor, Desk(stack, f"supervisor@{AGENCY}") as supervisor:
        await _alert(auditor, "123,456,789 bytes", resolved_too=True)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await supervisor.call(supervisor.oversight.ListAlerts, pb.ListAlertsRequest())
        assert reason_of(refused.value) == "CALLER_NOT_ALLOWED"


async def test_the_public_can_count_the_report_again_offline(world: World, someone: Someone, stack: Stack, tmp_path: Path) -> None:
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    await world.states(pressed.emergency_id)
    folder, bundle = tmp_path / "report", tmp_path / "log.jsonl"

    def sightline(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return _sightline(stack, *map(str, arguments))

    now = datetime.now(UTC)
    half = f"{now.year}H{1 if now.month <= 6 else 2}"
    for arguments in (("report", folder, "--period", half), ("export", bundle), ("recount", folder, bundle)):
        done = await asyncio.to_thread(sightline, *arguments)
        assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["agency"] == AGENCY
    assert "from press to pictures" in figures["times"]
    text = "".join(file.read_text() for file in folder.iterdir())
    assert officer.officer_id not in text
    assert pressed.emergency_id not in text
    assert (await asyncio.to_thread(sightline, "report", folder)).returncode == 1  # nothing is overwritten
    figures["tables"]["emergencies"]["all"] = 5_000_000
    (folder / "figures.json").write_text(json.dumps(figures, sort_keys=True, indent=1) + "\n")
    touched = await asyncio.to_thread(sightline, "recount", folder, bundle)
    assert (touched.returncode, "other figures" in touched.stderr) == (1, True), touched.stderr
    refused = await asyncio.to_thread(sightline, "report", tmp_path / "no", "--period", "2026Q3")
    assert (refused.returncode, "no half year" in refused.stderr) == (1, True)


async def test_who_is_forgotten_is_gone_from_the_log_and_the_log_still_verifies(stack: Stack) -> None:
    async with Desk(stack, f"officer@{AGENCY}") as officer:
        with pytest.raises(grpc.aio.AioRpcError):
            await officer.call(officer.audit.GetLog, audit_pb.GetLogRequest())
    async with Desk(stack, f"auditor@{AGENCY}") as auditor, Desk(stack, f"admin@{AGENCY}") as admin:

        async def entry() -> audit_pb.Entry | None:
            search = audit_pb.SearchEntriesRequest(actor_id="officer", action="call.refused")
            return next(iter((await auditor.call(auditor.audit.SearchEntries, search)).entries), None)

        refused = await until(entry, "the refusal in the log")
        assert AuditPersonal.FromString(refused.personal).actor.id == "officer"

        async def forgotten() -> bool:
            request = audit_pb.ForgetActorRequest(actor_id="officer", reason="a court has said so")
            try:
                await admin.call(admin.audit.ForgetActor, request)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                return False
            return True

        await until(forgotten, "an answer to ForgetActor")
        after = (await auditor.call(auditor.audit.GetEntry, audit_pb.GetEntryRequest(index=refused.index))).entry
        assert (after.leaf, after.personal) == (refused.leaf, b"")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await auditor.call(auditor.audit.ForgetActor, audit_pb.ForgetActorRequest(actor_id="auditor", reason="of myself"))
        assert reason_of(error.value) == "CALLER_NOT_ALLOWED"

        async def reread() -> bool:
            health = await auditor.call(auditor.audit.GetHealth, audit_pb.GetHealthRequest())
            assert health.works, health.problem
            return bool(health.rechecked > refused.index)

        await until(reread, "the log read back beyond that leaf")
    verified = await asyncio.to_thread(_sightline, stack, "verify", "--json")
    assert verified.returncode == 0, verified.stdout
