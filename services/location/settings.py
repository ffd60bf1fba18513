"""Settings of the location service."""

from chassis.settings import DatabaseSettings, KafkaSettings, OidcSettings, RpcSettings, ServiceSettings
from pydantic import Field


class LocationSettings(ServiceSettings):
    """What the location service reads from the environment."""

    database: DatabaseSettings
    kafka: KafkaSettings
    rpc: RpcSettings
    oidc: OidcSettings
    late_s: float = Field(7200, ge=60, le=7200, description="seconds that a fix may be old when it comes; the topics' retention bounds it")
    turn_s: float = Field(0.25, gt=0, le=10, description="seconds between two turns of the map, at least")
    flush_s: float = Field(5, gt=0, le=60, description="seconds after which the newest fixes are in PostgreSQL")
    sweep_s: float = Field(60, gt=0, le=3600, description="seconds between two looks at tracks that are due to be deleted")
