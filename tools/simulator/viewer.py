"""A viewer without eyes: takes a session's pieces as a page would, and checks that each hangs on the one before."""

import asyncio
import contextlib
import json
import ssl
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from media.chain import link

_HEAD = struct.Struct(">BBHIQ32s")
_KINDS = ("init", "key", "delta")
_MAX_MESSAGE = 16 * 1024 * 1024


@dataclass(frozen=True)
class Piece:
    """One message: the n-th piece of its segment, the chain's value before and after it, when the relay and when we got it (ms)."""

    n: int
    kind: str
    previous: bytes
    chain: bytes
    received_ms: int
    arrived_ms: int
    data: bytes


@dataclass(eq=False)
class Viewer:
    """Use as an async context manager; watches until it is left or cut off, which sets `over`."""

    view_url: str
    token: str
    grant_id: str = ""
    pieces: list[Piece] = field(default_factory=list)
    codecs: list[dict[str, Any]] = field(default_factory=list)
    muted: bool = False
    got: int = 0
    close_code: int | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    closed_at: float = 0.0  # of time.monotonic()
    ca: Path | None = None  # whom a relay's certificate must be from, if it has one
    reads: bool = True  # False: takes nothing, and says nothing, until it is left

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch(), name="viewer")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError):
            await self._watching

    async def _watch(self) -> None:
        tls = ssl.create_default_context(cafile=self.ca) if self.view_url.startswith("wss:") else True
        try:
            async with (
                aiohttp.ClientSession() as client,
                client.ws_connect(f"{self.view_url}/v1/view", max_msg_size=_MAX_MESSAGE, ssl=tls) as socket,
            ):
                await socket.send_json({"token": self.token})
                if not self.reads:
                    await asyncio.Event().wait()
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        told = json.loads(message.data)
                        self.muted = told.get("muted", self.muted)
                        if "init" in told:
                            self.codecs.append(told["init"])
                    elif message.type == aiohttp.WSMsgType.BINARY:
                        self.pieces.append(_piece(message.data))
                        self.got += len(message.data)
                        await socket.send_json({"got": self.got})
                self.close_code, self.closed_at = socket.close_code, time.monotonic()
        finally:
            self.over.set()

    @property
    def breaks(self) -> list[int]:
        """Places where a piece does not hang on the one before: there something was left out, or another segment begins."""
        return [at for at in range(1, len(self.pieces)) if self.pieces[at].previous != self.pieces[at - 1].chain]


def _piece(message: bytes) -> Piece:
    version, kind, _, n, received_ms, previous = _HEAD.unpack_from(message)
    if version != 1:
        raise ValueError(f"message of version {version}")
    data = message[_HEAD.size :]
    return Piece(n, _KINDS[kind], previous, link(previous, data), received_ms, time.time_ns() // 1_000_000, data)
