"""The log of a running system: what happened is in it, provable from outside, and its own reading too; killed, it has no gap."""

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from chassis.rpc import reason_of
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sightline.audit.v1 import audit_service_pb2 as pb
from sightline.audit.v1.leaf_pb2 import AuditPersonal
from sightline.audit.v1.record_pb2 import AUDIT_OUTCOME_REFUSED
from testkit.sabotage import SEQUENCER_POINTS
from testkit.trial.rig import Rig
from tlog.merkle import Frontier, check_consistency, check_inclusion, leaf_hash
from tlog.note import Checkpoint, Signer, Verifier, open_checkpoint

from tools.desk import Desk
from tools.local.process import Process
from tools.local.stack import Stack
from tools.roster import AGENCY, Member
from tools.world import World, until

Someone = Callable[..., Member]


async def _ask(auditor: Desk, method: str, request: Any) -> Any:
    """An answer of the log; it may just have been killed, and the channel may wait before it connects again."""

    async def answer() -> Any:
        try:
            return await auditor.call(getattr(auditor.audit, method), request)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            return None

    return await until(answer, f"an answer to {method}")


async def _found(auditor: Desk, *actions: str, **search: str) -> list[pb.Entry]:
    """Entries of these actions, once there is one of each."""

    async def all_of_them() -> list[pb.Entry] | None:
        answer = await _ask(auditor, "SearchEntries", pb.SearchEntriesRequest(page_size=200, **search))  # type: ignore[arg-type]
        return list(answer.entries) if set(actions) <= {entry.content.action for entry in answer.entries} else None

    return await until(all_of_them, f"{actions} in the log")


async def _checkpoint(auditor: Desk) -> tuple[Checkpoint, Verifier]:
    async def signed() -> pb.GetLogResponse | None:
        answer: pb.GetLogResponse = await _ask(auditor, "GetLog", pb.GetLogRequest())
        return answer if answer.checkpoint else None

    log = await until(signed, "a checkpoint")
    key = Verifier.parse(log.key)
    return open_checkpoint(log.checkpoint, key)[0], key


async def test_what_happened_in_an_emergency_is_provable(world: World, someone: Someone, stack: Stack) -> None:
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    await world.states(pressed.emergency_id)
    async with Desk(stack, f"auditor@{AGENCY}") as auditor:
        before, key = await _checkpoint(auditor)
        await world.clear(pressed.emergency_id)
        wanted = ("emergency.raised", "activation.decided", "activation.outcome", "emergency.cleared")
        entries = await _found(auditor, *wanted, emergency_id=pressed.emergency_id)
        for entry in entries:
            answer = await _ask(auditor, "GetEntry", pb.GetEntryRequest(index=entry.index))
            point = open_checkpoint(answer.checkpoint, key)[0]
            check_inclusion(leaf_hash(answer.entry.leaf), entry.index, point.size, list(answer.path), point.root)
        cleared = next(entry for entry in entries if entry.content.action == "emergency.cleared")
        assert AuditPersonal.FromString(cleared.personal).actor.id.startswith("supervisor")
        proof = await _ask(auditor, "ProveConsistency", pb.ProveConsistencyRequest(size=before.size))
        now = open_checkpoint(proof.checkpoint, key)[0]
        check_consistency(before.size, before.root, now.size, now.root, list(proof.path))
        # That somebody has read the log is in the log.
        for action in ("audit.searched", "audit.entry_read"):
            [entry, *_] = await _found(auditor, action, action=action)
            assert AuditPersonal.FromString(entry.personal).actor.id == "auditor"


