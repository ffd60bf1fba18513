"""The laptop's identity provider: OIDC discovery, keys, and tokens for ready users. Production settings refuse it."""

import argparse
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

# user → (agency, roles); `platform-admin` sets the system up.
USERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "supervisor": ("demo-pd", ("supervisor",)),
    "watch-commander": ("demo-pd", ("supervisor",)),
    "analyst": ("demo-pd", ("analyst",)),
    "officer": ("demo-pd", ("officer",)),
    "auditor": ("demo-pd", ("auditor",)),
    "partner": ("partner-pd", ("supervisor", "partner")),
    "admin": ("demo-pd", ("admin",)),
    "platform-admin": ("platform", ("platform-admin",)),
}
# Named groups that see covert assignments.
GROUPS: dict[str, tuple[str, ...]] = {"supervisor": ("narcotics",)}
AUDIENCE = "sightline"


def find_user(user: str) -> tuple[str, tuple[str, ...]] | None:
    """Agency and roles of a user; `name@agency` is the same user of another agency. None if there is none."""
    name, _, agency = user.partition("@")
    found = USERS.get(name)
    return (agency or found[0], found[1]) if found else None


_KEY_ID = "laptop-1"


class TokenMaker:
    """Signs access tokens as an identity provider would."""

    def __init__(self, issuer: str, key_file: Path) -> None:
        self.issuer = issuer
        if not key_file.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            key_file.touch(mode=0o600)
            key_file.write_bytes(
                key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            )
        self.pem = key_file.read_bytes()

    def claims(self, user: str) -> dict[str, Any]:
        """The claims of a user's token, good for an hour; KeyError for nobody."""
        found = find_user(user)
        if found is None:
            raise KeyError(user)
        agency, roles = found
        now = datetime.now(UTC)
        return {
            "iss": self.issuer, "aud": AUDIENCE, "sub": user.partition("@")[0], "iat": now, "exp": now + timedelta(hours=1),
            "amr": ["pwd", "otp"], "sightline_agency": agency, "sightline_roles": list(roles),
            "sightline_groups": list(GROUPS.get(user.partition("@")[0], ())),
        }  # fmt: skip

    def token(self, user: str) -> str:
        """A signed token of a user."""
        return jwt.encode(self.claims(user), self.pem, "ES256", {"kid": _KEY_ID})

    def keys(self) -> dict[str, Any]:
        """The public key as a JWK set."""
        public = serialization.load_pem_private_key(self.pem, None).public_key()
        key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(public))  # type: ignore[arg-type]
        return {"keys": [key | {"kid": _KEY_ID, "use": "sig", "alg": "ES256"}]}


def build(maker: TokenMaker) -> web.Application:
    """The provider's pages."""
    routes = web.RouteTableDef()

    @routes.get("/.well-known/openid-configuration")
    async def discovery(_: web.Request) -> web.Response:
        issuer = maker.issuer
        return web.json_response({"issuer": issuer, "jwks_uri": f"{issuer}/jwks.json", "token_endpoint": f"{issuer}/token"})

    @routes.get("/jwks.json")
    async def keys(_: web.Request) -> web.Response:
        return web.json_response(maker.keys())

    @routes.post("/token")
    async def token(request: web.Request) -> web.Response:
        user = str((await request.post()).get("username", ""))
        if find_user(user) is None:
            text = f"no user {user!r}; there are: {', '.join(USERS)}"
            return web.json_response({"error": "invalid_grant", "error_description": text}, status=400)
        return web.json_response({"access_token": maker.token(user), "token_type": "Bearer", "expires_in": 3600})

    application = web.Application()
    application.add_routes(routes)
    return application


def main() -> None:
    """Serve on loopback until stopped."""
    parser = argparse.ArgumentParser(description="Sightline's laptop identity provider.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", type=Path, required=True, help="file of the signing key; made if missing")
    arguments = parser.parse_args()
    maker = TokenMaker(f"http://127.0.0.1:{arguments.port}", arguments.key)
    web.run_app(build(maker), host="127.0.0.1", port=arguments.port, print=None)


if __name__ == "__main__":
    main()
