"""The relay over real sockets: who may send and watch, what a page gets, how it is cut off."""

import asyncio
import hashlib
import random
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType
from chassis.clock import SystemClock
from chassis.errors import Changed, Forbidden
from chassis.identity import Machine
from chassis.web import serve
from media.chain import Name, link
from media.files import FileShelf
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason
from testkit.footage import Feed, fragment, init, stream

from services.relay.api import CLOSE_NONSENSE, CLOSE_NOT_HERE, CLOSE_REVOKED, IngestApi, ViewApi
from services.relay.model import WINDOW_BYTES
from services.relay.service import Admission, Grant, RelayService, Served
from tools import world
from tools.local.ca import TRUST_DOMAIN, LaptopCa
from tools.local.process import free_ports

SESSION, OTHER = "0197c0de-0000-7000-8000-000000000001", "0197c0de-0000-7000-8000-000000000002"
HEAD, TOKEN = 48, "of cam-1"


class Desk:
    """Knows one camera with its token, and viewers' tokens that work once."""

    def __init__(self) -> None:
        self.tokens = {"view-1": SESSION, "view-2": SESSION, "view-nowhere": OTHER}
        self.told: list[Served] = []

    async def admit(self, camera: Machine, session_id: str, token: str) -> Admission:
        if (camera.id, session_id, token) != ("cam-1", SESSION, TOKEN):
            raise Forbidden(Reason.ERROR_REASON_CALLER_NOT_ALLOWED, "not this camera's session")
        return Admission(session_id)

    async def redeem(self, token: str) -> Grant:
        if token not in self.tokens:
            raise Forbidden(Reason.ERROR_REASON_CALLER_NOT_ALLOWED, "no such grant")
        if self.tokens[token] == OTHER:
            raise Changed(Reason.ERROR_REASON_SESSION_MOVED, "at another relay")
        return Grant(token, self.tokens.pop(token))

    def served(self, served: Served) -> None:
        self.told.append(served)

    def news(self) -> None:
        pass

    def announce_head(self, *_: object) -> None:
        pass

    def announce_served(self, served: Served) -> None:
        pass


@dataclass
class Relay:
    """A relay that listens."""

    service: RelayService
    desk: Desk
    shelf: FileShelf
    ca: LaptopCa
    ingest: str
    view: str

    def tls(self, kind: str = "camera", name: str = "cam-1") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca.certificate))
        if kind:
            context.load_cert_chain(*self.ca.issue("pd", kind, name))
        return context

    async def post(
        self, data: AsyncIterator[bytes] | bytes, *, token: str = TOKEN, path: str = f"{SESSION}/segments/0001-live",
        kind: str = "camera", name: str = "cam-1",
    ) -> tuple[int, dict[str, Any]]:  # fmt: skip
        async with (
            ClientSession() as client,
            client.post(
                f"{self.ingest}/v1/sessions/{path}", data=data, headers={"Authorization": f"Bearer {token}"}, ssl=self.tls(kind, name)
            ) as answer,
        ):
            return answer.status, await answer.json()

    @asynccontextmanager
    async def viewer(self, first: str) -> AsyncIterator[ClientWebSocketResponse]:
        async with ClientSession() as client, client.ws_connect(f"{self.view}/v1/view", ssl=self.tls(""), max_msg_size=0) as socket:
            await socket.send_str(first)
            yield socket


@pytest_asyncio.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    ca, desk, shelf = LaptopCa(tmp_path / "ca"), Desk(), FileShelf(tmp_path / "media")
    service = RelayService(shelf, desk, desk, SystemClock())
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*ca.issue("platform", "service", "relay"))
    mutual = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca.certificate))
    mutual.load_cert_chain(*ca.issue("platform", "service", "relay"))
    mutual.verify_mode = ssl.CERT_REQUIRED
    ports = free_ports(2)
    runners = [
        await serve(IngestApi(service, TRUST_DOMAIN).app(), f"localhost:{ports[0]}", mutual),
        await serve(ViewApi(service).app(), f"localhost:{ports[1]}", tls),
    ]
    yield Relay(service, desk, shelf, ca, f"https://localhost:{ports[0]}", f"wss://localhost:{ports[1]}")
    for runner in runners:
        await runner.cleanup()


