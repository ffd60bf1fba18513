"""Settings from the environment, in small blocks; a service composes those that it needs.

A block's field is `SIGHTLINE_<BLOCK>_<FIELD>`: `SIGHTLINE_KAFKA_BOOTSTRAP` is `kafka.bootstrap`. Secrets are files.
"""

import difflib
import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FilePath, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

PREFIX = "SIGHTLINE_"
# Read by `python -m services.<name> migrate`, which has no settings.
MIGRATION_URL = PREFIX + "MIGRATION_URL"
# Organisation in the subject of every certificate authority that `sightline stack` makes.
LAPTOP_ORGANISATION = "Sightline laptop CA, not for production"


class Block(BaseModel):
    """A group of settings; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _postgres_url(url: str) -> str:
    """Refuse what psycopg cannot read, without repeating it: it may hold a password."""
    try:
        conninfo_to_dict(url)
    except Exception as error:
        raise ValueError("not a PostgreSQL connection string") from error
    return url


class DatabaseSettings(Block):
    """PostgreSQL."""

    url: Annotated[str, AfterValidator(_postgres_url)] = Field(description="postgresql://role@host/database?sslmode=verify-full")
    password_file: FilePath | None = Field(None, description="file with the role's password")
    pool_max: int = Field(10, ge=1, le=200, description="connections of this replica at the most")

    def conninfo(self) -> dict[str, Any]:
        """Parameters for psycopg, with the password read from its file."""
        parameters: dict[str, Any] = dict(conninfo_to_dict(self.url))
        if self.password_file:
            parameters["password"] = self.password_file.read_text().strip()
        return parameters


class KafkaSettings(Block):
    """Kafka, for librdkafka and for aiokafka alike."""

    bootstrap: str = Field(min_length=3, pattern=r"^[^\s,]+:\d+(,[^\s,]+:\d+)*$", description="host:port[,host:port…] of brokers")
    security: Literal["PLAINTEXT", "SSL", "SASL_SSL"] = Field("SASL_SSL", description="security protocol")
    ca_file: FilePath | None = Field(None, description="CA certificates of the brokers, PEM")
    username: str | None = Field(None, description="SCRAM-SHA-512 user")
    password_file: FilePath | None = Field(None, description="file with the SCRAM password")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.security == "SASL_SSL" and not (self.username and self.password_file):
            raise ValueError("SASL_SSL needs username and password_file")
        return self


class RpcSettings(Block):
    """gRPC: where to listen, and this process's certificate for both directions."""

    listen: str = Field("0.0.0.0:8443", pattern=r"^\S+:\d+$", description="host:port of the gRPC server")
    health_listen: str = Field("0.0.0.0:8080", pattern=r"^\S+:\d+$", description="host:port of the plain health server")
    cert_file: FilePath = Field(description="this process's certificate chain, PEM, with a spiffe:// URI SAN")
    key_file: FilePath = Field(description="its private key, PEM")
    ca_file: FilePath = Field(description="CA certificates that peers are checked against, PEM")


class OidcSettings(Block):
    """Where people's access tokens come from."""

    issuer: str = Field(pattern=r"^https?://\S+$", description="issuer URL; its discovery document names the keys")
    audience: str = Field("sightline", min_length=1, description="required audience")
    algorithms: tuple[Literal["ES256", "RS256", "PS256", "EdDSA"], ...] = Field(("ES256",), description="accepted algorithms")


class TelemetrySettings(Block):
    """Traces and logs."""

    otlp_endpoint: str | None = Field(None, description="OTLP/gRPC collector, http(s)://host:port; none: no traces")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")


