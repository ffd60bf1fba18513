"""What a log asks of a witness (c2sp.org/tlog-witness), and what it is answered; no I/O."""

import base64
import binascii
import re
from dataclasses import dataclass

from tlog.note import NoteError, SignedNote

_HASH, _STEPS = 32, 63
_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")


class Refused(Exception):
    """Nothing is signed: an HTTP status, why, and with 409 the size that the witness has seen."""

    def __init__(self, status: int, why: str, size: int | None = None) -> None:
        super().__init__(why)
        self.status, self.why, self.size = status, why, size


@dataclass(frozen=True)
class Asked:
    """The size that the log thinks the witness has seen, the way from there, and the checkpoint to sign."""

    old: int
    path: tuple[bytes, ...]
    note: SignedNote

    @classmethod
    def parse(cls, body: bytes) -> "Asked":
        """Refused with 400 if it is nothing of the kind."""
        try:
            head, _, note = body.decode().partition("\n\n")
            first, *lines = head.split("\n")
            old = _OLD.fullmatch(first)
            if old is None or len(lines) > _STEPS:
                raise ValueError(f"a line 'old N' and at most {_STEPS} hashes")
            path = tuple(base64.b64decode(line, validate=True) for line in lines)
            if any(len(step) != _HASH for step in path):
                raise ValueError("a hash has 32 bytes")
            return cls(int(old[1]), path, SignedNote.parse(note))
        except (ValueError, binascii.Error, NoteError) as error:
            raise Refused(400, f"not a request for a cosignature: {error}") from error
