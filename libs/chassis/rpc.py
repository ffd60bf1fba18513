"""gRPC: one server with one readable list of interceptors, and channels that come back fast.

Machines are known by mTLS; a person's token travels as `authorization: Bearer …` beside the machine's certificate.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509
from google.protobuf.message import Message as Protobuf
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry.trace import SpanKind
from sightline.audit.v1.record_pb2 import AuditOutcome
from sightline.common.v1.actor_pb2 import Actor
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from chassis import intake, telemetry
from chassis.audit import Audit, Entry
from chassis.errors import (
    REASON_PREFIX,
    AlreadyExists,
    Changed,
    Forbidden,
    InvalidRequest,
    Misconfigured,
    NotFound,
    SightlineError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    WrongState,
)
from chassis.identity import Caller, Machine, Person, TokenVerifier, parse_machine
from chassis.names import PLATFORM
from chassis.settings import RpcSettings

ERROR_DOMAIN = "sightline"
# A DNS SAN of every server's certificate, whatever the address that it is reached at.
SERVER_NAME = "sightline"
# A press may come with very many fields of a newer release.
MAX_REQUEST = 256 * 1024
# The transport's own limit lies higher, so that what is too large still gets a documented answer.
_MAX_TRANSPORT = 4 * 1024 * 1024
_AGE_GRACE_MS = 2000
_SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_TRANSPORT),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 4000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.so_reuseport", 0),
]
_CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    # All three are needed for a frozen peer to be noticed within ten seconds (measured).
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.enable_retries", 0),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
]


@dataclass(frozen=True)
class Allowed:
    """Who may call a method: machines of these kinds by themselves, people of these roles through one of the desks.

    With `identity` only these fields of the request can make it be refused; what is wrong with others is left out, see `ignored`. A
    method with a stream of requests does that by itself, with `settle`.
    """

    machines: frozenset[str]
    roles: frozenset[str] = frozenset()
    desks: frozenset[str] = frozenset()
    identity: frozenset[str] | None = None


@dataclass
class Call:
    """One call on its way through the interceptors."""

    method: str
    context: Any
    request: Any  # the message; None while a client streams
    streaming: bool
    server: "Server"
    machine: Machine | None = None
    person: Person | None = None

    @property
    def metadata(self) -> Mapping[str, str]:
        """The call's metadata; text values only."""
        return {k: v for k, v in self.context.invocation_metadata() or () if isinstance(v, str)}

    @property
    def actor(self) -> Actor:
        """Who acts: the person if there is one, else the machine."""
        party = self.person or self.machine
        return party.actor if party else Actor()


_caller: ContextVar[Caller] = ContextVar("caller")  # gRPC runs every call in a task, and so in a context, of its own


def caller() -> Caller:
    """The authenticated caller of the call that is being handled."""
    return _caller.get()


_ignored: ContextVar[tuple[str, ...]] = ContextVar("ignored", default=())


def ignored() -> tuple[str, ...]:
    """Paths of the fields that were left out of the request that is being handled."""
    return _ignored.get()


class _Malformed:
    """Stands for request bytes that are no message, until an interceptor refuses them."""

    def __init__(self, error: SightlineError) -> None:
        self.error = error


# --- the interceptors, outermost first -----------------------------------------------------------------------------


@asynccontextmanager
async def _trace(call: Call) -> AsyncIterator[None]:
    with telemetry.span(call.method.lstrip("/"), parent=call.metadata.get(telemetry.TRACEPARENT), kind=SpanKind.SERVER):
        yield


@asynccontextmanager
async def _errors_to_status(call: Call) -> AsyncIterator[None]:
    try:
        yield
    except SightlineError as error:
        await call.context.abort_with_status(rpc_status.to_status(_status(error)))
    except (grpc.aio.AbortError, asyncio.CancelledError):
        raise
    except Exception:
        telemetry.log().exception("a call failed", method=call.method)
        text = f"internal error; trace {telemetry.trace_id()}"
        await call.context.abort_with_status(rpc_status.to_status(_status(SightlineError(Reason.ERROR_REASON_INTERNAL, text))))


@asynccontextmanager
async def _audit_refusals(call: Call) -> AsyncIterator[None]:
    try:
        yield
    except (Unauthenticated, Forbidden) as error:
        if call.server.audit:
            details = {"reason": error.reason, "peer": call.context.peer() or ""}
            actor = call.actor
            call.server.audit.refused(
                Entry("call.refused", actor, call.method, actor.agency_id, "", details, AuditOutcome.AUDIT_OUTCOME_REFUSED)
            )
        raise


@asynccontextmanager
async def _authenticate(call: Call) -> AsyncIterator[None]:
    names = [name.decode() for name in call.context.auth_context().get("x509_subject_alternative_name", [])]
    uris = [name for name in names if "://" in name]  # DNS names come in the same list
    call.machine = parse_machine(uris, call.server.trust_domain)
    scheme, _, token = call.metadata.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and call.server.tokens:
        call.person = await call.server.tokens.verify(token)
    _caller.set(Caller(call.machine, call.person))
    yield


