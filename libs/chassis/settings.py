"""Settings from the environment, in small blocks; a service composes those that it needs.

A block's field is `SIGHTLINE_<BLOCK>_<FIELD>`: `SIGHTLINE_KAFKA_BOOTSTRAP` is `kafka.bootstrap`. Secrets are files.
"""

import sys
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FilePath, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "SIGHTLINE_"
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
    """Read the settings; on a mistake print each, with its meaning, and exit with 2."""
    try:
        return kind()
    except ValidationError as error:
        print(f"{kind.__module__}: the settings are not usable:", file=sys.stderr)
        for problem in error.errors():
            print(f"  {_explain(kind, problem['loc'], problem['msg'])}", file=sys.stderr)
        raise SystemExit(2) from None


def _explain(kind: type[BaseSettings], path: tuple[int | str, ...], message: str) -> str:
    """One line: the variable, what is wrong, what it is for."""
    if not path:
        return message
    model: Any = kind
    meaning = ""
    for part in path:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            break
        model, meaning = field.annotation, field.description or ""
    if hasattr(model, "model_fields") and not meaning:
        needed = [f"{_variable((*path, n))} ({f.description})" for n, f in model.model_fields.items() if f.is_required()]
        return f"{_variable(path)}_*: {message}; set " + ", ".join(needed)
    return f"{_variable(path)}: {message}" + (f" - {meaning}" if meaning else "")


def _variable(path: tuple[int | str, ...]) -> str:
    return PREFIX + "_".join(str(part).upper() for part in path)