@asynccontextmanager
async def sending(relay: Relay, pieces: int, *data: bytes) -> AsyncIterator[Feed]:
    """A camera that sends, once so many pieces are shown, and stops behind the body."""
    feed = Feed(*data)
    posting = asyncio.create_task(relay.post(aiter(feed)))
    await shown(relay, pieces)
    yield feed
    feed.stop()
    await posting


async def shown(relay: Relay, pieces: int) -> None:
    async def holds() -> bool:
        live = relay.service._live.get(SESSION)
        return live is not None and len(list(live.group.frames())) == pieces

    await world.until(holds, "what was sent to be shown")


async def told(relay: Relay, count: int) -> None:
    async def holds() -> bool:
        return len(relay.desk.told) == count

    await world.until(holds, "the account of what was served")


async def receive(socket: ClientWebSocketResponse, count: int, *, acknowledge: bool = True) -> list[bytes]:
    """Binary messages; acknowledged one by one."""
    found: list[bytes] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            message = await socket.receive()
            if message.type == WSMsgType.BINARY:
                found.append(message.data)
                if acknowledge:
                    await socket.send_json({"got": sum(map(len, found))})
            else:
                assert message.type == WSMsgType.TEXT, message
    return found


async def test_a_page_can_prove_that_it_got_what_was_kept(relay: Relay) -> None:
    feed = Feed(init(), *(fragment(n, key=n % 5 == 0) for n in range(7)))
    sending = asyncio.create_task(relay.post(aiter(feed)))
    await shown(relay, 3)
    async with relay.viewer('{"token": "view-1"}') as socket:
        description = await socket.receive_json()
        assert description["init"] == {"codec": "avc1.42c01f", "width": 1280, "height": 720, "audio": False}
        assert abs(description["now_ms"] - time.time() * 1000) < 60_000
        first = await receive(socket, 3)
        feed.send(fragment(7, key=False))
        messages = first + await receive(socket, 1)
    feed.stop()
    status, answer = await sending
    assert (status, answer["pieces"], answer["end"]) == (201, 9, "CAMERA_STOPPED")
    verdict = relay.shelf.verify(Name(SESSION, "0001-live"))
    assert (verdict.finding, verdict.chain) == (None, answer["chain"])
    kept = {entry.n: entry.chain for entry in verdict.entries}
    assert [int.from_bytes(message[4:8]) for message in messages] == [0, 6, 7, 8]
    for message in messages:
        value = hashlib.sha256(message[16:HEAD] + message[HEAD:]).hexdigest()
        assert value == link(message[16:HEAD], message[HEAD:]).hex() == kept[int.from_bytes(message[4:8])]
    await told(relay, 1)
    [served] = relay.desk.told
    assert (served.cause, served.bytes) == ("VIEWER_LEFT", sum(map(len, messages)))


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"token": "wrong"}, 403), ({"name": "cam-2"}, 403), ({"kind": "gateway"}, 403), ({"path": f"{OTHER}/segments/0001-live"}, 403),
        ({"path": f"{SESSION}/segments/1-live"}, 400), ({"path": f"{SESSION}/segments/..%2F..%2Fetc"}, 400),
        ({"path": "nonsense/segments/0001-live"}, 400), ({"token": ""}, 401),
    ],
)  # fmt: skip
async def test_who_may_not_send_is_refused_with_a_reason(relay: Relay, changes: dict[str, str], status: int) -> None:
    found, answer = await relay.post(stream(3, random.Random(1)), **changes)
    assert (found, bool(answer["reason"]), bool(answer["message"])) == (status, True, True)
    assert relay.shelf.segments(SESSION) == []


async def test_without_a_certificate_there_is_no_request_at_all(relay: Relay) -> None:
    with pytest.raises(aiohttp.ClientError):
        await relay.post(b"x", kind="")


async def test_bad_media_is_answered_with_its_fault(relay: Relay) -> None:
    status, answer = await relay.post(b"GET / HTTP/1.1\r\n\r\n" * 10)
    assert (status, answer["reason"], answer["metadata"]) == (400, "BAD_MEDIA", {"fault": "NOT_MP4"})