@asynccontextmanager
async def _authorise(call: Call) -> AsyncIterator[None]:
    allowed = call.server.allowed.get(call.method, Allowed(frozenset()))
    kind = call.machine.kind if call.machine else ""
    if kind in allowed.desks:
        if call.person is None:
            raise Unauthenticated(Reason.ERROR_REASON_TOKEN_INVALID, "this method is for people: send an access token")
        if call.machine and call.machine.agency_id not in (call.person.agency_id, PLATFORM):
            raise Forbidden(Reason.ERROR_REASON_OTHER_AGENCY, "this desk belongs to another agency")
        if not call.person.roles & allowed.roles:
            raise Forbidden(Reason.ERROR_REASON_CALLER_NOT_ALLOWED, "none of your roles may call this method")
    elif kind not in allowed.machines or (kind == "service" and call.machine and call.machine.agency_id != PLATFORM):
        raise Forbidden(Reason.ERROR_REASON_CALLER_NOT_ALLOWED, "this kind of caller may not call this method")
    elif call.person is not None:
        raise Forbidden(Reason.ERROR_REASON_CALLER_NOT_ALLOWED, "a person calls through a desk, not with a machine's certificate")
    yield


@asynccontextmanager
async def _require_deadline(call: Call) -> AsyncIterator[None]:
    if not call.streaming and call.context.time_remaining() is None:
        raise InvalidRequest(Reason.ERROR_REASON_DEADLINE_REQUIRED, "set a deadline on the call")
    yield


@asynccontextmanager
async def _validate(call: Call) -> AsyncIterator[None]:
    allowed = call.server.allowed.get(call.method)
    if call.request is not None and allowed and allowed.identity is not None:
        _ignored.set(tuple(settle(call.request, allowed.identity)))
    elif call.request is not None:
        check(call.request)
    yield


INTERCEPTORS: Sequence[Callable[[Call], AbstractAsyncContextManager[None]]] = (
    _trace,
    _errors_to_status,
    _audit_refusals,
    _authenticate,
    _authorise,
    _require_deadline,
    _validate,
)


def check(request: Any) -> None:
    """Raise InvalidRequest unless the message keeps the rules of its schema."""
    require_readable(request)
    if broken := intake.violations(request):
        raise intake.invalid(broken)


def settle(request: Any, identity: Collection[str]) -> dict[str, str]:
    """Leave out whatever breaks a rule of the schema and return it by its paths; InvalidRequest if bytes or identity are wrong."""
    require_readable(request)
    return intake.settle(request, identity)


def require_readable(request: Any) -> None:
    """Raise what is wrong with a message whose bytes could not be read."""
    if isinstance(request, _Malformed):
        raise request.error


def _status(error: SightlineError) -> status_pb2.Status:
    code = grpc.StatusCode[error.code.name]
    status = status_pb2.Status(code=code.value[0], message=error.message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata))
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for name, what in error.violations.items():
            bad.field_violations.add(field=name, description=what)
        status.details.add().Pack(bad)
    if isinstance(error, Unavailable):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(200)
        status.details.add().Pack(retry)
    return status


# --- server --------------------------------------------------------------------------------------------------------


class Server(grpc.aio.ServerInterceptor):
    """A gRPC server. Register servicers on `grpc`, then start it."""

    def __init__(
        self,
        settings: RpcSettings,
        allowed: Mapping[str, Allowed],
        tokens: TokenVerifier | None = None,
        audit: Audit | None = None,
        calls_at_most: int = 4000,
        connection_age_s: float | None = None,
    ) -> None:
        self.settings, self.allowed, self.tokens, self.audit = settings, allowed, tokens, audit
        self.trust_domain = own_identity(settings).trust_domain
        options = list(_SERVER_OPTIONS)
        if connection_age_s:
            # Long links end with their connection, each at another time, and so spread over replicas again after one was away.
            options += [("grpc.max_connection_age_ms", int(connection_age_s * 1000)), ("grpc.max_connection_age_grace_ms", _AGE_GRACE_MS)]
        self.grpc = grpc.aio.server(interceptors=[self], options=options, maximum_concurrent_rpcs=calls_at_most)

    async def start(self) -> int:
        """Listen with TLS, client certificates required; returns the port. Misconfigured if no peer would believe our certificate."""
        s = self.settings
        require_name(s)
        credentials = grpc.ssl_server_credentials(
            [(s.key_file.read_bytes(), s.cert_file.read_bytes())], s.ca_file.read_bytes(), require_client_auth=True
        )
        port = self.grpc.add_secure_port(s.listen, credentials)
        await self.grpc.start()
        return port

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a call with the list of interceptors."""
        handler = await continuation(details)
        return handler and self._wrap(str(details.method), handler)

    def _wrap(self, method: str, handler: Any) -> Any:
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        @asynccontextmanager
        async def intercepted(request: Any, context: Any) -> AsyncIterator[Call]:
            call = Call(method, context, request=None if handler.request_streaming else request,
                        streaming=handler.request_streaming or handler.response_streaming, server=self)  # fmt: skip
            async with AsyncExitStack() as stack:
                for interceptor in INTERCEPTORS:
                    await stack.enter_async_context(interceptor(call))
                yield call

        async def unary(request: Any, context: Any) -> Any:
            async with intercepted(request, context):
                return await inner(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with intercepted(request, context):
                async for response in inner(request, context):
                    yield response

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        behaviour: Any = stream if handler.response_streaming else unary
        allowed = self.allowed.get(method)
        careful = _careful(handler.request_deserializer, repair=allowed is not None and allowed.identity is not None)
        return make(behaviour, careful, _ready_made(handler.response_serializer))


def _ready_made(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """A response that is bytes already goes out as it is: many watchers get the same."""
    return lambda response: response if isinstance(response, bytes) else serialize(response)


def _careful(deserialize: Callable[[bytes], Protobuf] | None, *, repair: bool) -> Callable[[bytes], Any]:
    """Turn bytes into a message, or into what `check` refuses with a reason. `repair`: text that is none makes no message unreadable."""

    def careful(data: bytes) -> Any:
        if len(data) > MAX_REQUEST:
            text = f"the request has {len(data)} bytes, over {MAX_REQUEST}"
            limit = {"limit_bytes": str(MAX_REQUEST)}
            return _Malformed(TooLarge(Reason.ERROR_REASON_REQUEST_TOO_LARGE, text, metadata=limit))
        try:
            return deserialize(data) if deserialize else data
        except Exception:
            if repair and deserialize and (repaired := intake.with_text_repaired(deserialize, data)) is not None:
                return repaired
            return _Malformed(InvalidRequest(Reason.ERROR_REASON_MALFORMED_REQUEST, "the bytes are not the method's request"))

    return careful


def own_identity(settings: RpcSettings) -> Machine:
    """This process's own identity, from its certificate."""
    certificate = x509.load_pem_x509_certificates(settings.cert_file.read_bytes())[0]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return parse_machine(uris, uris[0].removeprefix("spiffe://").partition("/")[0] if uris else "")


