"""Settings of the audit service."""

from typing import Self

from chassis.settings import Block, DatabaseSettings, KafkaSettings, OidcSettings, RpcSettings, ServiceSettings
from pydantic import DirectoryPath, Field, FilePath, model_validator
from tlog.note import COSIGNATURE, Verifier


class WitnessSettings(Block):
    """Somebody who cosigns checkpoints."""

    url: str = Field(pattern=r"^https?://[^\s?#]+$", description="what `/add-checkpoint` is appended to")
    key: str = Field(description="the witness's public key, as it shows it")

    @property
    def verifier(self) -> Verifier:
        """The key, read."""
        return Verifier.parse(self.key)

    @model_validator(mode="after")
    def _is_key(self) -> Self:
        if self.verifier.kind != COSIGNATURE:
            raise ValueError(f"{self.key} signs logs, not what it has witnessed")
        return self


class AuditSettings(ServiceSettings):
    """What the audit service reads from the environment. Keys and copies of checkpoints lie outside the database."""

    database: DatabaseSettings
    kafka: KafkaSettings
    rpc: RpcSettings
    oidc: OidcSettings
    origin: str = Field(
        min_length=3, max_length=200, pattern=r"^[^\s+]+$", description="the log's name in checkpoints, like police.example/audit"
    )
    signing_key_file: FilePath = Field(description="Ed25519 private key that signs checkpoints, PEM")
    master_key_file: FilePath = Field(description="32 bytes as base64: the key of the keys that personal parts are encrypted with")
    witnesses: tuple[WitnessSettings, ...] = Field(
        (), max_length=10, description='who cosigns, as JSON: [{"url": "https://…", "key": "name+id+key"}]'
    )
    recheck_s: float = Field(60, gt=0, le=86_400, description="rest between two readings of the whole log, in seconds")
    judge_s: float = Field(30, gt=0, le=3600, description="rest between two applications of the rules of oversight, in seconds")
    settled_s: float = Field(
        60, gt=0, le=3600, description="how long accounts may differ, and a number may be missing, before it is an alert, in seconds"
    )
    silence_s: float = Field(900, gt=0, le=86_400, description="how long a producer may say nothing before it is an alert, in seconds")
    checkpoint_dir: DirectoryPath = Field(
        description="folder that the newest checkpoint is copied to; a log that is behind it is not gone on with"
    )