async def test_only_auditors_read_the_log_and_only_of_their_agency(world: World, someone: Someone, stack: Stack) -> None:
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    async with Desk(stack, f"auditor@{AGENCY}") as auditor:
        entries = await _found(auditor, "emergency.raised", emergency_id=pressed.emergency_id)
    for user, method, request, reason in (
        (f"supervisor@{AGENCY}", "SearchEntries", pb.SearchEntriesRequest(), "CALLER_NOT_ALLOWED"),
        (f"officer@{AGENCY}", "GetLog", pb.GetLogRequest(), "CALLER_NOT_ALLOWED"),
        ("auditor@elsewhere-pd", "GetEntry", pb.GetEntryRequest(index=entries[0].index), "NOT_FOUND"),
        (f"auditor@{AGENCY}", "ProveConsistency", pb.ProveConsistencyRequest(size=2**40), "INVALID_FIELD"),
    ):
        async with Desk(stack, user) as desk:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await desk.call(getattr(desk.audit, method), request)
            assert reason_of(error.value) == reason
    async with Desk(stack, f"auditor@{AGENCY}") as auditor:
        target = "/sightline.audit.v1.AuditService/SearchEntries"
        [refused, *_] = await _found(auditor, "call.refused", action="call.refused", target=target)
        assert refused.content.outcome == AUDIT_OUTCOME_REFUSED


async def test_killed_again_and_again_the_log_has_no_gap_and_one_history(world: World, someone: Someone, stack: Stack) -> None:
    officers = [await world.duty(someone()) for _ in range(6)]
    async with Rig(stack) as rig, Desk(stack, f"auditor@{AGENCY}") as auditor:
        for officer in officers:
            pressed = await world.press(officer.radio)
            await rig.kill("audit-a")
        await _found(auditor, "emergency.raised", emergency_id=pressed.emergency_id)

        async def complete() -> bool:
            log = await _ask(auditor, "GetLog", pb.GetLogRequest())
            return not any(producer.missing for producer in log.producers)

        await until(complete, "a log without gaps")
        point, key = await _checkpoint(auditor)
    _check_history(stack, point, key)


async def test_killed_between_any_two_steps_of_the_sequencer_nothing_is_lost_or_twice(world: World, someone: Someone, stack: Stack) -> None:
    """F33. SEQUENCER_KILLS=50 for more than once at each step."""
    officer = await world.duty(someone())
    steps = [f"{name}.{side}" for name in SEQUENCER_POINTS for side in ("before", "after")]
    async with Rig(stack) as rig, Desk(stack, f"auditor@{AGENCY}") as auditor:
        for n in range(int(os.environ.get("SEQUENCER_KILLS", len(steps)))):
            async with rig.otherwise("audit-a", f"die:{steps[n % len(steps)]}:{1 + n // len(steps)}") as process:
                pressed = await world.press(officer.radio)

                async def died(process: Process = process) -> bool:
                    await world.press(officer.radio)  # each is a record
                    return not process.alive()

                await until(died, f"death at {steps[n % len(steps)]}")
        for action in ("emergency.raised", "emergency.repeated"):  # each by itself: there are more than a page
            await _found(auditor, action, action=action, emergency_id=pressed.emergency_id)

        async def complete() -> bool:
            log = await _ask(auditor, "GetLog", pb.GetLogRequest())
            return not any(producer.missing for producer in log.producers)

        await until(complete, "a log without gaps")
        point, key = await _checkpoint(auditor)
        _check_history(stack, point, key)
        health = await _ask(auditor, "GetHealth", pb.GetHealthRequest())
        assert (health.works, health.problem) == (True, "")


async def test_while_the_log_is_away_emergencies_go_on_and_then_it_has_all_of_it(world: World, someone: Someone, stack: Stack) -> None:
    officers = [await world.duty(someone()) for _ in range(3)]
    async with Rig(stack) as rig, rig.down("audit-a"), Desk(stack, f"auditor@{AGENCY}") as auditor:
        pressed = [await world.press(officer.radio) for officer in officers]
        for each in pressed:
            await world.states(each.emergency_id)
            await world.clear(each.emergency_id)
        with pytest.raises(grpc.aio.AioRpcError) as error:  # nobody takes silence for a log that works
            await auditor.call(auditor.audit.GetHealth, pb.GetHealthRequest(), timeout=2)
        assert error.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    wanted = ("emergency.raised", "activation.decided", "activation.outcome", "emergency.cleared")
    async with Desk(stack, f"auditor@{AGENCY}") as auditor:
        for each in pressed:
            await _found(auditor, *wanted, emergency_id=each.emergency_id)
        point, key = await _checkpoint(auditor)
        _check_history(stack, point, key)