class ServiceSettings(BaseSettings):
    """What every process has. Subclasses add the blocks that they use."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="_", env_nested_max_split=1, extra="ignore", frozen=True)

    profile: Literal["production", "laptop"] = Field("production", description="laptop takes the stack's own CA and issuer")
    replica: str = Field("0", pattern=r"^[a-z0-9-]{1,63}$", description="name of this replica, unique among its service")
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _production_refuses_laptop_parts(self) -> Self:
        if self.profile == "production":
            _check_production(self)
        return self


def _check_production(settings: ServiceSettings) -> None:
    """Raise ValueError for whatever only a laptop may have."""
    rpc, kafka = getattr(settings, "rpc", None), getattr(settings, "kafka", None)
    database, oidc = getattr(settings, "database", None), getattr(settings, "oidc", None)
    if rpc and any(_is_laptop_ca(c) for c in x509.load_pem_x509_certificates(rpc.ca_file.read_bytes())):
        raise ValueError(f"{PREFIX}RPC_CA_FILE holds a laptop CA; production needs your own")
    if kafka and kafka.security == "PLAINTEXT":
        raise ValueError(f"{PREFIX}KAFKA_SECURITY is PLAINTEXT; production needs SSL or SASL_SSL")
    if database and database.conninfo().get("sslmode") not in ("verify-full", "verify-ca"):
        raise ValueError(f"{PREFIX}DATABASE_URL has no sslmode=verify-full")
    if oidc and (urlsplit(oidc.issuer).scheme != "https" or urlsplit(oidc.issuer).hostname in ("localhost", "127.0.0.1", "::1")):
        raise ValueError(f"{PREFIX}OIDC_ISSUER is the laptop issuer or not https; production needs your identity provider")


def _is_laptop_ca(certificate: x509.Certificate) -> bool:
    names = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return any(name.value == LAPTOP_ORGANISATION for name in names)


S = TypeVar("S", bound=BaseSettings)


def load(kind: type[S]) -> S:
    """Read the settings; on a mistake print each, with its meaning, and exit with 2.

    A variable with our prefix that no service knows is a mistake, too: what was meant by it would not be done, without a word.
    """
    problems, settings = _misspelt(kind), None
    try:
        settings = kind()
    except SettingsError as error:
        problems.append(f"{error}: is it JSON?")
    except ValidationError as error:
        # What a block has too much may be named above already, with what was meant.
        named = {text.partition(" ")[0].upper() for text in problems}
        found = [each for each in error.errors() if each["type"] != "extra_forbidden" or _variable(each["loc"]) not in named]
        problems += [_explain(kind, each["loc"], each["msg"]) for each in found]
    if settings is None or problems:
        print(f"{kind.__module__}: the settings are not usable:", file=sys.stderr)
        for text in problems:
            print(f"  {text}", file=sys.stderr)
        raise SystemExit(2)
    return settings


# What Kubernetes sets by itself for a Service whose name begins like our variables.
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")


def _misspelt(kind: type[BaseSettings]) -> list[str]:
    """What is wrong with names of variables; one that is another service's is only told, for a chart gives common ones to all."""
    ours = set(variables(kind))
    strange = [name for name in sorted(os.environ) if name.upper().startswith(PREFIX) and name.upper() not in ours]
    if not strange or not issubclass(kind, ServiceSettings):
        return []
    known = {name: module for module, each in _all_settings(kind) for name in variables(each)}
    found = []
    for name in strange:
        if name.upper() in known:
            print(f"{kind.__module__}: {name} is a setting of {known[name.upper()]}, not of this service", file=sys.stderr)
        elif name.upper() != MIGRATION_URL and not _is_service_link(name.upper()):
            near = difflib.get_close_matches(name.upper(), [*ours, *known], 1, 0.5)
            found.append(f"{name} is no setting of any service" + (f": did you mean {near[0]}?" if near else ""))
    return found


def _is_service_link(name: str) -> bool:
    """Whether Kubernetes set it: there, and with the address of the same Service beside it."""
    places = [match.start() for match in re.finditer("_", name) if _SERVICE_LINK.fullmatch(name, match.start())]
    return "KUBERNETES_SERVICE_HOST" in os.environ and any(f"{name[:place]}_SERVICE_HOST" in os.environ for place in places)


def variables(kind: type[BaseModel], prefix: str = PREFIX) -> Iterator[str]:
    """Names of the variables that a class of settings reads; a block may be given as one, too, as JSON."""
    for name, each in kind.model_fields.items():
        yield prefix + name.upper()
        if isinstance(each.annotation, type) and issubclass(each.annotation, Block):
            yield from variables(each.annotation, f"{prefix}{name.upper()}_")


def _all_settings(kind: type[BaseSettings]) -> Iterator[tuple[str, type[BaseSettings]]]:
    """The settings of all services that lie beside this one, by the service's name."""
    service, _, module_name = kind.__module__.rpartition(".")
    family = service.rpartition(".")[0] if module_name == "settings" else ""
    package = importlib.import_module(family) if family else None
    for each in pkgutil.iter_modules(getattr(package, "__path__", ())):
        try:
            module = importlib.import_module(f"{family}.{each.name}.settings")
        except ModuleNotFoundError as error:
            if error.name != f"{family}.{each.name}.settings":
                raise
            continue
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, ServiceSettings) and value is not ServiceSettings:
                yield each.name, value


def _explain(kind: type[BaseSettings], path: tuple[int | str, ...], message: str) -> str:
    """One line: the variable, what is wrong, what it is for."""
    if not path:
        return message
    model: Any = kind
    meaning = ""
    for part in path:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None and hasattr(model, "model_fields"):
            near = difflib.get_close_matches(str(part), model.model_fields, 1, 0.5)
            return f"{_variable(path)} is no setting" + (f": did you mean {_variable((*path[:-1], near[0]))}?" if near else "")
        if field is None:
            break
        model, meaning = field.annotation, field.description or ""
    if hasattr(model, "model_fields") and not meaning:
        needed = [f"{_variable((*path, n))} ({f.description})" for n, f in model.model_fields.items() if f.is_required()]
        return f"{_variable(path)}_*: {message}; set " + ", ".join(needed)
    return f"{_variable(path)}: {message}" + (f" - {meaning}" if meaning else "")


def _variable(path: tuple[int | str, ...]) -> str:
    return PREFIX + "_".join(str(part).upper() for part in path)