async def test_a_segment_is_sent_once(relay: Relay) -> None:
    assert (await relay.post(stream(3, random.Random(1))))[0] == 201
    status, answer = await relay.post(stream(3, random.Random(1)))
    assert (status, answer["reason"]) == (409, "ALREADY_EXISTS")


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ('{"token": "forged"}', CLOSE_REVOKED), ("nonsense", CLOSE_NONSENSE), ('{"token": 7}', CLOSE_NONSENSE), ("[]", CLOSE_NONSENSE),
        ('{"token": "view-nowhere"}', CLOSE_NOT_HERE),
    ],
)  # fmt: skip
async def test_who_may_not_watch_sees_nothing(relay: Relay, first: str, code: int) -> None:
    async with sending(relay, 4, stream(3, random.Random(1))), relay.viewer(first) as socket:
        message = await socket.receive(30)
        assert (message.type, socket.close_code) == (WSMsgType.CLOSE, code)


async def test_a_token_works_once(relay: Relay) -> None:
    async with sending(relay, 4, stream(3, random.Random(1))):
        async with relay.viewer('{"token": "view-1"}') as socket:
            await receive(socket, 4)
        async with relay.viewer('{"token": "view-1"}') as socket:
            await socket.receive(30)
            assert socket.close_code == CLOSE_REVOKED


async def test_a_revoked_viewer_is_cut_off_and_the_other_is_not(relay: Relay) -> None:
    async with (
        sending(relay, 2, init(), fragment(0, key=True)) as feed,
        relay.viewer('{"token": "view-1"}') as one,
        relay.viewer('{"token": "view-2"}') as two,
    ):
        got = await receive(one, 2)
        await receive(two, 2)
        assert relay.service.revoke("view-1", "EMERGENCY_CLEARED")
        feed.send(fragment(1, key=False))
        message = await one.receive(30)
        assert (message.type, one.close_code, message.extra) == (WSMsgType.CLOSE, CLOSE_REVOKED, "EMERGENCY_CLEARED")
        assert len(await receive(two, 1)) == 1
    await told(relay, 2)
    served = next(each for each in relay.desk.told if each.grant.grant_id == "view-1")
    assert (served.cause, served.bytes) == ("EMERGENCY_CLEARED", sum(map(len, got)))


async def test_a_viewer_that_reads_nothing_is_cut_off_too(relay: Relay) -> None:
    """It acknowledges what it has not read, so that the relay writes until no buffer takes more."""
    async with sending(relay, 2, init(), fragment(0, key=True)) as feed, relay.viewer('{"token": "view-1"}') as socket:
        watch = await watched(relay, "view-1")
        assert socket._reader is not None
        socket._conn.transport.pause_reading()  # type: ignore[union-attr]
        for n in range(1, 60):
            feed.send(fragment(n, key=True, content=bytes(200_000)))
            await shown_all(relay, n)
            watch.viewer.acknowledge(watch.viewer.sent)
            watch.wake.set()
        assert relay.service.revoke("view-1", "LEASE_ENDED")
        await told(relay, 1)


async def watched(relay: Relay, grant_id: str) -> Any:
    async def there() -> Any:
        return relay.service._watches.get(grant_id)

    return await world.until(there, "the viewer")


async def shown_all(relay: Relay, n: int) -> None:
    async def holds() -> bool:
        return list(relay.service._live[SESSION].group.frames())[-1].n == n + 1

    await world.until(holds, "the newest piece")


@pytest.mark.parametrize("nonsense", ['{"got": -1}', '{"got": 99999999}', "x", '{"got": "1"}'])
async def test_a_viewer_that_acknowledges_nonsense_is_closed(relay: Relay, nonsense: str) -> None:
    async with sending(relay, 4, stream(3, random.Random(1))), relay.viewer('{"token": "view-1"}') as socket:
        await receive(socket, 4)
        await socket.send_str(nonsense)
        await socket.receive(30)
        assert socket.close_code == CLOSE_NONSENSE


async def test_a_viewer_that_does_not_acknowledge_gets_a_window_and_no_more(relay: Relay) -> None:
    async with sending(relay, 2, init(), fragment(0, key=True)) as feed, relay.viewer('{"token": "view-1"}') as socket:
        watch = await watched(relay, "view-1")
        for n in range(1, 40):
            feed.send(fragment(n, key=False, content=bytes(10_000)))
        await world.until(partial(_reached, watch, WINDOW_BYTES), "a full window")
        await shown_all(relay, 39)
        assert watch.viewer.sent < WINDOW_BYTES + 11_000
        assert len(await receive(socket, 2, acknowledge=False)) == 2


async def _reached(watch: Any, sent: int) -> bool:
    return bool(watch.viewer.sent >= sent)
