"""Settings of the audit service."""

from chassis.settings import DatabaseSettings, KafkaSettings, OidcSettings, RpcSettings, ServiceSettings
from pydantic import DirectoryPath, Field, FilePath


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
    checkpoint_dir: DirectoryPath = Field(
        description="folder that the newest checkpoint is copied to; a log that is behind it is not gone on with"
    )
