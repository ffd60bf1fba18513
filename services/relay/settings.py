"""Settings of the relay."""

from pathlib import Path
from typing import Self

from chassis.settings import KafkaSettings, RpcSettings, ServiceSettings
from pydantic import Field, FilePath, model_validator

_ADDRESS = r"^\S+:\d+$"


class RelaySettings(ServiceSettings):
    """What the relay reads from the environment. Its certificate serves cameras too."""

    kafka: KafkaSettings
    rpc: RpcSettings
    streams_target: str = Field(min_length=3, description="host:port of the streams service's gRPC server; all replicas are linked to")
    evidence_target: str = Field(min_length=3, description="host:port of the evidence service's gRPC server")
    retire_s: float = Field(600, gt=0, le=86_400, description="seconds between two questions what to delete")
    data_dir: Path = Field(description="folder for segments, on a disk of its own that outlives the process")
    reserve_mib: int = Field(1024, ge=1, description="with less free disk than this, in MiB, new sessions go to other relays")
    ingest_listen: str = Field("0.0.0.0:8444", pattern=_ADDRESS, description="host:port for cameras, mutual TLS")
    ingest_url: str = Field(pattern=r"^https://\S+$", max_length=300, description="where cameras reach this replica, and no other")
    view_listen: str = Field("0.0.0.0:8445", pattern=_ADDRESS, description="host:port for viewers' WebSockets")
    view_url: str = Field(pattern=r"^wss?://\S+$", max_length=300, description="where viewers reach this replica, and no other")
    view_cert_file: FilePath | None = Field(None, description="certificate chain for viewers, PEM; none: TLS ends before the relay")
    view_key_file: FilePath | None = Field(None, description="its private key, PEM")

    @model_validator(mode="after")
    def _viewers_come_by_tls(self) -> Self:
        if (self.view_cert_file is None) != (self.view_key_file is None):
            raise ValueError("SIGHTLINE_VIEW_CERT_FILE and SIGHTLINE_VIEW_KEY_FILE go together")
        if self.profile == "production" and not self.view_url.startswith("wss://"):
            raise ValueError("SIGHTLINE_VIEW_URL is not wss://; a token and pictures would go in the clear")
        return self
