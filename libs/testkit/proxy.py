"""A TCP proxy that can misbehave: cut, swallow one direction or both, slow down, reset in the middle of a message."""

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass, field

_CHUNK, _SIP = 64 * 1024, 4 * 1024


@dataclass
class Weather:
    """What happens to bytes on their way. Changes hold at once, for connections that are there too."""

    swallow_to_server: bool = False
    swallow_to_client: bool = False
    delay_s: float = 0.0
    # Bytes a second that get through to the client; nought: all.
    throttle: float = 0.0
    # Reset a connection after so many bytes to the client, counted anew for each connection; None: never.
    reset_after: int | None = None
    # Reset a connection as soon as the client sends this, after passing it on: the answer is lost.
    reset_behind: bytes | None = None
    refuse: bool = False


@dataclass
class Proxy:
    """Forwards from `port` to a server. Use as an async context manager."""

    port: int
    target_port: int
    weather: Weather = field(default_factory=Weather)
    resets: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            self._reset(writer)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        self.resets += 1
        connection = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # linger of zero: RST instead of FIN
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.weather.refuse:
            self._reset(writer)
            return
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            self._reset(writer)
            return
        pair = (writer, to_server)
        self._writers.update(pair)
        try:
            await asyncio.wait(
                [
                    asyncio.create_task(self._pump(reader, to_server, pair, to_client=False)),
                    asyncio.create_task(self._pump(from_server, writer, pair, to_client=True)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for each in pair:
                self._writers.discard(each)
                each.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: tuple[asyncio.StreamWriter, ...], *, to_client: bool
    ) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK if not self.weather.throttle else _SIP):
                weather = self.weather
                if weather.delay_s:
                    await asyncio.sleep(random.uniform(0.5, 1.5) * weather.delay_s)  # noqa: S311 (jitter)
                if weather.swallow_to_client if to_client else weather.swallow_to_server:
                    continue
                if to_client and weather.throttle:
                    await asyncio.sleep(len(data) / weather.throttle)
                passed += len(data)
                if to_client and weather.reset_after is not None and passed > weather.reset_after:
                    sink.write(data[: len(data) // 2])
                    await sink.drain()
                    self._reset(sink)
                    return
                sink.write(data)
                await sink.drain()
                if not to_client and weather.reset_behind is not None and weather.reset_behind in data:
                    weather.reset_behind = None
                    self._reset(pair[0])
                    return
