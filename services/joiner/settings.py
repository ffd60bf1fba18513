"""Settings of a joiner lane."""

from pathlib import Path

from chassis.settings import KafkaSettings, ServiceSettings
from pydantic import Field


class JoinerSettings(ServiceSettings):
    """What a lane reads from the environment."""

    kafka: KafkaSettings
    lane: str = Field("a", pattern=r"^[a-z]{1,10}$", description="name of this lane; lanes share nothing, each has all the data")
    health_listen: str = Field("0.0.0.0:8080", pattern=r"^\S+:\d+$", description="host:port of the plain health server")
    data_dir: Path = Field(description="folder for Faust's own files; may be lost at any time")
    stall_s: float = Field(30, gt=0, le=600, description="a lane that has not moved for so long although there is more ends itself")
    recovery_s: float = Field(120, gt=0, le=3600, description="a table that takes longer to recover is read anew from its source")
    trickle_s: float = Field(600, gt=0, le=3600, description="the registry's trickle period; a duty partition is fresh within two")
