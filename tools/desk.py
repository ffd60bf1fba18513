"""A person's seat at the platform: the services by gRPC, with the desk's certificate and the person's token."""

import json
import time
import urllib.parse
import urllib.request
from types import TracebackType
from typing import Any, Self

from chassis.rpc import connect, with_trace
from sightline.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from sightline.audit.v1.oversight_service_pb2_grpc import OversightServiceStub
from sightline.emergency.v1.emergency_service_pb2_grpc import EmergencyServiceStub
from sightline.evidence.v1.evidence_service_pb2_grpc import EvidenceServiceStub
from sightline.location.v1.location_service_pb2_grpc import LocationServiceStub
from sightline.location.v1.map_service_pb2_grpc import MapServiceStub
from sightline.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from sightline.streams.v1.session_service_pb2_grpc import SessionServiceStub
from sightline.streams.v1.stream_service_pb2_grpc import StreamServiceStub

from tools.local.issuer import find_user
from tools.local.stack import Stack

_TOKEN_S = 1800.0  # half of a token's life


def fetch_token(stack: Stack, user: str) -> str:
    """An access token of one of the laptop's users."""
    body = urllib.parse.urlencode({"username": user, "grant_type": "password"}).encode()
    with urllib.request.urlopen(f"{stack.issuer}/token", body, timeout=5) as answer:
        return str(json.load(answer)["access_token"])


def replica_of(target: str, number: int) -> str:
    """The target of one replica, of a target that names several; where there are fewer, the last."""
    scheme, _, rest = target.partition(":")
    there = rest.split(",")
    return f"{scheme}:{there[min(number, len(there) - 1)]}"


class Desk:
    """One user's channels. Use as an async context manager; calls take `metadata=desk.metadata()` and a timeout."""

    def __init__(self, stack: Stack, user: str, replica: int | None = None) -> None:
        """With `replica` all calls go to that one of each service, in the order of its addresses."""
        self._stack, self._user = stack, user
        self._token, self._fetched = fetch_token(stack, user), time.monotonic()
        agency, _ = find_user(user) or ("", ())
        rpc = stack.ca.rpc(agency, "cli", user.partition("@")[0])
        targets = {name: target if replica is None else replica_of(target, replica) for name, target in stack.targets.items()}
        self._channels = {name: connect(target, rpc) for name, target in targets.items()}
        self.registry = RegistryServiceStub(self._channels["registry"])
        self.emergency = EmergencyServiceStub(self._channels["emergency"])
        self.streams = StreamServiceStub(self._channels["streams"])
        self.sessions = SessionServiceStub(self._channels["streams"])
        self.audit = AuditServiceStub(self._channels["audit"])
        self.oversight = OversightServiceStub(self._channels["audit"])
        self.location = LocationServiceStub(self._channels["location"])
        self.map = MapServiceStub(self._channels["location"])
        self.evidence = EvidenceServiceStub(self._channels["evidence"])

    def metadata(self) -> Any:
        """The token, and the current trace."""
        if time.monotonic() - self._fetched > _TOKEN_S:
            self._token, self._fetched = fetch_token(self._stack, self._user), time.monotonic()
        return with_trace(("authorization", f"Bearer {self._token}"))

    async def call(self, method: Any, request: Any, timeout: float = 10.0) -> Any:
        """One call with token and deadline."""
        return await method(request, timeout=timeout, metadata=self.metadata())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for channel in self._channels.values():
            await channel.close()
