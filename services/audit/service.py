"""Use cases of the log: records become leaves in one order, the tree grows over them and is signed, and anybody who may gets proofs."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Protocol

from chassis import telemetry
from chassis.audit import Audit
from chassis.audit import Entry as Noted
from chassis.clock import Clock
from chassis.db import Database, Statements, Transaction
from chassis.errors import InvalidRequest, NotFound, PoisonError
from chassis.identity import PLATFORM, Caller
from chassis.sealing import Sealer, Unsealable
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from tlog.merkle import EMPTY_ROOT, Frontier, Node, ProofError, check_consistency, consistency, inclusion, leaf_hash
from tlog.note import Checkpoint, NoteError, SignedNote, Signer, open_checkpoint
from uuid_utils import uuid7

from services.audit.model import Arrived, Entry, Inconsistent, Producer, Search, Signed, Stored

_LEAVES_AT_ONCE, _LOOK_S, _INCONSISTENT_S = 2000, 1.0, 10.0


class Store(Protocol):
    """What the use cases need of the store; `store.Store` describes each."""

    async def lock(self, tx: Transaction) -> None: ...
    async def known(self, tx: Transaction, names: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]: ...
    async def next_index(self, tx: Transaction) -> int: ...
    async def keys(self, tx: Transaction, new: Sequence[tuple[str, bytes, bytes]]) -> dict[bytes, tuple[str, bytes]]: ...
    async def append(self, tx: Transaction, rows: Sequence[tuple[int, Arrived, str, bytes, bytes]]) -> None: ...
    async def leaves(self, db: Statements, since: int, limit: int) -> list[tuple[int, bytes]]: ...
    async def nodes(self, db: Statements, names: Sequence[tuple[int, int]]) -> dict[tuple[int, int], bytes]: ...
    async def add_nodes(self, tx: Transaction, nodes: Sequence[tuple[int, int, bytes]]) -> None: ...
    async def newest(self, db: Statements) -> Signed | None: ...
    async def sign(self, tx: Transaction, signed: Signed, after: int, at: datetime) -> bool: ...
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
        clock: Clock,
    ) -> None:
        self._database, self._store, self._sealer, self._signer = database, store, sealer, signer
        self._copies, self._announcer, self._audit, self._clock = copies, announcer, audit, clock
        self._grown = asyncio.Event()

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
            sealed = self._sealer.seal(wrapped, subject, each.personal, each.record_id.encode())
            rows.append((index, each, key_id, self._sealer.tag("target", each.target), sealed))
        await self._store.append(tx, rows)

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
        except Inconsistent as error:  # what was signed can still be proved
            telemetry.log().error("nothing more is signed until somebody has looked", why=str(error))
            await asyncio.sleep(_INCONSISTENT_S)

    async def _integrate_some(self) -> bool:
        async with self._database.transaction() as tx:
            await self._store.lock(tx)
            last = await self._store.newest(tx)
            size = last.size if last else 0
            leaves = await self._store.leaves(tx, size, _LEAVES_AT_ONCE)
            if not leaves:
                if last is not None:
                    await asyncio.to_thread(self._copies.keep, last)  # should we have died before that
                return False
            await self._check_signed(tx, last)
            frontier = await self._frontier(tx, size, last.root if last else EMPTY_ROOT)
            nodes = []
            for index, leaf in leaves:
                if index != frontier.size:
                    raise Inconsistent(f"leaf {frontier.size} is missing")
                nodes += list(frontier.append(leaf_hash(leaf)))
            await self._store.add_nodes(tx, nodes)
            signed = self._sign(frontier)
            if not await self._store.sign(tx, signed, size, self._clock.now()):
                raise Inconsistent(f"there is another checkpoint after the one of {size} leaves")
            self._announcer.announce(tx, signed)
        await asyncio.to_thread(self._copies.keep, signed)
        return len(leaves) == _LEAVES_AT_ONCE

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
        size = last.size if last else 0
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
        except (ProofError, KeyError) as error:
            raise Inconsistent(f"the tree of {size} leaves is not the one that was signed: {error}") from error

    # --- out -----------------------------------------------------------------------------------------------------

    async def log(self, caller: Caller) -> tuple[str, str, list[Producer]]:
        """The newest checkpoint, the key, and how far the producers have come."""
        async with self._database.statements() as db:
            newest = await self._store.newest(db)
            return newest.note if newest else "", str(self._signer.verifier), await self._store.producers(db)

    async def entry(self, caller: Caller, index: int) -> tuple[Entry, str, list[bytes]]:
        """An entry, the newest checkpoint, and the path from one to the other; NotFound also for another agency's."""
        async with self._database.transaction(snapshot=True) as tx:
            newest, stored = await self._store.newest(tx), await self._store.entry(tx, index)
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
            found = await self._store.search(tx, search, newest.size if newest else 0, subjects, target, before, limit)
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
                raise InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, f"the log has {newest.size if newest else 0} leaves")
            path = await self._proof(tx, lambda node: consistency(node, size, newest.size))
        return newest.note, path

    async def _proof(self, db: Statements, prove: Callable[[Node], list[bytes]]) -> list[bytes]:
        """A proof needs few nodes: which ones, the proof itself tells; then they are read at once."""
        names: list[tuple[int, int]] = []

        def name(level: int, index: int) -> bytes:
            names.append((level, index))
            return b""

        prove(name)
        nodes = await self._store.nodes(db, names)
        return prove(lambda level, index: nodes[level, index])

    def _opened(self, stored: Stored) -> Entry:
        personal = b""
        if stored.subject is not None and stored.wrapped is not None:
            try:
                personal = self._sealer.open(stored.wrapped, stored.subject, stored.sealed, stored.record_id.encode())
            except Unsealable as error:
                telemetry.log().error("a personal part cannot be opened", index=stored.index, why=str(error))
        return Entry(stored.index, stored.leaf, personal)

    def _note(self, tx: Transaction, caller: Caller, action: str, target: str, details: dict[str, str]) -> None:
        self._audit.record(tx, Noted(action, caller.actor, target, caller.agency_id, details=details))
