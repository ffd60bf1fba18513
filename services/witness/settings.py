"""Settings of the witness."""

from typing import Self

from chassis.settings import ServiceSettings
from pydantic import DirectoryPath, Field, FilePath, model_validator


class WitnessSettings(ServiceSettings):
    """What the witness reads from the environment. It belongs to somebody else than the log: it shares nothing with it but its address."""

    name: str = Field(min_length=3, max_length=200, pattern=r"^[^\s+]+$", description="its name in notes: council.example/witness")
    key_file: FilePath = Field(description="Ed25519 private key, PEM; a key that nothing else signs with")
    logs_file: FilePath = Field(description="public keys of the logs that it looks after, one a line, as `GetLog` shows them")
    state_dir: DirectoryPath = Field(description="folder for the newest checkpoint of each log; whoever loses it signs everything again")
    listen: str = Field("0.0.0.0:8447", pattern=r"^\S+:\d+$", description="host:port for logs")
    cert_file: FilePath | None = Field(None, description="certificate chain, PEM; none: TLS ends before the witness, or there is none")
    private_key_file: FilePath | None = Field(None, description="the certificate's private key, PEM")
    health_listen: str = Field("0.0.0.0:8448", pattern=r"^\S+:\d+$", description="host:port of grpc.health.v1, in the clear")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.cert_file is None) != (self.private_key_file is None):
            raise ValueError("SIGHTLINE_CERT_FILE and SIGHTLINE_PRIVATE_KEY_FILE go together")
        return self
