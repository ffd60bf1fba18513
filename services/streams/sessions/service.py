"""Use cases of sessions and grants: cameras of open emergencies stream, and who may see them does.

All of it runs beside the start of cameras, in transactions of its own: nothing of video can hold that up.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Protocol

from chassis.audit import Audit, Entry
from chassis.clock import Clock
from chassis.db import Database, Row, Statements, Transaction
from chassis.errors import Changed, Forbidden, NotFound, Unauthenticated, Unavailable, WrongState
from chassis.identity import Caller
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from uuid_utils import uuid7

from services.streams.sessions.model import (
    GRANT_LASTS,
    LEASE,
    TOKEN_LASTS,
    Grant,
    GrantEnd,
    Holding,
    Relay,
    Session,
    SessionEnd,
    Use,
    Wanted,
    cameras_of,
    choose,
)

_SYSTEM = Actor(kind=ActorKind.ACTOR_KIND_SERVICE, id="service/streams", agency_id="platform")
# Revocations that wait for a relay at the most: one that does not read loses its watch, and renews when it comes back.
_PUSHES_AT_MOST = 1000
_SWEEP_S = 0.25
# Sweeps that lie further apart than this are no steady sight of the relays; how long it takes to believe it again.
_GAP_S, _STEADY_S = 1.0, 3.0
Revoked = tuple[str, str]  # grant, cause
Told = tuple[list[str], list[str]]  # sessions that are over or elsewhere, sessions that are muted


class Store(Protocol):
    """What the use cases need of the store; `store.Store` describes each."""

    async def report(self, db: Statements, relay: Relay) -> None: ...
    async def relay(self, db: Statements, relay_id: str) -> Relay | None: ...
    async def loads(self, db: Statements) -> tuple[dict[str, int], set[str]]: ...
    async def due(self, db: Statements) -> set[str]: ...
    async def wanted(self, db: Statements) -> list[Wanted]: ...
    async def add(self, tx: Transaction, new: Sequence[Session]) -> list[Session]: ...
    async def save(self, tx: Transaction, changed: Sequence[Session]) -> None: ...
    async def session(self, tx: Transaction, session_id: str) -> Session | None: ...
    async def sessions(self, tx: Transaction, ids: Sequence[str]) -> list[Session]: ...
    async def open_of_cameras(self, tx: Transaction, names: Sequence[tuple[str, str]]) -> list[Session]: ...
    async def held_by_others(self, tx: Transaction, holdings: Sequence[Holding]) -> list[Session]: ...
    async def homeless(self, tx: Transaction) -> list[Session]: ...
    async def pointless(self, tx: Transaction) -> list[Session]: ...
    async def silent(self, tx: Transaction) -> list[Session]: ...
    async def muted(self, tx: Transaction) -> list[tuple[Session, bool]]: ...
    async def still_live(self, db: Statements, relay_id: str, heard: Sequence[tuple[str, datetime]]) -> dict[str, bool]: ...
    async def of_emergency(self, db: Statements, emergency_id: str, agency_id: str) -> list[Session]: ...
    async def watchable(self, tx: Transaction, emergency_id: str, camera_id: str) -> Row | None: ...
    async def add_grant(self, tx: Transaction, grant: Grant) -> None: ...
    async def save_grants(self, tx: Transaction, changed: Sequence[Grant]) -> None: ...
    async def grant_of_token(self, tx: Transaction, token_hash: bytes) -> Grant | None: ...
    async def grants(self, tx: Transaction, ids: Sequence[str]) -> list[Grant]: ...
    async def groundless(self, tx: Transaction) -> list[tuple[Grant, str]]: ...
    async def lapsed(self, tx: Transaction) -> list[Grant]: ...
    async def renew(self, db: Statements, relay_id: str, ids: Sequence[str], until: datetime) -> set[str]: ...
    async def causes(self, db: Statements, ids: Sequence[str]) -> dict[str, str]: ...


class Orders(Protocol):
    """Cameras' orders, which sessions and watchers are part of."""

    async def raise_orders(self, tx: Transaction, camera_ids: Sequence[str], agency_id: str) -> None:
        """The orders of these cameras have changed."""
        ...


