"""Settings of the console."""

from typing import Self

from chassis.settings import RpcSettings, ServiceSettings
from pydantic import Field, FilePath, model_validator


class ConsoleSettings(ServiceSettings):
    """What the console reads from the environment."""

    rpc: RpcSettings
    streams_target: str = Field(min_length=3, description="host:port of the streams service's gRPC server")
    page_listen: str = Field("0.0.0.0:8446", pattern=r"^\S+:\d+$", description="host:port for browsers")
    page_cert_file: FilePath | None = Field(None, description="certificate chain for browsers, PEM; none: TLS ends before the console")
    page_key_file: FilePath | None = Field(None, description="its private key, PEM")
    view_sources: str = Field(
        pattern=r"^wss?://[^\s;,]+( wss?://[^\s;,]+)*$", description="relays that pages may connect to, as in CSP: wss://*.media.example"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.page_cert_file is None) != (self.page_key_file is None):
            raise ValueError("SIGHTLINE_PAGE_CERT_FILE and SIGHTLINE_PAGE_KEY_FILE go together")
        if self.profile == "production" and "ws://" in self.view_sources:
            raise ValueError("SIGHTLINE_VIEW_SOURCES has ws://; production needs wss://")
        return self