def require_name(settings: RpcSettings) -> None:
    """Misconfigured unless our certificate has the DNS name by which peers call every Sightline server: else every call to us fails."""
    certificate = x509.load_pem_x509_certificates(settings.cert_file.read_bytes())[0]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    if SERVER_NAME not in names:
        has = ", ".join(names) or "none"
        raise Misconfigured(
            f"the certificate in {settings.cert_file} has no DNS SAN {SERVER_NAME!r} (it has: {has}), beside its spiffe:// URI SAN:"
            " peers check that name, and no call would reach this service. Issue it again with both."
        )


# --- client --------------------------------------------------------------------------------------------------------


def connect(target: str, settings: RpcSettings, *, spread: bool = True) -> grpc.aio.Channel:
    """A channel with this process's certificate; the server's name in its certificate is `SERVER_NAME`.

    A target with several addresses names replicas. `spread`: calls go to all of them in turn, so that one that dies takes
    few calls with it. Else the channel keeps to one of them, any, and moves when that one goes: for long links.
    """
    credentials = grpc.ssl_channel_credentials(
        settings.ca_file.read_bytes(), settings.key_file.read_bytes(), settings.cert_file.read_bytes()
    )
    balance = {"round_robin": {}} if spread else {"pick_first": {"shuffleAddressList": True}}
    config = json.dumps({"loadBalancingConfig": [balance]})
    options = [*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.service_config", config)]
    return grpc.aio.secure_channel(target, credentials, options=options)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The documented reason of a refused call, without its prefix; empty if there is none."""
    status: Any = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


_KINDS: Mapping[grpc.StatusCode, type[SightlineError]] = {
    grpc.StatusCode[kind.code.name]: kind
    for kind in (InvalidRequest, TooLarge, Unauthenticated, Forbidden, NotFound, AlreadyExists, WrongState, Changed)
}


async def ask(method: Any, request: Any, within_s: float, *metadata: tuple[str, str]) -> Any:
    """One call; a documented refusal is raised as the error that it was at the other side, anything else as Unavailable."""
    try:
        return await method(request, timeout=within_s, metadata=with_trace(*metadata))
    except grpc.aio.AioRpcError as error:
        name = REASON_PREFIX + reason_of(error)
        known = dict(Reason.items()).get(name)
        kind = _KINDS.get(error.code(), Unavailable) if known is not None else Unavailable
        text = error.details() or f"no answer: {error.code().name}"
        raise kind(Reason.ERROR_REASON_TRY_AGAIN if known is None else known, text) from error


async def addresses(target: str) -> list[str]:
    """Targets of the single replicas that a target names, as they are now: for links that are kept with every one of them."""
    scheme, _, rest = target.partition(":")
    if scheme in ("ipv4", "ipv6"):
        return [f"{scheme}:{address}" for address in rest.split(",")]
    host, _, port = target.removeprefix("dns:///").rpartition(":")
    found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    ends = sorted({(family, address[0]) for family, _, _, _, address in found})
    return [f"ipv4:{ip}:{port}" if family == socket.AF_INET else f"ipv6:[{ip}]:{port}" for family, ip in ends]


def with_trace(*more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """Metadata that carries the current trace."""
    parent = telemetry.traceparent()
    return ((telemetry.TRACEPARENT, parent), *more) if parent else more
