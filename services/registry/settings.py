"""Settings of the registry."""

from chassis.settings import DatabaseSettings, KafkaSettings, OidcSettings, RpcSettings, ServiceSettings
from pydantic import Field


class RegistrySettings(ServiceSettings):
    """What the registry reads from the environment."""

    database: DatabaseSettings
    kafka: KafkaSettings
    rpc: RpcSettings
    oidc: OidcSettings
    trickle_s: float = Field(600, gt=0, le=3600, description="seconds in which every radio's duty record is published again")
