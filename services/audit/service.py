"""Use cases of the log: records become leaves in one order, the tree grows over them and is signed, and anybody who may gets proofs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Protocol

from chassis import telemetry
from chassis.audit import Audit
from chassis.audit import Entry as Noted
from chassis.db import Database, Statements, Transaction
from chassis.errors import InvalidRequest, NotFound, PoisonError, Unavailable
from chassis.identity import Caller
from chassis.names import PLATFORM
from chassis.reader import Lag
from chassis.sealing import Sealer, Unsealable
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from tlog.merkle import EMPTY_ROOT, Frontier, Node, ProofError, check_consistency, consistency, inclusion, leaf_hash
from tlog.note import Checkpoint, NoteError, SignedNote, Signer, Verifier, open_checkpoint
from tlog.verify import Finding, Recomputed
from uuid_utils import uuid7

from services.audit.model import (
    Arrived,
    Entry,
    Health,
    Inconsistent,
    LogState,
    Producer,
    Row,
    Search,
    Signed,
    Stored,
    WitnessRefuses,
)

_LEAVES_AT_ONCE, _LOOK_S, _INCONSISTENT_S = 2000, 1.0, 10.0
_READ_AT_ONCE, _WATCHED_AT_ONCE, _WATCHERS_AT_MOST, _WATCH_S = 500, 100, 50, 0.5
_SILENT_S, _WITNESS_ATTEMPTS = 15.0, 3
# Records that wait on the topic, and none of which was taken for so long, are a log that does not work; so is not to know for so long.
_WAITS_S, _UNKNOWN_S = 15.0, 60.0


class Store(Protocol):
    """What the use cases need of the store; `store.Store` describes each."""

    async def lock(self, tx: Transaction) -> None: ...
    async def known(self, tx: Transaction, names: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]: ...
    async def next_index(self, tx: Transaction) -> int: ...
    async def keys(self, tx: Transaction, new: Sequence[tuple[str, bytes, bytes]]) -> dict[bytes, tuple[str, bytes]]: ...
    async def keys_of(self, db: Statements, subjects: Sequence[bytes]) -> dict[bytes, tuple[str, bytes]]: ...
    async def append(self, tx: Transaction, rows: Sequence[tuple[int, Arrived, str, bytes, bytes]]) -> None: ...
    async def rows(self, db: Statements, since: int, limit: int) -> list[Row]: ...
    async def nodes_between(self, db: Statements, since: int, until: int) -> dict[tuple[int, int], bytes]: ...
    async def checkpoints_between(self, db: Statements, since: int, until: int) -> list[Signed]: ...
    async def cosignatures_between(self, db: Statements, since: int, until: int) -> list[tuple[int, str, str]]: ...
    async def strays(self, db: Statements, size: int) -> int: ...
    async def marks(self, db: Statements, key_ids: Sequence[str]) -> dict[str, bytes]: ...
    async def mark_forgotten(self, tx: Transaction, key_id: str, mark: bytes) -> None: ...
    async def forget(self, tx: Transaction, subject: bytes, signed: int) -> str | None: ...
    async def nodes(self, db: Statements, names: Sequence[tuple[int, int]]) -> dict[tuple[int, int], bytes]: ...
    async def add_nodes(self, tx: Transaction, nodes: Sequence[tuple[int, int, bytes]]) -> None: ...
    async def newest(self, db: Statements) -> Signed | None: ...
    async def sign(self, tx: Transaction, signed: Signed, after: int) -> bool: ...
    async def checkpoint(self, db: Statements, size: int) -> Signed | None: ...
    async def cosigned(self, db: Statements) -> tuple[str, list[str]]: ...
    async def witnessed(self, db: Statements, witness: str) -> int: ...
    async def add_cosignature(self, tx: Transaction, size: int, witness: str, line: str) -> None: ...
    async def hashed_leaves(self, db: Statements, since: int, until: int) -> list[tuple[int, str, bytes, bytes]]: ...
    async def entries(self, db: Statements, agency_id: str, since: int, until: int, limit: int) -> list[Stored]: ...
    async def unsigned(self, db: Statements, size: int) -> int: ...
    async def entry(self, db: Statements, index: int) -> Stored | None: ...
    async def search(
        self,
        db: Statements,
        search: Search,
        size: int,
        subjects: Sequence[bytes] | None,
        target: bytes | None,
        before: int | None,
        limit: int,
    ) -> list[Stored]: ...
    async def producers(self, db: Statements) -> list[Producer]: ...
    async def heard(self, tx: Transaction, producers: Sequence[tuple[str, int, int, datetime]]) -> None: ...


class Announcer(Protocol):
    """Tells the world of checkpoints."""

    def announce(self, tx: Transaction, signed: Signed) -> None:
        """Publish it with the transaction."""
        ...


class Copies(Protocol):
    """Copies of checkpoints outside the database."""

    def newest(self) -> Signed | None:
        """The newest that was copied."""
        ...

    def keep(self, signed: Signed) -> None:
        """Copy one; an older one changes nothing."""
        ...

    def keep_cosigned(self, signed: Signed, witness: str) -> None:
        """Copy the newest that a witness has cosigned, as a note that anybody can check."""
        ...


class Witness(Protocol):
    """Somebody else who signs what is consistent with what he saw before."""

    @property
    def verifier(self) -> Verifier:
        """His name and key."""
        ...

    async def cosign(self, old: int, path: Sequence[bytes], note: str) -> SignedNote | int:
        """The note with his signature, or the size that he wants to be shown the way from. WitnessRefuses if he does not sign."""
        ...


def size_of(newest: Signed | None) -> int:
    """Leaves of the newest checkpoint; 0 of a log that has none."""
    return newest.size if newest else 0


def open_personal(stored: Stored, sealer: Sealer) -> bytes | None:
    """The personal part; None if it was not sealed by us for this leaf, or its key was forgotten."""
    if stored.subject is None or stored.wrapped is None:
        return None
    try:
        return sealer.open(stored.wrapped, stored.subject, stored.sealed, leaf_hash(stored.leaf))
    except Unsealable:
        return None


def mistakes(rows: Sequence[Row], sealer: Sealer) -> list[tuple[Row, str]]:
    """Rows that are not as we wrote them, and why."""
    found = ((row, row.mistake(open_personal(row.stored, sealer), lambda target: sealer.tag("target", target))) for row in rows)
    return [(row, mistake) for row, mistake in found if mistake]


class AuditService:
    """Takes records, signs, proves."""

    def __init__(
        self,
        database: Database,
        store: Store,
        sealer: Sealer,
        signer: Signer,
        copies: Copies,
        announcer: Announcer,
        audit: Audit,
        witnesses: Sequence[Witness] = (),
    ) -> None:
        self._database, self._store, self._sealer, self._signer = database, store, sealer, signer
        self._copies, self._announcer, self._audit, self._witnesses = copies, announcer, audit, witnesses
        self._grown, self._watchers = asyncio.Event(), 0
        # What keeps the log from going on; a contradiction that was found stays until this process ends.
        self._problem, self._contradiction, self._looked_at, self.rechecked = "", "", time.monotonic(), 0
        self._lags: dict[tuple[str, int], tuple[Lag, float]] = {}
        self._measured_at = time.monotonic()

    # --- in ------------------------------------------------------------------------------------------------------

    async def take(self, arrived: Sequence[Arrived]) -> None:
        """Give records their places, each once; PoisonError if a number of a producer has two."""
        by_name = {(each.producer, each.producer_seq): each for each in arrived}
        async with self._database.transaction() as tx:
            await self._store.lock(tx)
            known = await self._store.known(tx, list(by_name))
            for each in arrived:
                name = (each.producer, each.producer_seq)
                if known.get(name, by_name[name].record_id) != each.record_id:
                    raise PoisonError(f"number {each.producer_seq} of {each.producer} has two records")
            new = [each for name, each in by_name.items() if name not in known]
            if new:
                await self._append(tx, new)
        self._grown.set()

    async def _append(self, tx: Transaction, new: Sequence[Arrived]) -> None:
        subjects = [self._sealer.tag("actor", *each.actor) for each in new]
        keys = await self._store.keys(tx, [(str(uuid7()), subject, self._sealer.new_key(subject)) for subject in sorted(set(subjects))])
        rows = []
        for index, (each, subject) in enumerate(zip(new, subjects, strict=True), await self._store.next_index(tx)):
            key_id, wrapped = keys[subject]
            sealed = self._sealer.seal(wrapped, subject, each.personal, leaf_hash(each.leaf))
            rows.append((index, each, key_id, self._sealer.tag("target", each.target), sealed))
        await self._store.append(tx, rows)
        by_producer: dict[str, list[Arrived]] = {}
        for each in new:
            by_producer.setdefault(each.producer, []).append(each)
        await self._store.heard(
            tx,
            [
                (producer, max(each.producer_seq for each in some), len(some), max(each.at for each in some))
                for producer, some in sorted(by_producer.items())
            ],
        )

    async def integrate(self) -> None:
        """Grow the tree over all leaves that are committed, and sign it. Any replica may; one at a time does.

        What is signed is read back from the database and hashed anew. Inconsistent if the tree there is not the one that was signed.
        """
        self._grown.clear()
        while await self._integrate_some():
            pass

    async def integrate_soon(self) -> None:
        """The same as soon as there is something new here, or after a moment, for what a replica that died has left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await self._grown.wait()
        try:
            await self.integrate()
            self._looked_at, self._problem = time.monotonic(), ""
        except Inconsistent as error:  # what was signed can still be proved
            self._problem = str(error)
            telemetry.log().error("nothing more is signed until somebody has looked", why=str(error))
            await asyncio.sleep(_INCONSISTENT_S)

    def distrust(self, why: str) -> None:
        """Something that was signed is not as it was: nothing more is signed on top of it."""
        self._contradiction = self._contradiction or why

    async def _integrate_some(self) -> bool:
        if self._contradiction:
            raise Inconsistent(self._contradiction)
        async with self._database.transaction() as tx:
            await self._store.lock(tx)
            last = await self._store.newest(tx)
            size = size_of(last)
            rows = await self._store.rows(tx, size, _LEAVES_AT_ONCE)
            if not rows:
                if last is not None:
                    await asyncio.to_thread(self._copies.keep, last)  # should we have died before that
                return False
            await self._check_signed(tx, last)
            frontier = await self._frontier(tx, size, last.root if last else EMPTY_ROOT)
            # Whoever has only the database can write rows into it, but cannot seal: what we have not taken is not signed.
            for row, mistake in await asyncio.to_thread(mistakes, rows, self._sealer):
                raise Inconsistent(f"leaf {row.stored.index}: {mistake}")
            nodes = []
            for row in rows:
                if row.stored.index != frontier.size:
                    raise Inconsistent(f"leaf {frontier.size} is missing")
                if row.stored.wrapped is None:
                    raise Inconsistent(f"leaf {frontier.size}: it is not signed yet, and its key is gone")
                nodes += list(frontier.append(leaf_hash(row.stored.leaf)))
            await self._store.add_nodes(tx, nodes)
            signed = self._sign(frontier)
            if not await self._store.sign(tx, signed, size):
                raise Inconsistent(f"there is another checkpoint after the one of {size} leaves")
            self._announcer.announce(tx, signed)
        await asyncio.to_thread(self._copies.keep, signed)
        return len(rows) == _LEAVES_AT_ONCE

    async def _frontier(self, db: Statements, size: int, root: bytes) -> Frontier:
        nodes = await self._store.nodes(db, Frontier.names(size))
        try:
            frontier = Frontier.of(lambda level, index: nodes[level, index], size)
        except KeyError as error:
            raise Inconsistent(f"the tree of {size} leaves is not whole: node {error.args[0]} is missing") from error
        if frontier.root() != root:
            raise Inconsistent(f"the tree of {size} leaves is not the one that was signed")
        return frontier

    def _sign(self, frontier: Frontier) -> Signed:
        text = str(Checkpoint(self._signer.verifier.name, frontier.size, frontier.root()))
        return Signed(frontier.size, frontier.root(), str(SignedNote(text, (self._signer.sign(text),))))

    async def check_copies(self) -> None:
        """Before anything is taken: the database must not be behind what was copied out of it, nor be another one."""
        async with self._database.statements() as db:
            there = await self._store.newest(db)
            await self._check_signed(db, there)
        if there is not None:
            await asyncio.to_thread(self._copies.keep, there)
            telemetry.log().info("the database has what was signed", leaves=there.size)

    async def _check_signed(self, db: Statements, last: Signed | None) -> None:
        """The database's newest checkpoint must be one that we signed, and begin with what was copied: it may be exchanged under us."""
        size = size_of(last)
        if last is not None:
            try:
                found, _ = open_checkpoint(last.note, self._signer.verifier)
            except NoteError as error:
                raise Inconsistent(f"the newest checkpoint is not ours: {error}") from error
            if (found.size, found.root) != (last.size, last.root):
                raise Inconsistent("the newest checkpoint is not what was signed")
        copied = await asyncio.to_thread(self._copies.newest)
        if copied is None or (last is not None and (copied.size, copied.root) == (last.size, last.root)):
            return
        if last is None or copied.size > size:
            raise Inconsistent(f"the database has {size} leaves, and {copied.size} were signed: it is an older copy")
        try:
            path = await self._proof(db, lambda node: consistency(node, copied.size, size))
            check_consistency(copied.size, copied.root, size, last.root, path)
        except ProofError as error:
            raise Inconsistent(f"the tree of {size} leaves is not the one that was signed: {error}") from error

    # --- out -----------------------------------------------------------------------------------------------------

    async def log(self, caller: Caller) -> LogState:
        """How the log stands."""
        async with self._database.statements() as db:
            newest, (cosigned, lines) = await self._store.newest(db), await self._store.cosigned(db)
            producers = await self._store.producers(db)
        keys = [str(witness.verifier) for witness in self._witnesses]
        return LogState(newest.note if newest else "", str(self._signer.verifier), producers, cosigned + "".join(lines), keys)

    def measured(self, lags: Mapping[tuple[str, int], Lag]) -> None:
        """How far the readers of all replicas are from the end of each partition."""
        now = self._measured_at = time.monotonic()
        before, self._lags = self._lags, {}
        for place, lag in lags.items():
            last, moved_at = before.get(place, (lag, now))
            self._lags[place] = (lag, now if not lag.behind or lag.committed != last.committed else moved_at)

    def _intake_problem(self) -> str:
        now = time.monotonic()
        if (unknown := now - self._measured_at) > _UNKNOWN_S:
            return f"how many records wait on the topic has not been known for {unknown:.0f} s"
        # Each partition by itself: one replica that hangs is not made up for by another that works.
        stuck = [(lag.behind, now - moved_at) for lag, moved_at in self._lags.values() if lag.behind and now - moved_at > _WAITS_S]
        if not stuck:
            return ""
        waiting, since = sum(behind for behind, _ in stuck), max(since for _, since in stuck)
        return f"{waiting} records wait on the topic, and none of these has been taken for {since:.0f} s"

    async def health(self) -> Health:
        """Whether the log can be relied on."""
        async with self._database.statements() as db:
            newest = await self._store.newest(db)
            size = size_of(newest)
            unsigned = await self._store.unsigned(db, size)
        silence = time.monotonic() - self._looked_at
        unsigned_for = f"nothing was signed for {silence:.0f} s" if silence > _SILENT_S else ""
        problem = self._contradiction or self._problem or unsigned_for or self._intake_problem()
        return Health(problem, size, unsigned, self.rechecked, sum(lag.behind for lag, _ in self._lags.values()))

    async def leaves(self, caller: Caller, start: int, end: int) -> AsyncIterator[tuple[int, list[tuple[bytes, bytes]]]]:
        """All leaves of a range as (place of the first, (hash, bytes or nothing)); another agency's are hashes only."""
        async with self._database.transaction() as tx:
            newest = await self._store.newest(tx)
            size = size_of(newest)
            end = min(end or size, size)
            self._note(tx, caller, "audit.leaves_read", "audit", {"from": str(start), "until": str(end)})
        while start < end:
            async with self._database.statements() as db:
                rows = await self._store.hashed_leaves(db, start, min(end, start + _READ_AT_ONCE))
            if not rows or [row[0] for row in rows] != list(range(start, start + len(rows))):
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, f"leaf {start} or one of the next {_READ_AT_ONCE} is missing in the log")
            yield start, [(hashed, leaf if caller.may_see(agency) else b"") for _, agency, leaf, hashed in rows]
            start += len(rows)

    async def watch(self, caller: Caller, start: int | None) -> AsyncIterator[tuple[list[Entry], int]]:
        """For ever: entries of the caller's agency that a checkpoint covers, from a place on, and where to go on."""
        if self._watchers >= _WATCHERS_AT_MOST:
            raise Unavailable(Reason.ERROR_REASON_GOING_AWAY, "this replica has enough watchers; try later, or page with SearchEntries")
        self._watchers += 1
        try:
            async with self._database.transaction() as tx:
                newest = await self._store.newest(tx)
                next_index = start if start is not None else size_of(newest)
                self._note(tx, caller, "audit.watched", "audit", {"from": str(next_index)})
            while True:
                async with self._database.transaction(snapshot=True) as tx:
                    newest = await self._store.newest(tx)
                    size = size_of(newest)
                    found = await self._store.entries(tx, caller.agency_id, next_index, size, _WATCHED_AT_ONCE)
                whole = len(found) < _WATCHED_AT_ONCE
                after = max(next_index, size) if whole else found[-1].index + 1
                if found or after > next_index:
                    yield [self._opened(each) for each in found], after
                next_index = after
                if whole:
                    await asyncio.sleep(_WATCH_S)
        finally:
            self._watchers -= 1

    async def entry(self, caller: Caller, index: int, size: int = 0) -> tuple[Entry, str, list[bytes]]:
        """An entry, the checkpoint of that size (0: the newest), and the path from one to the other; NotFound also for another agency's."""
        async with self._database.transaction(snapshot=True) as tx:
            newest, stored = await self._store.newest(tx), await self._store.entry(tx, index)
            if size:
                newest = await self._store.checkpoint(tx, size)
            if stored is None or newest is None or index >= newest.size or not caller.may_see(stored.agency_id):
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such entry, or it is not signed yet")
            path = await self._proof(tx, lambda node: inclusion(node, index, newest.size))
            self._note(tx, caller, "audit.entry_read", f"audit/{index}", {})
        return self._opened(stored), newest.note, path

    async def search(self, caller: Caller, search: Search, before: int | None, limit: int) -> list[Entry]:
        """A page of what is found, the newest first."""
        # Unless it is said, an actor is of the agency, or of the platform, whose services act in everybody's matters.
        agencies = [search.actor_agency_id] if search.actor_agency_id else [search.agency_id, PLATFORM]
        subjects = [self._sealer.tag("actor", agency, search.actor_id) for agency in agencies] if search.actor_id else None
        target = self._sealer.tag("target", search.target) if search.target else None
        async with self._database.transaction() as tx:
            newest = await self._store.newest(tx)  # what is shown can be proved
            found = await self._store.search(tx, search, size_of(newest), subjects, target, before, limit)
            details = {
                "actor": search.actor_id, "target": search.target, "action": search.action, "emergency": search.emergency_id,
                "found": str(len(found)),
            }  # fmt: skip
            self._note(tx, caller, "audit.searched", "audit", details)
        return [self._opened(each) for each in found]

    async def prove_consistency(self, caller: Caller, size: int) -> tuple[str, list[bytes]]:
        """The newest checkpoint, and the path that proves that it begins with the first `size` leaves."""
        async with self._database.transaction(snapshot=True) as tx:
            newest = await self._store.newest(tx)
            if newest is None or size > newest.size:
                raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, f"the log has {size_of(newest)} leaves")
            path = await self._proof(tx, lambda node: consistency(node, size, newest.size))
        return newest.note, path

    async def _proof(self, db: Statements, prove: Callable[[Node], list[bytes]]) -> list[bytes]:
        """A proof needs few nodes: which ones, the proof itself tells; then they are read at once. ProofError if one is missing."""
        names: list[tuple[int, int]] = []

        def name(level: int, index: int) -> bytes:
            names.append((level, index))
            return b""

        prove(name)
        nodes = await self._store.nodes(db, names)
        if missing := [each for each in names if each not in nodes]:
            raise ProofError(f"node {missing[0]} is missing in the tree")
        return prove(lambda level, index: nodes[level, index])

    def _opened(self, stored: Stored) -> Entry:
        personal = open_personal(stored, self._sealer) if stored.wrapped is not None else b""
        if personal is None:
            telemetry.log().error("a personal part cannot be opened", index=stored.index)
        return Entry(stored.index, stored.leaf, personal or b"")

    async def forget(self, caller: Caller, agency_id: str, actor_id: str, why: str) -> None:
        """Make all that the log says of an actor unreadable for ever; the tree stays as it is. NotFound if it says nothing."""
        if not caller.may_see(agency_id):
            raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "the log says nothing of that actor")
        async with self._database.transaction() as tx:
            await self._store.lock(tx)
            newest, subject = await self._store.newest(tx), self._sealer.tag("actor", agency_id, actor_id)
            if not await self._store.keys_of(tx, [subject]):
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "the log says nothing of that actor")
            key_id = await self._store.forget(tx, subject, size_of(newest))
            if key_id is None:
                raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "something of that actor is not signed yet; try again in a moment")
            # In the same transaction: who rereads the log must not wait for the record to come round.
            await self._store.mark_forgotten(tx, key_id, self._sealer.tag("forgotten", key_id))
            self._note(tx, caller, "subject.forgotten", f"subjects/{key_id}", {"why": why})

    # --- witnesses -----------------------------------------------------------------------------------------------

    async def ask_witness(self, witness: Witness) -> bool:
        """Have the newest checkpoint cosigned, and tell the world; False if he has seen it. Inconsistent if he was shown another log."""
        name = witness.verifier.name
        async with self._database.transaction(snapshot=True) as tx:
            newest, old = await self._store.newest(tx), await self._store.witnessed(tx, name)
        if newest is None or newest.size <= old:
            return False
        answer: SignedNote | int = old
        for _ in range(_WITNESS_ATTEMPTS):  # he may have seen more than we know of
            if not isinstance(answer, int):
                break
            old = answer
            if old > newest.size:
                raise Inconsistent(f"{name} has seen a log of {old} leaves, and this one has {newest.size}")
            async with self._database.statements() as db:
                path = await self._proof(db, lambda node, old=old: consistency(node, old, newest.size)) if old else []  # type: ignore[misc]
            answer = await witness.cosign(old, path, newest.note)
        if isinstance(answer, int):
            raise Inconsistent(f"{name} knows neither {old} nor {answer} leaves of this log")
        line = str(SignedNote(answer.text, tuple(s for s in answer.signatures if s.name == name))).rpartition("\n\n")[2]
        async with self._database.transaction() as tx:
            await self._store.add_cosignature(tx, newest.size, name, line)
            cosigned = Signed(newest.size, newest.root, newest.note + line)
            self._announcer.announce(tx, cosigned)
        await asyncio.to_thread(self._copies.keep_cosigned, cosigned, name)
        return True

    async def ask_witnesses(self) -> list[str]:
        """Each of them once; who is away is asked again later. Returns what people have to look at."""
        disputes = []
        for witness in self._witnesses:
            try:
                await self.ask_witness(witness)
            except WitnessRefuses as error:
                telemetry.log().warning("a witness has not cosigned", witness=witness.verifier.name, why=str(error))
            except Inconsistent as error:  # he shows no proof, so a faulty one does not end the log; people have to look
                disputes.append(str(error))
                telemetry.log().error("a witness has seen another log", witness=witness.verifier.name, why=str(error))
            except ProofError as error:
                disputes.append(str(error))
                telemetry.log().error("the log cannot be proved to a witness", witness=witness.verifier.name, why=str(error))
        return disputes

    def _note(self, tx: Transaction, caller: Caller, action: str, target: str, details: dict[str, str]) -> None:
        self._audit.record(tx, Noted(action, caller.actor, target, caller.agency_id, details=details))


