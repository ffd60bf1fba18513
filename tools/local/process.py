"""Processes that outlive the command that started them, known by id and start time, so that no stranger is ever ended."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_GRACE_S = 12.0


class StartError(Exception):
    """Something did not start; the text says what its log says."""


@dataclass(frozen=True)
class Process:
    """A started process; `born` tells it from a later one that got the same id, the rest is how to start it again."""

    name: str
    pid: int
    born: float
    log: str
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    cwd: str | None = None

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process() is not None

    def _process(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            alive = abs(process.create_time() - self.born) < 0.05 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if process := self._process():
            process.send_signal(number)

    def signal_all(self, number: int) -> None:
        """Send a signal to it and to all that it has started."""
        if process := self._process():
            for each in (*process.children(recursive=True), process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.send_signal(number)

    def tail(self, lines: int = 12) -> str:
        """The end of its log."""
        text = Path(self.log).read_text(errors="replace") if Path(self.log).exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def _around() -> dict[str, str]:
    """Our environment without what is set for us: a service takes no setting that it does not know."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SIGHTLINE_")}


def start(
    name: str,
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    cwd: Path | None = None,
) -> Process:
    """Start in a session of its own, so that a Ctrl-C in the terminal does not reach it; its output goes to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env={**_around(), **(environment or {})},
            start_new_session=True, user=user, cwd=cwd,
        )  # fmt: skip
    _children[child.pid] = child
    born = psutil.Process(child.pid).create_time()
    return Process(name, child.pid, born, str(log), list(command), dict(environment or {}), user, str(cwd) if cwd else None)


def start_again(process: Process, more: Mapping[str, str] | None = None, command: Sequence[str] | None = None) -> Process:
    """Start what has ended in the same way, with more settings or another command."""
    cwd = Path(process.cwd) if process.cwd else None
    environment = {**process.environment, **(more or {})}
    return start(process.name, command or process.command, Path(process.log), environment, process.user, cwd)


_children: dict[int, subprocess.Popen[bytes]] = {}  # so that an ended child of ours is reaped and does not stay a zombie


def stop(processes: Sequence[Process], number: int = signal.SIGTERM) -> None:
    """End processes and wait for it; what does not go in time is killed."""
    for process in processes:
        process.signal(number)
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        while process.alive() and time.monotonic() < deadline:
            reap()
            time.sleep(0.02)
        if process.alive():
            print(f"{process.name} did not stop in {_GRACE_S:.0f} s and is killed", file=sys.stderr)
            process.signal(signal.SIGKILL)
    reap()


def reap() -> None:
    """Collect the children of ours that have ended; several threads may do so at once."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            _children.pop(pid, None)


# Below those that kernels give to connections: one of these might be taken before the process that it is for listens.
_PORTS = range(10_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody uses now."""
    found: list[int] = []
    with ExitStack() as sockets:
        for port in random.sample(_PORTS, len(_PORTS)):
            try:
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise StartError(f"{count} free ports on loopback are not to be had")


def wait_for(what: str, attempt: Callable[[], object], within_s: float = 90.0, watched: Sequence[Process] = ()) -> None:
    """Repeat until it works; a watched process that has died, or too long a time, is an error that shows its log."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            attempt()
            return
        except Exception as error:
            reap()
            if dead := next((p for p in watched if not p.alive()), None):
                raise StartError(f"{dead.name} ended; its log {dead.log} says:\n{dead.tail()}") from error
            if time.monotonic() > deadline:
                log = next((p.tail() for p in watched if p.name == what), "")
                raise StartError(f"{what} was not ready after {within_s:.0f} s: {error}\n{log}") from error
        time.sleep(0.05)
