"""A witness signs what begins with what it signed before, once it is on its disk, and nothing else."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tlog.merkle import Frontier, consistency, leaf_hash
from tlog.note import COSIGNATURE, Checkpoint, SignedNote, Signer, open_checkpoint

from services.witness.api import WitnessApi
from services.witness.service import WitnessService
from services.witness.store import Seen

LOG = Signer("test.example/audit", Ed25519PrivateKey.generate())
WITNESS = Signer("council.example/witness", Ed25519PrivateKey.generate(), COSIGNATURE)
NOW = datetime(2026, 11, 26, tzinfo=UTC)


class Clock:
    def now(self) -> datetime:
        return NOW


class Log:
    """A log as its owner tells it."""

    def __init__(self, size: int, salt: bytes = b"") -> None:
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.roots, frontier = {0: Frontier().root()}, Frontier()
        for n in range(size):
            self.nodes |= {(level, index): each for level, index, each in frontier.append(leaf_hash(salt + b"%d" % n))}
            self.roots[frontier.size] = frontier.root()

    def note(self, size: int, signer: Signer = LOG, origin: str = "") -> str:
        text = str(Checkpoint(origin or signer.verifier.name, size, self.roots[size]))
        return str(SignedNote(text, (signer.sign(text),)))

    def path(self, old: int, size: int) -> list[bytes]:
        return consistency(lambda level, index: self.nodes[level, index], old, size) if old else []


def body(old: int, path: Sequence[bytes], note: str) -> bytes:
    return "\n".join([f"old {old}", *(base64.b64encode(step).decode() for step in path), "", note]).encode()


def witness(folder: Path) -> WitnessApi:
    return WitnessApi(WitnessService({LOG.verifier.name: LOG.verifier}, WITNESS, Seen(folder), Clock()))


async def test_a_log_that_grows_is_cosigned_also_after_a_new_start(tmp_path: Path) -> None:
    log, old = Log(40), 0
    for size in (1, 3, 8, 8, 39):
        async with TestClient(TestServer(witness(tmp_path).app())) as client:  # each time another process, with the same folder
            answer = await client.post("/add-checkpoint", data=body(old, log.path(old, size), log.note(size)))
            lines = await answer.text()
        assert answer.status == 200
        point, seen = open_checkpoint(log.note(size) + lines, LOG.verifier, [WITNESS.verifier], quorum=1)
        assert (point.size, seen) == (size, {WITNESS.verifier.name: int(NOW.timestamp())})
        old = size


async def test_what_does_not_begin_with_what_was_seen_is_not_signed_in_a_hundred_forks(tmp_path: Path) -> None:
    log = Log(60)
    async with TestClient(TestServer(witness(tmp_path).app())) as client:
        assert (await client.post("/add-checkpoint", data=body(0, [], log.note(30)))).status == 200
        for n in range(100):
            fork = Log(60, b"%d" % n)
            size = 30 + n % 30
            answer = await client.post("/add-checkpoint", data=body(30, fork.path(30, size) if size > 30 else [], fork.note(size)))
            assert answer.status == (422 if size > 30 else 409)
        assert (await client.post("/add-checkpoint", data=body(30, log.path(30, 60), log.note(60)))).status == 200


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (400, b""),
        (400, b"old 5"),
        (400, b"old x\n\n" + Log(3).note(3).encode()),
        (400, b"old 05\n\n" + Log(3).note(3).encode()),
        (400, b"\xff\xfe"),
        (400, body(0, [bytes(31)], Log(3).note(3))),
        (400, body(1, [bytes(32)] * 64, Log(3).note(3))),
        (400, body(9, [], Log(3).note(3))),
        (404, body(0, [], Log(3).note(3, Signer("another.example/log", Ed25519PrivateKey.generate())))),
        (403, body(0, [], Log(3).note(3, Signer(LOG.verifier.name, Ed25519PrivateKey.generate())))),
        (403, body(0, [], Log(3).note(3, Signer("mallory", Ed25519PrivateKey.generate()), LOG.verifier.name))),
        (409, body(2, [bytes(32)], Log(3).note(3))),
        (422, body(0, [bytes(32)], Log(3).note(3))),
        (413, b"old 0\n\n" + b"x" * 200_000),
    ],
)
async def test_what_is_no_request_of_a_log_that_it_knows_is_refused(tmp_path: Path, status: int, data: bytes) -> None:
    async with TestClient(TestServer(witness(tmp_path).app())) as client:
        answer = await client.post("/add-checkpoint", data=data)
        assert answer.status == status
        if status == 409:
            assert (answer.content_type, await answer.text()) == ("text/x.tlog.size", "0\n")
        assert await (await client.get("/")).text() == f"{WITNESS.verifier}\n"
    assert Seen(tmp_path).newest(LOG.verifier.name) is None
