"""The one decision of a witness: does this checkpoint begin with the one that was signed last?"""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from chassis import telemetry
from chassis.clock import Clock
from tlog.merkle import EMPTY_ROOT, ProofError, check_consistency
from tlog.note import Checkpoint, NoteError, SignedNote, Signer, Verifier, open_checkpoint

from services.witness.model import Asked, Refused


class Seen(Protocol):
    """What was signed last; `store.Seen` describes each."""

    def newest(self, origin: str) -> str | None: ...
    def keep(self, origin: str, note: str) -> None: ...


class WitnessService:
    """Cosigns. One process has the folder; in it one request at a time is decided."""

    def __init__(self, logs: Mapping[str, Verifier], signer: Signer, seen: Seen, clock: Clock) -> None:
        """`logs` are keys by the name of the log."""
        self._logs, self._signer, self._seen, self._clock = logs, signer, seen, clock
        self._turn = asyncio.Lock()

    @property
    def key(self) -> str:
        """The witness's public key."""
        return str(self._signer.verifier)

    async def cosign(self, body: bytes) -> str:
        """Lines of signatures of a checkpoint that is consistent with the one before; Refused if nothing is signed.

        What was seen is on the disk before anybody has the signature: a death between the two signs the same again.
        """
        asked = Asked.parse(body)
        origin = asked.note.text.partition("\n")[0]
        log = self._logs.get(origin)
        if log is None:
            raise Refused(404, f"no log that this witness looks after: {origin[:80]!r}")
        try:
            point, _ = open_checkpoint(str(asked.note), log)
        except NoteError as error:
            raise Refused(403, str(error)) from error
        if asked.old > point.size:
            raise Refused(400, f"from {asked.old} leaves there is no way to {point.size}")
        async with self._turn:
            return await asyncio.to_thread(self._decide, asked, point)

    def _decide(self, asked: Asked, point: Checkpoint) -> str:
        before = self._seen.newest(point.origin)
        last = Checkpoint.parse(SignedNote.parse(before).text) if before else Checkpoint(point.origin, 0, EMPTY_ROOT)
        if asked.old != last.size:
            raise Refused(409, f"this witness has seen {last.size} leaves", last.size)
        if point.size == last.size and point.root != last.root:
            telemetry.log().error("a log shows two histories", log=point.origin, size=point.size, kept=before, shown=str(asked.note))
            raise Refused(409, f"this witness has seen another tree of {last.size} leaves", last.size)
        try:
            check_consistency(last.size, last.root, point.size, point.root, asked.path)
        except ProofError as error:
            telemetry.log().error("a log does not begin with what it was", log=point.origin, why=str(error), shown=str(asked.note))
            raise Refused(422, str(error)) from error
        signature = self._signer.sign(asked.note.text, int(self._clock.now().timestamp()))
        self._seen.keep(point.origin, str(asked.note))
        return str(SignedNote(asked.note.text, (signature,))).removeprefix(f"{asked.note.text}\n")
