"""Personal data under keys that can be forgotten: each subject has one, kept wrapped by a master key that is not in the database."""

import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE, _KEY = 12, 32


class Unsealable(ValueError):
    """The content cannot be opened: another key, another place, or changed bytes."""


class Sealer:
    """AES-256-GCM. Without a subject's wrapped key what was sealed for it is noise."""

    def __init__(self, master: bytes) -> None:
        """`master` are 32 bytes."""
        if len(master) != _KEY:
            raise ValueError(f"a master key of {len(master)} bytes, not {_KEY}")
        self._wrapping = AESGCM(hmac.digest(master, b"wrap", hashlib.sha256))
        self._naming = hmac.digest(master, b"name", hashlib.sha256)

    def tag(self, *names: str) -> bytes:
        """A name of 32 bytes for something personal: equal for equal names, and nobody without the master key can try them out."""
        return hmac.digest(self._naming, b"".join(len(n).to_bytes(4) + n for n in map(str.encode, names)), hashlib.sha256)

    def new_key(self, subject: bytes) -> bytes:
        """A new key for a subject, wrapped."""
        return _seal(self._wrapping, os.urandom(_KEY), subject)

    def seal(self, wrapped: bytes, subject: bytes, content: bytes, place: bytes) -> bytes:
        """Encrypt; it can be opened for the same subject and place only."""
        return _seal(self._key(wrapped, subject), content, place)

    def open(self, wrapped: bytes, subject: bytes, sealed: bytes, place: bytes) -> bytes:
        """Decrypt; Unsealable if that does not work out."""
        return _open(self._key(wrapped, subject), sealed, place)

    def _key(self, wrapped: bytes, subject: bytes) -> AESGCM:
        return AESGCM(_open(self._wrapping, wrapped, subject))


def _seal(key: AESGCM, content: bytes, place: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + key.encrypt(nonce, content, place)


def _open(key: AESGCM, sealed: bytes, place: bytes) -> bytes:
    try:
        return key.decrypt(sealed[:_NONCE], sealed[_NONCE:], place)
    except (InvalidTag, ValueError) as error:
        raise Unsealable("it was sealed with another key, for another place, or has been changed") from error
