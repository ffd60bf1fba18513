"""Runs a service that fails on purpose: `SIGHTLINE_SABOTAGE=die:commit.after:3 python -m testkit.sabotage services.emergency`.

    die:<point>.<before|after>:<n>   SIGKILL at the n-th passage of a named point of the press path
    raise:<n>                        every n-th record read from Kafka makes its handler raise
    stuck:<n>                        a lane stops for ever at its n-th event, without a word
    unrecovered:1                    a lane's watchdog never hears that the table has recovered
    clock:<seconds>:1                this machine's clock is so far ahead
    bug:<name>:<n>                   a mistake that a careless change could make, every n-th time; for testing the checker

Nothing of this is in the services: the points are their own functions, wrapped from outside.
"""

import asyncio
import functools
import importlib
import itertools
import os
import runpy
import signal
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

VARIABLE = "SIGHTLINE_SABOTAGE"
Async = Callable[..., Awaitable[Any]]

_EMERGENCY, _STREAMS, _AUDIT = "services.emergency", "services.streams", "services.audit"
# Points of the press path, in its order; each has a before and an after.
PRESS_POINTS = {
    "known": f"{_EMERGENCY}.store:Store.known_press",
    "holder": f"{_EMERGENCY}.peers:RegistryPeer.holder",
    "lock": f"{_EMERGENCY}.store:Store.lock_radio",
    "newest": f"{_EMERGENCY}.store:Store.newest_of_radio",
    "cancel": f"{_EMERGENCY}.store:Store.take_cancel",
    "insert": f"{_EMERGENCY}.store:Store.insert",
    "press": f"{_EMERGENCY}.store:Store.add_press",
    "outbox": "chassis.db:Transaction.store_outbox",
    "commit": "psycopg:AsyncConnection.commit",
    "publish": "chassis.bus:Publisher.publish",
    "reply": f"{_EMERGENCY}.service:EmergencyService.raise_alarm",
}
# The same from decision to outcome.
DECISION_POINTS = {
    "accept": f"{_STREAMS}.store:Store.accept",
    "add": f"{_STREAMS}.store:Store.add",
    "raise": f"{_STREAMS}.store:Store.raise_orders",
    "take": f"{_STREAMS}.store:Store.take_orders",
    "report": f"{_STREAMS}.store:Store.keep_report",
    "save": f"{_STREAMS}.store:Store.save",
    "commit": "psycopg:AsyncConnection.commit",
    "publish": "chassis.bus:Publisher.publish",
}
# The same from a record to a signed checkpoint.
SEQUENCER_POINTS = {
    "known": f"{_AUDIT}.store:Store.known",
    "append": f"{_AUDIT}.store:Store.append",
    "rows": f"{_AUDIT}.store:Store.rows",
    "nodes": f"{_AUDIT}.store:Store.add_nodes",
    "sign": f"{_AUDIT}.store:Store.sign",
    "outbox": "chassis.db:Transaction.store_outbox",
    "commit": "psycopg:AsyncConnection.commit",
}
_POINTS = {_EMERGENCY: PRESS_POINTS, _STREAMS: DECISION_POINTS, _AUDIT: SEQUENCER_POINTS}
# What begins a passage: only what happens inside counts, so that sweeps and health checks do not.
_ENTRIES = {
    _EMERGENCY: (f"{_EMERGENCY}.service:EmergencyService.raise_alarm",),
    _STREAMS: tuple(f"{_STREAMS}.service:StreamsService.{name}" for name in ("take_decision", "take_report", "next_orders")),
    _AUDIT: tuple(f"{_AUDIT}.service:AuditService.{name}" for name in ("take", "integrate")),
}
_inside: ContextVar[bool] = ContextVar("inside", default=False)


def patch(where: str, wrap: Callable[[Any], Any]) -> None:
    """Replace `module:Class.method` by what `wrap` makes of it."""
    module, _, path = where.partition(":")
    owner, _, name = path.rpartition(".")
    target: Any = importlib.import_module(module)
    for part in filter(None, owner.split(".")):
        target = getattr(target, part)
    setattr(target, name, wrap(getattr(target, name)))


def _enter(method: Async) -> Async:
    @functools.wraps(method)
    async def entered(*arguments: Any, **named: Any) -> Any:
        _inside.set(True)
        return await method(*arguments, **named)

    return entered


