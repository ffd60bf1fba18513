"""Signed notes and checkpoints in the formats of C2SP (c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature). Pure.

A note is text and lines of signatures below it. A checkpoint is a note whose text is the log's name, its size and its root. A witness
signs the same text with the time at which it saw that it is consistent with what it saw before.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ED25519, COSIGNATURE = 1, 4  # kinds of signature
_MAX_NOTE, _MAX_SIGNATURES, _ROOT = 64 * 1024, 100, 32
_NAME = re.compile(r"[^\s+]{1,200}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


class NoteError(ValueError):
    """A note that is none, or that is not signed as it must be; the text says what is wrong."""


@dataclass(frozen=True)
class Signature:
    """A line below the text: who, which key, and the bytes."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True)
class SignedNote:
    """Text, which ends with a newline, and its signatures."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        lines = (f"— {s.name} {base64.b64encode(s.key_id + s.signature).decode()}\n" for s in self.signatures)
        return f"{self.text}\n{''.join(lines)}"

    @classmethod
    def parse(cls, content: str) -> "SignedNote":
        """NoteError if it is no note."""
        text, separator, rest = content.rpartition("\n\n")
        lines = rest.split("\n")
        if len(content) > _MAX_NOTE or not separator or lines.pop() or not lines or len(lines) > _MAX_SIGNATURES:
            raise NoteError("no signed note: a text, an empty line, and signatures")
        if any(ord(character) < 32 and character != "\n" for character in content):
            raise NoteError("a signed note has no control characters")
        return cls(text + "\n", tuple(_signature(line) for line in lines))

    def signed(self, *more: Signature) -> "SignedNote":
        """The same with more signatures."""
        return SignedNote(self.text, (*self.signatures, *more))


def _signature(line: str) -> Signature:
    parts = line.split(" ")
    try:
        dash, name, encoded = parts
        content = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error) as error:
        raise NoteError(f"no line of a signature: {line[:80]!r}") from error
    if dash != "—" or not _NAME.fullmatch(name) or len(content) < 5:
        raise NoteError(f"no line of a signature: {line[:80]!r}")
    return Signature(name, content[:4], content[4:])


@dataclass(frozen=True)
class Verifier:
    """A public key by its name; `kind` says what it signs."""

    name: str
    key: Ed25519PublicKey
    kind: int = ED25519

    @property
    def key_id(self) -> bytes:
        """Four bytes that name the key in a note."""
        return hashlib.sha256(self.name.encode() + b"\n" + self._encoded).digest()[:4]

    @property
    def _encoded(self) -> bytes:
        return bytes([self.kind]) + self.key.public_bytes(Encoding.Raw, PublicFormat.Raw)

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(self._encoded).decode()}"

    @classmethod
    def parse(cls, text: str) -> "Verifier":
        """From its usual form, name+key id+key; NoteError if it is none."""
        name, _, rest = text.partition("+")
        key_id, _, encoded = rest.partition("+")
        try:
            content = base64.b64decode(encoded, validate=True)
            found = cls(name, Ed25519PublicKey.from_public_bytes(content[1:]), content[0])
        except (ValueError, IndexError, binascii.Error) as error:
            raise NoteError(f"no key: {text[:80]!r}") from error
        if not _NAME.fullmatch(name) or found.kind not in (ED25519, COSIGNATURE) or found.key_id.hex() != key_id:
            raise NoteError(f"no key, or its id is another's: {text[:80]!r}")
        return found

    def check(self, note: SignedNote) -> int:
        """NoteError unless the note has a signature of this key that fits. Returns the time of a cosignature in seconds, else 0."""
        there = [s for s in note.signatures if (s.name, s.key_id) == (self.name, self.key_id)]
        if not there:
            raise NoteError(f"not signed by {self.name}")
        at, signature = 0, there[0].signature
        if self.kind == COSIGNATURE:
            at, signature = int.from_bytes(signature[:8]), signature[8:]
        try:
            self.key.verify(signature, _signed_text(note.text, at, self.kind))
        except InvalidSignature as error:
            raise NoteError(f"the signature of {self.name} does not fit") from error
        return at


class Signer:
    """A private key by its name."""

    def __init__(self, name: str, key: Ed25519PrivateKey, kind: int = ED25519) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a key's name has neither spaces nor plus signs: {name!r}")
        self._key = key
        self.verifier = Verifier(name, key.public_key(), kind)

    def sign(self, text: str, at: int = 0) -> Signature:
        """Sign a text; a witness says at what time, in seconds since 1970, it saw it."""
        signature = self._key.sign(_signed_text(text, at, self.verifier.kind))
        if self.verifier.kind == COSIGNATURE:
            signature = at.to_bytes(8) + signature
        return Signature(self.verifier.name, self.verifier.key_id, signature)


def _signed_text(text: str, at: int, kind: int) -> bytes:
    return (f"cosignature/v1\ntime {at}\n{text}" if kind == COSIGNATURE else text).encode()


@dataclass(frozen=True)
class Checkpoint:
    """What a log says that it is: its name, how many leaves, and their root."""

    origin: str
    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """From a note's text; NoteError if it is none. Lines of extensions are left out."""
        lines = text.split("\n")
        if len(lines) < 4 or not lines[0] or not _SIZE.fullmatch(lines[1]):
            raise NoteError("no checkpoint: the log's name, its size, its root")
        try:
            root = base64.b64decode(lines[2], validate=True)
        except ValueError as error:
            raise NoteError("no checkpoint: the root cannot be read") from error
        if len(root) != _ROOT:
            raise NoteError(f"no checkpoint: a root of {len(root)} bytes")
        return cls(lines[0], int(lines[1]), root)


def open_checkpoint(content: str, log: Verifier, witnesses: Iterable[Verifier] = (), quorum: int = 0) -> tuple[Checkpoint, dict[str, int]]:
    """A checkpoint that its log has signed, and which of the witnesses saw it when; NoteError if fewer than the quorum did."""
    note = SignedNote.parse(content)
    log.check(note)
    seen: dict[str, int] = {}
    for witness in witnesses:
        try:
            seen[witness.name] = witness.check(note)
        except NoteError:
            continue
    if len(seen) < quorum:
        raise NoteError(f"{len(seen)} witnesses saw it, not {quorum}")
    found = Checkpoint.parse(note.text)
    if found.origin != log.name:
        raise NoteError(f"a checkpoint of {found.origin}, signed by {log.name}")
    return found, seen
