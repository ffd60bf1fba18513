"""Settings of the evidence service."""

from chassis.settings import DatabaseSettings, KafkaSettings, OidcSettings, RpcSettings, ServiceSettings
from pydantic import Field


class EvidenceSettings(ServiceSettings):
    """What the evidence service reads from the environment."""

    database: DatabaseSettings
    kafka: KafkaSettings
    rpc: RpcSettings
    oidc: OidcSettings
    retention_days: int = Field(
        31, ge=1, le=36_500, description="days that recordings are kept from their last piece on, unless their agency says"
    )
    grace_days: int = Field(7, ge=1, le=365, description="days between the mark for deletion and the deletion")
    sweep_s: float = Field(60, gt=0, le=3600, description="seconds between two looks at what is due")
