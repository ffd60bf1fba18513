"""Settings of the emergency service."""

from chassis.settings import DatabaseSettings, KafkaSettings, OidcSettings, RpcSettings, ServiceSettings
from pydantic import Field


class EmergencySettings(ServiceSettings):
    """What the emergency service reads from the environment."""

    database: DatabaseSettings
    kafka: KafkaSettings
    rpc: RpcSettings
    oidc: OidcSettings
    registry_target: str = Field(min_length=3, description="host:port of the registry's gRPC server")
    age_gate_s: float = Field(120, gt=0, le=1800, description="a press older than this starts no camera")