def _check_history(stack: Stack, point: Checkpoint, key: Verifier) -> None:
    """No gap, no repeat, and every checkpoint is the root of the leaves that are there."""
    with psycopg.connect(stack.database) as connection:
        leaves = connection.execute("SELECT index, leaf FROM audit.leaf ORDER BY index").fetchall()
        checkpoints = connection.execute("SELECT size, note FROM audit.checkpoint ORDER BY size").fetchall()
        twice = connection.execute("SELECT record_id FROM audit.leaf GROUP BY record_id HAVING count(*) > 1").fetchall()
    assert twice == []
    assert [index for index, _ in leaves] == list(range(len(leaves)))
    frontier, roots = Frontier(), {}
    for _, leaf in leaves:
        list(frontier.append(leaf_hash(bytes(leaf))))
        roots[frontier.size] = frontier.root()
    assert roots[point.size] == point.root
    for size, note in checkpoints:
        assert open_checkpoint(note, key)[0].root == roots[size]


def test_the_service_cannot_change_what_it_wrote(stack: Stack) -> None:
    with psycopg.connect(stack.database, autocommit=True) as connection:
        connection.execute("SET ROLE audit")
        for table, column in (("leaf", "leaf"), ("node", "hash"), ("checkpoint", "root")):
            for statement in (f"UPDATE audit.{table} SET {column} = ''", f"DELETE FROM audit.{table}", f"TRUNCATE audit.{table}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)


async def test_a_witness_has_seen_what_the_log_says_and_outlives_a_crash_of_both(world: World, someone: Someone, stack: Stack) -> None:
    async with Rig(stack) as rig, Desk(stack, f"auditor@{AGENCY}") as auditor:

        async def cosigned(size: int) -> tuple[Checkpoint, dict[str, int]]:
            """The newest cosigned checkpoint, once it has so many leaves."""

            async def there() -> tuple[Checkpoint, dict[str, int]] | None:
                log = await _ask(auditor, "GetLog", pb.GetLogRequest())
                if not log.cosigned:
                    return None
                key, *witnesses = map(Verifier.parse, (log.key, *log.witness_keys))
                found = open_checkpoint(log.cosigned, key, witnesses, quorum=1)
                return found if found[0].size >= size else None

            return await until(there, f"a cosigned checkpoint of {size} leaves")

        before, seen = await cosigned(1)
        assert list(seen) == ["laptop.sightline.example/witness"]
        for name in ("witness-a", "audit-a"):
            await rig.kill(name)
            officer = await world.duty(someone())
            pressed = await world.press(officer.radio)
            await _found(auditor, "emergency.raised", emergency_id=pressed.emergency_id)
            before, _ = await cosigned(before.size + 1)
        [entry, *_] = await _found(auditor, "emergency.raised", emergency_id=pressed.emergency_id)
        after, _ = await cosigned(entry.index + 1)
        answer = await _ask(auditor, "GetEntry", pb.GetEntryRequest(index=entry.index, size=after.size))
        check_inclusion(leaf_hash(answer.entry.leaf), entry.index, after.size, list(answer.path), after.root)
        health = await _ask(auditor, "GetHealth", pb.GetHealthRequest())
        assert (health.works, health.problem) == (True, "")


async def test_entries_are_watched_as_they_become_provable_and_all_leaves_make_the_root(
    world: World, someone: Someone, stack: Stack
) -> None:
    officer = await world.duty(someone())
    async with Desk(stack, f"auditor@{AGENCY}") as auditor:
        start = (await _checkpoint(auditor))[0].size
        pressed = await world.press(officer.radio)
        watched: list[pb.Entry] = []
        call = auditor.audit.WatchEntries(pb.WatchEntriesRequest(start_index=start), timeout=30, metadata=auditor.metadata())
        async for answer in call:
            watched += answer.entries
            # Records of two producers may come in any order.
            if {e.content.action for e in watched if e.content.emergency_id == pressed.emergency_id} >= {
                "activation.decided",
                "emergency.raised",
            }:
                call.cancel()
                break
        indexes = [entry.index for entry in watched]
        assert indexes == sorted(set(indexes))
        assert indexes[0] >= start
        raised = next(e for e in watched if (e.content.action, e.content.emergency_id) == ("emergency.raised", pressed.emergency_id))
        assert {fact.key: fact.value for fact in raised.content.facts}["status"] == "ACTUAL"
    # Everybody who audits gets the whole tree; what is another agency's only as hashes.
    for user, reads in ((f"auditor@{AGENCY}", True), ("auditor@elsewhere-pd", False)):
        async with Desk(stack, user) as auditor:
            point, _ = await _checkpoint(auditor)
            frontier, seen = Frontier(), 0
            async for some in auditor.audit.ReadLeaves(pb.ReadLeavesRequest(end=point.size), timeout=30, metadata=auditor.metadata()):
                assert some.start == frontier.size
                for leaf in some.leaves:
                    assert not leaf.leaf or leaf_hash(leaf.leaf) == leaf.hash
                    seen += bool(leaf.leaf)
                    list(frontier.append(leaf.hash))
            assert (frontier.size, frontier.root(), seen > 0) == (point.size, point.root, reads)


def _sightline(stack: Stack, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tools.cli", "--plain", "audit", *arguments]
    environment = os.environ | {"PYTHONPATH": "libs", "SIGHTLINE_DATA": str(stack.data)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


async def test_an_outsider_checks_a_bundle_offline_and_is_told_which_leaf(
    world: World, someone: Someone, stack: Stack, tmp_path: Path
) -> None:
    officer = await world.duty(someone())
    pressed = await world.press(officer.radio)
    async with Desk(stack, f"auditor@{AGENCY}") as auditor:
        entries = await _found(auditor, "activation.outcome", emergency_id=pressed.emergency_id)
        key = (await _checkpoint(auditor))[1]

    def sightline(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return _sightline(stack, *arguments)

    whole, court = tmp_path / "log.jsonl", tmp_path / "court.jsonl"
    for arguments in ((str(whole),), (str(court), "--emergency", pressed.emergency_id)):
        exported = await asyncio.to_thread(sightline, "export", *arguments)
        assert exported.returncode == 0, exported.stderr
    assert (await asyncio.to_thread(sightline, "export", str(whole))).returncode == 1  # nothing is overwritten
    page = court.with_suffix(".html").read_text()
    assert "emergency raised" in page
    assert officer.officer_id in page
    for checked in ([], [str(whole)], [str(court)], [str(court), "--key", str(key)]):
        verified = await asyncio.to_thread(sightline, "verify", "--json", *checked)
        assert verified.returncode == 0, verified.stderr + verified.stdout
        verdict = json.loads(verified.stdout)
        assert (verdict["good"], verdict["witnesses"]) == (True, ["laptop.sightline.example/witness"])
    # Somebody changes an entry of each, and somebody else takes one out.
    for bundle, index in ((whole, entries[-1].index), (court, entries[-1].index)):
        lines = bundle.read_text().splitlines()
        at = next(n for n, line in enumerate(lines) if n and json.loads(line).get("index", n - 1) == index)
        content = json.loads(lines[at])
        leaf = bytearray(base64.b64decode(content["leaf"]))
        leaf[20] ^= 1
        changed = json.dumps(content | {"leaf": base64.b64encode(leaf).decode()})
        bundle.write_text("\n".join([*lines[:at], changed, *lines[at + 1 :]]))
        verified = await asyncio.to_thread(sightline, "verify", "--json", str(bundle))
        assert verified.returncode == 1
        assert any(finding.startswith(f"leaf {index}:") for finding in json.loads(verified.stdout)["findings"])
        if bundle == whole:
            bundle.write_text("\n".join([*lines[:at], *lines[at + 1 :]]))
            verified = await asyncio.to_thread(sightline, "verify", "--json", str(bundle))
            assert verified.returncode == 1
            assert json.loads(verified.stdout)["findings"]
    other = str(Signer(key.name, Ed25519PrivateKey.generate()).verifier)
    assert (await asyncio.to_thread(sightline, "verify", str(court), "--key", other)).returncode == 1
    (tmp_path / "none").write_text("{}")
    refused = await asyncio.to_thread(sightline, "verify", str(tmp_path / "none"))
    assert (refused.returncode, "no bundle" in refused.stderr) == (2, True)
