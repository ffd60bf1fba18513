"""What the relay does about its grants by itself, whatever the streams service answers."""

import asyncio
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from chassis.errors import Unauthenticated, Unavailable
from sightline.streams.v1 import relay_link_service_pb2 as pb
from sightline.streams.v1.session_pb2 import GrantEndCause

from services.relay import peers
from services.relay.peers import StreamsLink
from tools.local.ca import LaptopCa

TOKEN = "t" * 43


class Streams:
    """Answers from memory; away while `away`."""

    def __init__(self) -> None:
        self.renewed: list[list[str]] = []
        self.over: list[str] = []
        self.away = False
        self._numbers = count(1)

    async def Redeem(self, request: pb.RedeemRequest, **_: Any) -> pb.RedeemResponse:  # noqa: N802
        response = pb.RedeemResponse(grant_id=f"grant-{next(self._numbers)}", session_id="s1")
        response.lease.FromSeconds(30)
        return response

    async def Renew(self, request: pb.RenewRequest, **_: Any) -> pb.RenewResponse:  # noqa: N802
        if self.away:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
        self.renewed.append(list(request.grant_ids))
        cause = GrantEndCause.GRANT_END_CAUSE_EMERGENCY_CLEARED
        response = pb.RenewResponse(revoked=[pb.Revocation(grant_id=name, cause=cause) for name in self.over])
        response.lease.FromSeconds(30)
        return response


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def link(tmp_path: Path, streams: Streams, monkeypatch: pytest.MonkeyPatch) -> StreamsLink:
    monkeypatch.setattr(peers, "_RENEW_S", 0.02)
    link = StreamsLink("ipv4:127.0.0.1:1", LaptopCa(tmp_path).rpc("platform", "service", "relay"), "a", "https://a", "ws://a")
    link._stub = streams  # type: ignore[assignment]
    return link


async def test_a_relay_that_was_idle_renews_what_comes_and_ends_what_is_over(link: StreamsLink, streams: Streams) -> None:
    served: list[str] = []
    ended: dict[str, str] = {}
    idle = asyncio.create_task(link.renew(lambda: served, ended.__setitem__))
    grant = await link.redeem(TOKEN)
    served.append(grant.grant_id)
    await asyncio.wait_for(idle, 10)
    while not streams.renewed:
        await link.renew(lambda: served, ended.__setitem__)
    assert streams.renewed[0] == [grant.grant_id]
    streams.over = [grant.grant_id]
    await link.renew(lambda: served, ended.__setitem__)
    assert ended == {grant.grant_id: "EMERGENCY_CLEARED"}


async def test_when_nobody_can_be_asked_viewing_ends_with_the_lease_and_its_grace(
    link: StreamsLink, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = await link.redeem(TOKEN)
    ended: dict[str, str] = {}
    streams.away = True
    with pytest.raises(Unavailable):
        await link.renew(lambda: [grant.grant_id], ended.__setitem__)
    assert not ended
    monkeypatch.setattr(peers, "_GRACE_S", -31.0)  # as if so much time had gone by
    with pytest.raises(Unavailable):
        await link.renew(lambda: [grant.grant_id], ended.__setitem__)
    assert ended == {grant.grant_id: "RELAY_LOST"}


@pytest.mark.parametrize("token", ["", "x", "\ud800" * 43, "t" * 5000, "t" * 42 + "\n"])
async def test_what_cannot_be_a_token_asks_nobody(link: StreamsLink, token: str) -> None:
    link._stub = None  # type: ignore[assignment]
    with pytest.raises(Unauthenticated):
        await link.redeem(token)
