"""Who calls: machines by client certificate (URI SAN), people by OIDC access token."""

import asyncio
import json
import re
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import jwt
from sightline.common.v1.actor_pb2 import Actor, ActorKind
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from chassis.errors import Forbidden, Unauthenticated, Unavailable
from chassis.names import PLATFORM
from chassis.settings import OidcSettings

_SPIFFE_PATH = re.compile(r"^/agency/(?P<agency>[a-z][a-z0-9-]{1,62})/(?P<kind>[a-z]{2,20})/(?P<id>[a-z0-9][a-z0-9-]{0,62})$")
_SECOND_FACTORS = frozenset({"mfa", "otp", "hwk", "swk", "fpt", "sms"})
_MAX_TOKEN = 16 * 1024
_KEYS_GOOD_S = 600.0


@dataclass(frozen=True)
class Machine:
    """A peer as its certificate names it: `spiffe://<trust domain>/agency/<agency>/<kind>/<id>`."""

    trust_domain: str
    agency_id: str
    kind: str
    id: str

    @property
    def actor(self) -> Actor:
        """The machine as an actor."""
        kind = ActorKind.ACTOR_KIND_SERVICE if self.kind == "service" else ActorKind.ACTOR_KIND_MACHINE
        return Actor(kind=kind, id=f"{self.kind}/{self.id}", agency_id=self.agency_id)


@dataclass(frozen=True)
class Person:
    """A user as the verified token names him or her."""

    subject: str
    agency_id: str
    roles: frozenset[str] = field(default_factory=frozenset)
    groups: frozenset[str] = field(default_factory=frozenset)  # named groups that see what others do not

    @property
    def actor(self) -> Actor:
        """The person as an actor."""
        return Actor(kind=ActorKind.ACTOR_KIND_PERSON, id=self.subject, agency_id=self.agency_id)


@dataclass(frozen=True)
class Caller:
    """What a handler may know of its caller."""

    machine: Machine
    person: Person | None

    @property
    def actor(self) -> Actor:
        """Who acts: the person if there is one, else the machine."""
        return (self.person or self.machine).actor

    @property
    def agency_id(self) -> str:
        """The agency that the caller acts for."""
        return (self.person or self.machine).agency_id

    def may_see(self, agency_id: str) -> bool:
        """Whether the caller acts for this agency; Sightline's own services act for all."""
        return self.agency_id == agency_id or (self.machine.kind == "service" and self.machine.agency_id == PLATFORM)


def parse_machine(uris: list[str], trust_domain: str) -> Machine:
    """Read the identity out of a verified certificate's URI SANs; exactly one must be of our trust domain's form."""
    for uri in uris if len(uris) == 1 else []:
        parts = urlsplit(uri)
        found = _SPIFFE_PATH.match(parts.path)
        if parts.scheme == "spiffe" and parts.netloc == trust_domain and not parts.query and not parts.fragment and found:
            return Machine(parts.netloc, found["agency"], found["kind"], found["id"])
    raise Unauthenticated(
        Reason.ERROR_REASON_CERTIFICATE_INVALID,
        f"the client certificate needs exactly one URI SAN spiffe://{trust_domain}/agency/<agency>/<kind>/<id>",
    )


class TokenVerifier:
    """Checks access tokens against the issuer's published keys. Keys are fetched off the event loop and cached."""

    def __init__(self, settings: OidcSettings, refetch_after_s: float = 10.0) -> None:
        self._settings = settings
        self._refetch_after_s = refetch_after_s
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = -refetch_after_s
        self._lock = asyncio.Lock()

    async def verify(self, token: str) -> Person:
        """Return the person, or raise with one constant message, whatever is wrong with the token."""
        try:
            claims = await self._claims(token)
            agency, roles = claims["sightline_agency"], claims["sightline_roles"]
            groups = claims.get("sightline_groups", [])
            if not isinstance(agency, str) or not isinstance(roles, list) or not isinstance(groups, list):
                raise TypeError("claims of a wrong type")
            factors = claims.get("amr", [])
        except (jwt.PyJWKClientConnectionError, OSError) as error:
            raise Unavailable(Reason.ERROR_REASON_TRY_AGAIN, "the identity provider does not answer") from error
        except (jwt.PyJWTError, KeyError, TypeError, ValueError) as error:
            raise Unauthenticated(Reason.ERROR_REASON_TOKEN_INVALID, "the access token is missing or not valid") from error
        if not _SECOND_FACTORS.intersection(factors if isinstance(factors, list) else []):
            raise Forbidden(Reason.ERROR_REASON_SECOND_FACTOR_REQUIRED, "sign in with a second factor")
        return Person(str(claims["sub"]), agency, frozenset(map(str, roles)), frozenset(map(str, groups)))

    async def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > _MAX_TOKEN:
            raise ValueError("token too long")
        key = await self._key(str(jwt.get_unverified_header(token).get("kid", "")))
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=list(self._settings.algorithms),
            audience=self._settings.audience,
            issuer=self._settings.issuer,
            leeway=30,
            options={"require": ["exp", "iat", "aud", "iss", "sub"]},
        )
        return claims

    async def _key(self, kid: str) -> jwt.PyJWK:
        """The issuer's key of that id. An unknown id, or keys that have become old, make us ask the issuer again."""
        if kid in self._keys and time.monotonic() - self._fetched_at < _KEYS_GOOD_S:
            return self._keys[kid]
        async with self._lock:
            age = time.monotonic() - self._fetched_at
            if age >= (_KEYS_GOOD_S if kid in self._keys else self._refetch_after_s):
                try:
                    self._keys = await asyncio.to_thread(self._fetch)
                    self._fetched_at = time.monotonic()
                except (jwt.PyJWKClientConnectionError, OSError):
                    if kid not in self._keys:
                        raise
                    self._fetched_at = time.monotonic() - _KEYS_GOOD_S + 60  # the known keys serve until it answers again
            return self._keys[kid]

    def _fetch(self) -> dict[str, jwt.PyJWK]:
        issuer = self._settings.issuer.rstrip("/")
        with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration", timeout=5) as answer:  # noqa: S310 (settings allow http(s) only)
            discovery = json.load(answer)
        keys = jwt.PyJWKClient(discovery["jwks_uri"], timeout=5).get_signing_keys()
        return {key.key_id: key for key in keys if key.key_id}