class Announcer(Protocol):
    """Tells the world of sessions and grants."""

    def announce_session(self, tx: Transaction, session: Session) -> None:
        """Publish the snapshot with the transaction."""
        ...

    def announce_grant(self, tx: Transaction, grant: Grant) -> None:
        """Publish the snapshot with the transaction."""
        ...


class SessionsService:
    """Sessions, grants, relays. `nudge` is set, by anybody, when there may be something to do now."""

    def __init__(
        self, database: Database, store: Store, orders: Orders, wake: Callable[[str, Sequence[str]], None],
        announcer: Announcer, audit: Audit, clock: Clock, nudge: asyncio.Event,
    ) -> None:  # fmt: skip
        self._database, self._store, self._orders, self._wake = database, store, orders, wake
        self._announcer, self._audit, self._clock, self._nudge = announcer, audit, clock, nudge
        self._watches: dict[str, set[asyncio.Queue[Revoked | None]]] = {}
        self._swept_at = self._steady_since = 0.0

    # --- what time and other events make due ---------------------------------------------------------------------

    async def sweep(self) -> None:
        """Do all that is due, at once after a nudge or a moment later; any replica may, also several together."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SWEEP_S):
                await self._nudge.wait()
        self._nudge.clear()
        async with self._database.statements() as db:
            due = await self._store.due(db)
        if (now := time.monotonic()) - self._swept_at > _GAP_S:
            self._steady_since = now
        self._swept_at = now
        # Who must not watch any more comes first.
        if "revoke" in due:
            await self._revoke_groundless()
        if "place" in due:
            await self._place()
        # After a time without a database every relay looks dead: each gets the time to say that it is not.
        if "move" in due and now - self._steady_since > _STEADY_S:
            await self._move()
        if "end" in due:
            await self._end(self._store.pointless, SessionEnd.EMERGENCY_CLEARED)
        if "silence" in due:
            await self._note_silence()
        if "mute" in due:
            await self._note_mute()
        if "lapse" in due:
            await self._lapse()

    async def _place(self) -> None:
        """Begin sessions, each at the relay with the fewest."""
        now = self._clock.now()
        async with self._database.transaction() as tx:
            wanted = _one_a_camera(await self._store.wanted(tx))
            officers = {(w.agency_id, w.camera_id): w.officer_id for w in wanted}
            there = await self._store.open_of_cameras(tx, list(officers))
            # Another replica may have placed the very session meanwhile: only another officer's is over.
            others = [session for session in there if session.officer_id != officers[session.agency_id, session.camera_id]]
            gone = [session.ended(SessionEnd.HOLDER_CHANGED, now) for session in others]
            await self._save(tx, others, gone)
            loads, full = await self._store.loads(tx)
            relays = choose(loads, len(wanted), full)
            new = [Session.begin(str(uuid7()), w, r, secrets.token_urlsafe(32), now) for w, r in zip(wanted, relays, strict=True)]
            added = await self._store.add(tx, new)
            for session in added:
                self._tell(tx, session, "session.begun")
            await self._raise(tx, [*gone, *added])
        self._wake_cameras([*gone, *added])
        if gone:
            self._nudge.set()  # who watched the old holder's stream must not go on

    async def _move(self) -> None:
        """Sessions of relays that are gone go to others; cameras follow their orders, viewers ask again."""
        async with self._database.transaction() as tx:
            lost = await self._store.homeless(tx)
            loads, full = await self._store.loads(tx)
            relays = choose(loads, len(lost), full)
            moved = [session.moved(relay) for session, relay in zip(lost, relays, strict=True)]
            await self._save(tx, lost, moved)
            await self._raise(tx, moved)
        self._wake_cameras(moved)

    async def _end(self, find: Callable[[Transaction], Awaitable[list[Session]]], cause: SessionEnd) -> list[Session]:
        """End what is found; its cameras learn it."""
        now = self._clock.now()
        async with self._database.transaction() as tx:
            found = await find(tx)
            ended = [session.ended(cause, now) for session in found]
            await self._save(tx, found, ended)
            await self._raise(tx, ended)
        self._wake_cameras(ended)
        return ended

    async def _note_silence(self) -> None:
        now = self._clock.now()
        async with self._database.transaction() as tx:
            found = await self._store.silent(tx)
            after = [session.silent(now) for session in found]
            await self._save(tx, found, after)
            lost = [session for session in after if session.ended_at]
            await self._raise(tx, lost)
        self._wake_cameras(lost)
        if lost:
            self._nudge.set()

    async def _note_mute(self) -> None:
        async with self._database.transaction() as tx:
            found = await self._store.muted(tx)
            await self._save(tx, [session for session, _ in found], [session.muted(is_muted=is_muted) for session, is_muted in found])

    async def _revoke_groundless(self) -> None:
        now = self._clock.now()
        async with self._database.transaction() as tx:
            found = await self._store.groundless(tx)
            revoked = [grant.revoked(_cause(cause), now) for grant, cause in found]
            await self._save_grants(tx, [grant for grant, _ in found], revoked)
        self._push(revoked)

    async def _lapse(self) -> None:
        now = self._clock.now()
        async with self._database.transaction() as tx:
            found = await self._store.lapsed(tx)
            lapsed = [grant.lapsed(now) for grant in found]
            sessions = await self._save_grants(tx, found, lapsed)
        self._push(lapsed)
        self._wake_cameras(sessions)

    async def hold(self, holdings: Sequence[Holding]) -> None:
        """Cameras are worn by these officers now: what streams for somebody else ends."""

        async def worn_by_others(tx: Transaction) -> list[Session]:
            found = await self._store.held_by_others(tx, holdings)
            return list({session.session_id: session for session in found}.values())

        if await self._end(worn_by_others, SessionEnd.HOLDER_CHANGED):
            self._nudge.set()

    # --- what relays ask and tell --------------------------------------------------------------------------------

    async def report(self, relay: Relay, ages: Sequence[tuple[str, timedelta, bool]], not_kept: Collection[str] = ()) -> Told:
        """A relay is there; `ages` are its sessions with the age of their last media, and whether it has stopped.

        For `not_kept` it had no room. Returns what the relay has to know of them.
        """
        now = self._clock.now()
        heard = [(session_id, now - age, stopped) for session_id, age, stopped in ages]
        async with self._database.statements() as db:
            await self._store.report(db, relay)
            running = [(session_id, at) for session_id, at, stopped in heard if not stopped]
            same = await self._store.still_live(db, relay.relay_id, running) if running else {}
        muted = [session_id for session_id, is_muted in same.items() if is_muted]
        news = {session_id: (at, stopped) for session_id, at, stopped in heard if session_id not in same}
        if not_kept:
            await self._alarm(relay.relay_id, not_kept)
        if not news:
            return [], muted
        async with self._database.transaction() as tx:
            there = await self._store.sessions(tx, sorted(news))
            # Only the relay that has the session now may end it: at another one it was only cut off.
            after = [
                s.heard(min(news[s.session_id][0], now), stopped=news[s.session_id][1] and s.relay_id == relay.relay_id, now=now)
                for s in there
            ]
            await self._save(tx, there, after)
            over = [a for b, a in zip(there, after, strict=True) if a.ended_at and not b.ended_at]
            await self._raise(tx, over)
        self._wake_cameras(over)
        if over:
            self._nudge.set()
        elsewhere = [s.session_id for s in after if s.ended_at or s.relay_id != relay.relay_id]
        return elsewhere, muted + [s.session_id for s in after if s.audio_muted]

    async def _alarm(self, relay_id: str, not_kept: Collection[str]) -> None:
        """Media of sessions is lost for want of room: an event, an audit record, and another relay if one has room."""
        now = self._clock.now()
        async with self._database.transaction() as tx:
            found = await self._store.sessions(tx, sorted(not_kept))
            there = [session for session in found if not session.ended_at and session.relay_id == relay_id]
            loads, full = await self._store.loads(tx)
            others = choose({name: count for name, count in loads.items() if name not in full and name != relay_id}, len(there))
            noted = [session.not_kept(now) for session in there]
            after = [n.moved(o or n.relay_id) if n is not s else s for s, n, o in zip(there, noted, others, strict=True)]
            await self._save(tx, there, after)
            for old, new in zip(there, after, strict=True):
                if new.not_kept_at != old.not_kept_at:
                    self._audit_session(tx, old, "session.not_kept")
            moved = [new for old, new in zip(there, after, strict=True) if new.relay_id != old.relay_id]
            await self._raise(tx, moved)
        self._wake_cameras(moved)

    async def admit(self, relay_id: str, camera: tuple[str, str], session_id: str, token: str) -> str:
        """Whether a camera, (agency, id) as its certificate says, may send this session's media to this relay; returns the recording.

        Forbidden if it is not its session or its token, Changed if the session is over or elsewhere.
        """
        async with self._database.transaction() as tx:
            session = await self._store.session(tx, session_id)
            if (
                session is None
                or (session.agency_id, session.camera_id) != camera
                or not secrets.compare_digest(session.token.encode(), token.encode())
            ):
                raise Forbidden(Reason.ERROR_REASON_CALLER_NOT_ALLOWED, "this is no session of this camera, or not its token")
            if session.ended_at or session.relay_id != relay_id:
                raise Changed(Reason.ERROR_REASON_SESSION_MOVED, "the session is over, or at another relay: see the newest orders")
            await self._save(tx, [session], [session.admitted()])
        return session.session_id

    async def redeem(self, relay_id: str, token: str) -> Grant:
        """What a viewer's token stands for; once, in time, while its reason holds. Else Unauthenticated."""
        now = self._clock.now()
        async with self._database.transaction() as tx:
            grant = await self._store.grant_of_token(tx, _digest(token))
            redeemed = grant.redeemed(relay_id, now) if grant else None
            if grant is None or redeemed is None or redeemed is grant:
                raise Unauthenticated(Reason.ERROR_REASON_TOKEN_INVALID, "the token is unknown, used, too old, or its reason is gone")
            session = await self._store.session(tx, grant.session_id)
            if session is None or session.relay_id != relay_id:
                raise Changed(Reason.ERROR_REASON_SESSION_MOVED, "the session is at another relay now: ask for another token")
            sessions = await self._save_grants(tx, [grant], [redeemed])
        self._wake_cameras(sessions)
        return redeemed

    async def renew(self, relay_id: str, ids: Sequence[str]) -> list[Revoked]:
        """Prolong what a relay serves; returns what it must end, with the cause."""
        async with self._database.statements() as db:
            holds = await self._store.renew(db, relay_id, ids, self._clock.now() + LEASE) if ids else set()
            over = [grant_id for grant_id in ids if grant_id not in holds]
            causes = await self._store.causes(db, over) if over else {}
        return [(grant_id, causes.get(grant_id) or GrantEnd.EXPIRED) for grant_id in over]

    async def end_grants(self, uses: Sequence[Use]) -> None:
        """What grants came to; told again it changes nothing."""
        now = self._clock.now()
        by_id = {use.grant_id: use for use in uses}
        async with self._database.transaction() as tx:
            found = await self._store.grants(tx, list(by_id))
            sessions = await self._save_grants(tx, found, [grant.used(by_id[grant.grant_id], now) for grant in found])
        self._wake_cameras(sessions)

    @contextmanager
    def watching(self, relay_id: str) -> Iterator[AsyncIterator[Revoked]]:
        """Grants of a relay that this replica ends from now on, as it ends them; Unavailable when the relay does not keep up."""
        queue: asyncio.Queue[Revoked | None] = asyncio.Queue(_PUSHES_AT_MOST + 1)
        watches = self._watches.setdefault(relay_id, set())
        watches.add(queue)

        async def revocations() -> AsyncIterator[Revoked]:
            while (revoked := await queue.get()) is not None:
                yield revoked
            raise Unavailable(Reason.ERROR_REASON_GOING_AWAY, "too many revocations wait: renew, and watch again")

        try:
            yield revocations()
        finally:
            watches.discard(queue)

    def _push(self, grants: Sequence[Grant]) -> None:
        """Tell their relays at once, after the commit; whom this does not reach learns it when it renews."""
        for grant in grants:
            for queue in self._watches.get(grant.relay_id, ()) if grant.revoked_at and grant.redeemed_at else ():
                if queue.qsize() < _PUSHES_AT_MOST:
                    queue.put_nowait((grant.grant_id, grant.end_cause))
                elif not queue.full():
                    queue.put_nowait(None)

    # --- what people ask -----------------------------------------------------------------------------------------

    async def list_sessions(self, caller: Caller, emergency_id: str) -> list[Session]:
        """The sessions of an emergency's cameras; empty also for another agency's."""
        async with self._database.statements() as db:
            return await self._store.of_emergency(db, emergency_id, caller.agency_id)

    async def watch(self, caller: Caller, emergency_id: str, camera_id: str) -> tuple[Grant, Session, str, str]:
        """A grant, its session, the relay's address and a token. NotFound, or WrongState if there is nothing to watch (now)."""
        now, token = self._clock.now(), secrets.token_urlsafe(32)
        async with self._database.transaction() as tx:
            reason = await self._store.watchable(tx, emergency_id, camera_id)
            if reason is None or reason["agency_id"] != caller.agency_id:
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such emergency")
            if not reason["is_open"]:
                raise WrongState(Reason.ERROR_REASON_EMERGENCY_CLEARED, "the emergency has been cleared: nobody watches because of it")
            if reason["officer_id"] is None:
                raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "the emergency has no such camera")
            there = await self._store.open_of_cameras(tx, [(caller.agency_id, camera_id)])
            is_theirs = bool(there) and there[0].officer_id == reason["officer_id"]  # and not of who wears the camera since
            relay = await self._store.relay(tx, there[0].relay_id) if is_theirs else None
            if relay is None:
                raise WrongState(Reason.ERROR_REASON_NO_STREAM, "the officer has no stream of this camera, or no relay takes it yet")
            session = there[0]
            grant = Grant(
                str(uuid7()), 1, session.session_id, camera_id, emergency_id, session.agency_id, caller.actor.id, relay.relay_id,
                _digest(token), now + TOKEN_LASTS, now, now + GRANT_LASTS,
            )  # fmt: skip
            await self._store.add_grant(tx, grant)
            self._tell_grant(tx, grant, "grant.issued", caller.actor)
        return grant, session, relay.view_url, token

    async def extend(self, caller: Caller, grant_id: str) -> tuple[Grant, timedelta]:
        """Prolong a grant of the caller's own; returns it with the time that is left. WrongState if it is over."""
        now = self._clock.now()
        async with self._database.transaction() as tx:
            grant = _of_agency(caller, await self._store.grants(tx, [grant_id]))
            if grant.viewer != caller.actor.id:
                raise Forbidden(Reason.ERROR_REASON_CALLER_NOT_ALLOWED, "only its viewer prolongs a grant")
            extended = grant.extended(now)
            if extended is grant:
                raise WrongState(Reason.ERROR_REASON_NO_STREAM, "the grant is over: ask for another")
            await self._save_grants(tx, [grant], [extended])
        return extended, extended.expires_at - now

    async def revoke(self, caller: Caller, grant_id: str) -> Grant:
        """End a grant of the caller's agency; NotFound if there is none."""
        async with self._database.transaction() as tx:
            grant = _of_agency(caller, await self._store.grants(tx, [grant_id]))
            revoked = grant.revoked(GrantEnd.REVOKED, self._clock.now())
            sessions = await self._save_grants(tx, [grant], [revoked], caller.actor)
        self._push([revoked])
        self._wake_cameras(sessions)
        return revoked

    # --- what they have in common --------------------------------------------------------------------------------

    async def _save(self, tx: Transaction, before: Sequence[Session], after: Sequence[Session]) -> None:
        """Write what is different, announce what has a new version."""
        changed = [(b, a) for b, a in zip(before, after, strict=True) if a is not b]
        await self._store.save(tx, [a for _, a in changed])
        for old, new in changed:
            if new.version == old.version:
                continue
            if new.ended_at and not old.ended_at:
                self._tell(tx, new, "session.ended")
            else:
                self._announcer.announce_session(tx, new)
                if new.live_at and not old.live_at:
                    self._audit_session(tx, new, "session.live")

    async def _save_grants(self, tx: Transaction, before: Sequence[Grant], after: Sequence[Grant], actor: Actor = _SYSTEM) -> list[Session]:
        """Write, announce and audit what is different; returns the sessions whose cameras have to show it otherwise now."""
        changed = [(b, a) for b, a in zip(before, after, strict=True) if a is not b]
        await self._store.save_grants(tx, [a for _, a in changed])
        for old, new in changed:
            for action, is_so in (
                ("grant.redeemed", new.redeemed_at and not old.redeemed_at), ("grant.revoked", new.revoked_at and not old.revoked_at),
                ("grant.ended", new.ended_at and not old.ended_at),
            ):  # fmt: skip
                if is_so:
                    self._note(tx, new, action, actor)
            self._announcer.announce_grant(tx, new)
        shown = {new.session_id for old, new in changed if _is_watching(old) != _is_watching(new)}
        sessions = await self._store.sessions(tx, sorted(shown)) if shown else []
        await self._raise(tx, sessions)
        return sessions

    def _tell(self, tx: Transaction, session: Session, action: str) -> None:
        self._announcer.announce_session(tx, session)
        self._audit_session(tx, session, action)

    def _audit_session(self, tx: Transaction, session: Session, action: str) -> None:
        details = {"camera": session.camera_id, "officer": session.officer_id, "relay": session.relay_id, "cause": session.end_cause}
        target = f"sessions/{session.session_id}"
        self._audit.record(tx, Entry(action, _SYSTEM, target, session.agency_id, session.emergency_id, details))

    def _tell_grant(self, tx: Transaction, grant: Grant, action: str, actor: Actor) -> None:
        self._announcer.announce_grant(tx, grant)
        self._note(tx, grant, action, actor)

    def _note(self, tx: Transaction, grant: Grant, action: str, actor: Actor) -> None:
        details = {
            "camera": grant.camera_id, "session": grant.session_id, "viewer": grant.viewer, "cause": grant.end_cause,
            "bytes": str(grant.bytes), "last_byte_at": grant.last_byte_at.isoformat() if grant.last_byte_at else "",
        }  # fmt: skip
        self._audit.record(tx, Entry(action, actor, f"grants/{grant.grant_id}", grant.agency_id, grant.emergency_id, details))

    async def _raise(self, tx: Transaction, sessions: Sequence[Session]) -> None:
        for agency_id, cameras in cameras_of(sessions).items():
            await self._orders.raise_orders(tx, cameras, agency_id)

    def _wake_cameras(self, sessions: Sequence[Session]) -> None:
        for agency_id, cameras in cameras_of(sessions).items():
            self._wake(agency_id, cameras)


def _of_agency(caller: Caller, found: Sequence[Grant]) -> Grant:
    if not found or not caller.may_see(found[0].agency_id):
        raise NotFound(Reason.ERROR_REASON_NOT_FOUND, "no such grant")
    return found[0]


def _is_watching(grant: Grant) -> bool:
    return grant.redeemed_at is not None and grant.ended_at is None


def _cause(cause: str) -> GrantEnd:
    """Why a grant is groundless: the emergency's clear, that it is not about the officer, or what ended its session."""
    if not cause:
        return GrantEnd.EMERGENCY_CLEARED
    return GrantEnd(cause) if cause in (GrantEnd.HOLDER_CHANGED, GrantEnd.NOT_INVOLVED) else GrantEnd.SESSION_ENDED


def _one_a_camera(wanted: Sequence[Wanted]) -> list[Wanted]:
    """Two emergencies want the same camera: it streams once."""
    return list({(w.agency_id, w.camera_id): w for w in wanted}.values())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
