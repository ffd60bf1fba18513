"""Witnesses, over HTTP (c2sp.org/tlog-witness)."""

import base64
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import aiohttp
from tlog.note import NoteError, SignedNote, Verifier

from services.audit.model import WitnessRefuses

_TIMEOUT, _ANSWER = aiohttp.ClientTimeout(total=5, connect=2), 64 * 1024


class WitnessLink:
    """One witness. Use as an async context manager."""

    def __init__(self, url: str, verifier: Verifier) -> None:
        self._url, self.verifier = f"{url.rstrip('/')}/add-checkpoint", verifier

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._session.close()

    async def cosign(self, old: int, path: Sequence[bytes], note: str) -> SignedNote | int:
        """The note with the witness's signature, or the size that it has seen; WitnessRefuses if it does neither."""
        body = "\n".join([f"old {old}", *(base64.b64encode(step).decode() for step in path), "", note])
        try:
            async with self._session.post(self._url, data=body.encode(), allow_redirects=False) as answer:
                text = (await answer.content.read(_ANSWER)).decode()
                if answer.status == 409 and answer.content_type == "text/x.tlog.size":
                    return int(text)
                if answer.status != 200:
                    raise WitnessRefuses(f"{answer.status}: {text[:300].strip()}")
                given = SignedNote.parse(note.rpartition("\n\n")[0] + "\n\n" + text)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise WitnessRefuses(f"{self._url}: {error!r}") from error
        try:
            self.verifier.check(given)
        except NoteError as error:
            raise WitnessRefuses(str(error)) from error
        return given