def _die(service: str, point: str, nth: int) -> None:
    name, _, side = point.partition(".")
    where = _POINTS[service][name]
    passages = itertools.count(1)

    def wrap(method: Async) -> Async:
        @functools.wraps(method)
        async def dying(*arguments: Any, **named: Any) -> Any:
            last = _inside.get() and next(passages) >= nth  # one that raises has no after: the next one counts
            if last and side == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = await method(*arguments, **named)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return dying

    patch(where, wrap)
    for entry in _ENTRIES[service]:
        patch(entry, _enter)


def _every(nth: int, instead: Async) -> Callable[[Async], Async]:
    """Wrap a method so that every n-th call goes to `instead(original, *arguments)`."""
    calls = itertools.count(1)

    def wrap(method: Async) -> Async:
        @functools.wraps(method)
        async def wrapped(*arguments: Any, **named: Any) -> Any:
            if next(calls) % nth == 0:
                return await instead(method, *arguments, **named)
            return await method(*arguments, **named)

        return wrapped

    return wrap


async def _fail(method: Async, *arguments: Any, **named: Any) -> Any:
    raise RuntimeError("sabotage: this handler fails")


def _deaf(start: Callable[[Any], None]) -> Callable[[Any], None]:
    def started(watchdog: Any) -> None:
        watchdog.recovered.set = lambda: None
        start(watchdog)

    return started


async def _hang(method: Async, *arguments: Any, **named: Any) -> Any:
    await asyncio.Event().wait()


async def _nothing(method: Async, *arguments: Any, **named: Any) -> Any:
    return None


async def _answer_then_lose(method: Async, service: Any, press: Any) -> Any:
    """OK before the commit, and then no commit: what a crash between the two would leave."""
    answers: list[Any] = []
    add = service._store.add_press

    async def add_and_stop(tx: Any, press: Any, answer: Any) -> None:
        answers.append(answer)
        raise RuntimeError("sabotage: lost after the answer")

    service._store.add_press = add_and_stop
    try:
        await method(service, press)
    except RuntimeError:
        return answers[0]
    finally:
        service._store.add_press = add
    return None


async def _without_audit(method: Async, tx: Any) -> Any:
    tx.audited.clear()
    return await method(tx)


async def _ok_on_error(method: Async, service: Any, press: Any) -> Any:
    """The database fails, and the gateway is told that all is well."""
    from uuid_utils import uuid7

    from services.emergency.service import KnownPress

    return KnownPress(str(uuid7()), 1, "OPENED")


BUGS: dict[str, tuple[str, Async]] = {
    "answer_before_commit": (f"{_EMERGENCY}.service:EmergencyService._raise_alarm", _answer_then_lose),
    "drop_record": ("chassis.bus:Publisher.publish", _nothing),
    "skip_audit": ("chassis.db:Transaction.store_outbox", _without_audit),
    "ok_on_error": (f"{_EMERGENCY}.service:EmergencyService._raise_alarm", _ok_on_error),
}


def apply(service: str, order: str) -> None:
    """Do what the variable says to a service that has not started yet."""
    kind, _, rest = order.partition(":")
    what, _, count = rest.rpartition(":")
    nth = int(count)
    if kind == "die":
        _die(service, what, nth)
    elif kind == "raise" and service == "services.joiner":
        patch("services.joiner.agents:Lane._take_emergency", _every(nth, _fail))
    elif kind == "raise":
        patch(f"{service}.events:{'DecisionReader' if service == _STREAMS else 'ResultReader'}.__call__", _every(nth, _fail))
    elif kind == "stuck":
        patch("services.joiner.agents:Lane._take_emergency", _every(nth, _hang))
    elif kind == "unrecovered":
        patch("services.joiner.watchdog:Watchdog.start", _deaf)
    elif kind == "clock":
        ahead = timedelta(seconds=float(what))  # before anybody else imports it
        patch("chassis.clock:wall_time", lambda read: lambda: read() + ahead)
    elif kind == "bug":
        where, instead = BUGS[what]
        patch(where, _every(nth, instead))
    else:
        raise SystemExit(f"{VARIABLE}: {order!r} is no sabotage; see testkit/sabotage.py")


if __name__ == "__main__":
    module = sys.argv.pop(1)
    apply(module, os.environ.pop(VARIABLE))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
