"""Settings of the streams service."""

from chassis.settings import DatabaseSettings, KafkaSettings, OidcSettings, RpcSettings, ServiceSettings
from pydantic import Field


class StreamsSettings(ServiceSettings):
    """What the streams service reads from the environment."""

    database: DatabaseSettings
    kafka: KafkaSettings
    rpc: RpcSettings
    oidc: OidcSettings
    registry_target: str = Field(min_length=3, description="host:port of the registry's gRPC server")
    emergency_target: str = Field(min_length=3, description="host:port of the emergency service's gRPC server")
    link_age_s: float = Field(1800, ge=5, le=86400, description="a connection of cameras ends after this time, give or take a tenth")
