"""The one place that chooses what tests run against: given servers, else containers, else packages. Always real ones."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tools.local import containers
from tools.local.packages import Kafka, Postgres
from tools.local.process import free_ports, stop, wait_for


@dataclass(frozen=True)
class Backing:
    """A broker and a database server; `database` is the superuser's URL."""

    kafka: str
    database: str
    kind: str


@contextmanager
def backing(folder: Path) -> Iterator[Backing]:
    """Start a Kafka broker and a PostgreSQL server for a test session."""
    given = os.environ.get("SIGHTLINE_KAFKA_BOOTSTRAP"), os.environ.get("SIGHTLINE_DATABASE_URL")
    if given[0] and given[1]:
        yield Backing(given[0], given[1], "given")
        return
    with ExitStack() as stack:
        start = _containers if containers.engine_answers() else _packages
        yield start(folder, stack)


def _containers(folder: Path, stack: ExitStack) -> Backing:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy
    from testcontainers.postgres import PostgresContainer

    port = free_ports(1)[0]
    settings = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": f"PLAINTEXT://:{port},CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
    }
    kafka = DockerContainer("apache/kafka:4.2.0").with_bind_ports(port, port).waiting_for(LogMessageWaitStrategy("Kafka Server started"))
    for name, value in settings.items():
        kafka.with_env(name, value)
    stack.enter_context(kafka)
    postgres = stack.enter_context(PostgresContainer("postgres:18", driver=None))
    return Backing(f"127.0.0.1:{port}", postgres.get_connection_url(), "containers")


def _packages(folder: Path, stack: ExitStack) -> Backing:
    kafka, postgres = Kafka(folder / "kafka"), Postgres(folder / "postgres")
    stack.callback(postgres.purge)
    stack.callback(stop, [postgres.start()], Postgres.stop_signal)
    stack.callback(stop, [kafka.start(folder / "logs")])
    wait_for("PostgreSQL", postgres.ready)
    wait_for("Kafka", kafka.ready)
    return Backing(kafka.bootstrap, postgres.admin_url, "packages")


def make_database(server: str, name: str) -> str:
    """A fresh database on a server; returns its URL for the superuser."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}"')
    base, _, _ = server.rpartition("/")
    return f"{base}/{name}"
