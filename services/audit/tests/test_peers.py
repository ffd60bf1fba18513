"""A witness's answers, good and bad, as HTTP brings them."""

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tlog.note import COSIGNATURE, Checkpoint, SignedNote, Signer, open_checkpoint

from services.audit.model import WitnessRefuses
from services.audit.peers import WitnessLink

LOG = Signer("test.example/audit", Ed25519PrivateKey.generate())
WITNESS = Signer("council.example/witness", Ed25519PrivateKey.generate(), COSIGNATURE)
TEXT = str(Checkpoint(LOG.verifier.name, 4, bytes(32)))
NOTE = str(SignedNote(TEXT, (LOG.sign(TEXT),)))


def lines(signer: Signer) -> str:
    return str(SignedNote(TEXT, (signer.sign(TEXT, 1_800_000_000),))).rpartition("\n\n")[2]


async def answered(answer: web.Response) -> SignedNote | int:
    """What the log makes of an answer."""
    asked = []

    async def add(request: web.Request) -> web.Response:
        asked.append((await request.read()).decode())
        return answer

    app = web.Application()
    app.router.add_post("/w/add-checkpoint", add)
    async with TestServer(app) as server, WitnessLink(str(server.make_url("/w/")), WITNESS.verifier) as link:
        try:
            return await link.cosign(3, [bytes(32)], NOTE)
        finally:
            assert asked == [f"old 3\n{'A' * 43}=\n\n{NOTE}"]


async def test_a_cosignature_is_taken_and_a_size_is_told() -> None:
    found = await answered(web.Response(text=lines(WITNESS)))
    assert isinstance(found, SignedNote)
    open_checkpoint(NOTE + lines(WITNESS), LOG.verifier, [WITNESS.verifier], quorum=1)
    assert await answered(web.Response(status=409, body=b"17\n", content_type="text/x.tlog.size")) == 17


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (web.Response(status=422, text="the path is too short"), "422: the path is too short"),
        (web.Response(status=409, text="17"), "409"),
        (web.Response(status=409, body=b"many", content_type="text/x.tlog.size"), "invalid literal"),
        (web.Response(text=""), "no signed note"),
        (web.Response(text=lines(Signer(WITNESS.verifier.name, Ed25519PrivateKey.generate(), COSIGNATURE))), "not signed by"),
        (web.Response(body=b"\xff" * 10), "utf-8"),
        (web.Response(text="x" * 200_000), "no "),
        (web.Response(status=302, headers={"Location": "http://elsewhere.example"}), "302"),
    ],
    ids=range(8),
)
async def test_any_other_answer_is_no_cosignature(answer: web.Response, why: str) -> None:
    with pytest.raises(WitnessRefuses, match=why):
        await answered(answer)


async def test_a_witness_that_is_away_is_named() -> None:
    async with WitnessLink("http://127.0.0.1:1", WITNESS.verifier) as link:
        with pytest.raises(WitnessRefuses, match=r"127\.0\.0\.1:1"):
            await link.cosign(0, [], NOTE)
