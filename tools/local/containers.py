"""Kafka and PostgreSQL as containers, by the project's docker-compose.yml, where an engine answers."""

import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

from tools.local.process import free_ports

_COMPOSE = Path(__file__).resolve().parents[2] / "docker-compose.yml"
_PASSWORD = "laptop"  # noqa: S105 (of a throw-away container on loopback)


def engine_answers() -> bool:
    """Whether a container engine with compose can be talked to."""
    if os.environ.get("SIGHTLINE_BACKING") == "packages" or shutil.which("docker") is None:
        return False
    try:
        info = subprocess.run(["docker", "info"], capture_output=True, timeout=5, check=False)
        compose = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return False
    return info.returncode == 0 and compose.returncode == 0


def start(data: Path) -> tuple[str, str] | None:
    """Start both and wait until they are healthy; broker address and superuser URL, or None if it did not work."""
    kafka, postgres = free_ports(2)
    environment = {"SIGHTLINE_KAFKA_PORT": str(kafka), "SIGHTLINE_POSTGRES_PORT": str(postgres), "POSTGRES_PASSWORD": _PASSWORD}
    command = [*_compose(data), "up", "--detach", "--wait", "kafka", "postgres"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, timeout=300, check=False)
    if done.returncode != 0:
        print(done.stderr.decode(errors="replace"))
        stop(data)
        return None
    return f"127.0.0.1:{kafka}", f"postgresql://postgres:{_PASSWORD}@127.0.0.1:{postgres}/postgres"


def stop(data: Path) -> None:
    """Remove the containers and their volumes."""
    subprocess.run([*_compose(data), "down", "--volumes"], capture_output=True, timeout=120, check=False)


def _compose(data: Path) -> list[str]:
    return [
        "docker",
        "compose",
        "--file",
        str(_COMPOSE),
        "--project-name",
        f"sightline-{sha256(str(data.resolve()).encode()).hexdigest()[:8]}",
    ]
