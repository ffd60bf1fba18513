"""Small files: keys, and what must survive a power cut."""

import os
from pathlib import Path
from tempfile import mkstemp

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from chassis.errors import Misconfigured


def write_surely(file: Path, text: str) -> None:
    """Write a file whole or not at all, and for good. OSError if the disk does not take it; what was there stays."""
    number, name = mkstemp(dir=file.parent, prefix=".")
    try:
        with os.fdopen(number, "w") as there:
            there.write(text)
            there.flush()
            os.fsync(number)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_ed25519(file: Path) -> Ed25519PrivateKey:
    """A private key from a PEM file; Misconfigured if it is none."""
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except (ValueError, TypeError) as error:  # the latter: it wants a password
        raise Misconfigured(f"{file} is no private key that can be read: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Misconfigured(f"{file} is no Ed25519 key")
    return key