class Recheck:
    """Reads back all that was signed, some of it at a time and again and again, with a code path of its own."""

    def __init__(self, database: Database, store: Store, sealer: Sealer, log: Verifier, witnesses: Sequence[Verifier] = ()) -> None:
        self._database, self._store, self._sealer, self._log = database, store, sealer, log
        self._witnesses = {witness.name: witness for witness in witnesses}
        self._tree, self._last = Recomputed(), 0

    @property
    def size(self) -> int:
        """Leaves that were read in the last round that is over, or in the present one if that has come further."""
        return max(self._last, self._tree.size)

    async def step(self) -> tuple[list[Finding], bool]:
        """Look at the next leaves; what is found, and whether that was the end of the round."""
        since = self._tree.size
        async with self._database.transaction(snapshot=True) as tx:
            newest = await self._store.newest(tx)
            size = size_of(newest)
            until = min(size, since + _READ_AT_ONCE)
            rows = await self._store.rows(tx, since, until - since) if until > since else []
            nodes = await self._store.nodes_between(tx, since, until)
            checkpoints = await self._store.checkpoints_between(tx, since, until)
            cosignatures = await self._store.cosignatures_between(tx, since, until)
            gone = [row.stored for row in rows if row.stored.wrapped is None]
            marks = await self._store.marks(tx, sorted({each.key_id for each in gone})) if gone else {}
            strays = await self._store.strays(tx, size) if until == size else 0
        found = await asyncio.to_thread(self._check, since, until, rows, nodes, checkpoints, cosignatures)
        for each in gone:
            if marks.get(each.key_id) != self._sealer.tag("forgotten", each.key_id):
                found.append(Finding(each.index, each.index + 1, "its key is gone, and we have not forgotten it"))
        if strays:
            found.append(Finding(0, size, f"{strays} rows lie where the log has no place for them"))
        if until == size:
            self._tree, self._last = Recomputed(), size
        return found, until == size

    def _check(
        self, since: int, until: int, rows: Sequence[Row], nodes: Mapping[tuple[int, int], bytes], checkpoints: Sequence[Signed],
        cosignatures: Sequence[tuple[int, str, str]],
    ) -> list[Finding]:  # fmt: skip
        by_index = {row.stored.index: row for row in rows if row.stored.index < until}
        by_size = {signed.size: signed for signed in checkpoints}
        found = []
        for index in range(since, until):
            row = by_index.get(index)
            found += self._tree.add(leaf_hash(row.stored.leaf) if row else None, nodes)
            if signed := by_size.get(index + 1):
                found += self._check_checkpoint(signed)
        for row, mistake in mistakes(list(by_index.values()), self._sealer):
            found.append(Finding(row.stored.index, row.stored.index + 1, mistake))
        for size, name, line in cosignatures:
            found += self._check_cosignature(by_size.get(size), size, name, line)
        return found

    def _check_checkpoint(self, signed: Signed) -> list[Finding]:
        where = Finding(signed.size - 1, signed.size, "the checkpoint after it is not what was signed")
        try:
            point, _ = open_checkpoint(signed.note, self._log)
        except NoteError:
            return [where]
        if (point.size, point.root) != (signed.size, signed.root):
            return [where]
        wrong = self._tree.anchor(signed.root)
        return [wrong] if wrong else []

    def _check_cosignature(self, signed: Signed | None, size: int, name: str, line: str) -> list[Finding]:
        witness = self._witnesses.get(name)
        if witness is None:
            return []  # one that is not asked any more
        try:
            if signed is None:
                raise NoteError("there is no such checkpoint")
            witness.check(SignedNote.parse(signed.note + line))
        except NoteError as error:
            return [Finding(size - 1, size, f"what {name} said of the checkpoint after it was changed: {error}")]
        return []
