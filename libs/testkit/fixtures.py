"""Fixtures of all tests. The servers and the stack are started once a session, and only if a test needs them."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from chassis import telemetry
from chassis.bus import Publisher
from chassis.db import Database, migrate
from chassis.settings import DatabaseSettings, KafkaSettings, TelemetrySettings

from testkit.backing import Backing, backing, make_database
from tools.local import stack as local
from tools.local.stack import ROOT, WITH_TABLES, Stack
from tools.topics import create_topics
from tools.world import World


@pytest.fixture(scope="session", name="backing")
def _backing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backing]:
    with backing(tmp_path_factory.mktemp("backing")) as servers:
        yield servers


@pytest.fixture(scope="session")
def kafka(backing: Backing) -> KafkaSettings:
    """A broker with all topics of the table."""
    settings = KafkaSettings(bootstrap=backing.kafka, security="PLAINTEXT")
    create_topics(settings, 1)
    return settings


@pytest.fixture(scope="session")
def databases(backing: Backing) -> DatabaseSettings:
    """A database of its own with every service's schema, for tests of stores; as superuser."""
    url = make_database(backing.database, "sightline_stores")
    for name in WITH_TABLES:
        _ensure_role(url, name)
        migrate(url, name, ROOT / "services" / name / "migrations")
    return DatabaseSettings(url=url)


def _ensure_role(url: str, name: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
            connection.execute(f"CREATE ROLE {name} LOGIN")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def publisher(kafka: KafkaSettings) -> AsyncIterator[Publisher]:
    """A publisher on the broker."""
    publisher = Publisher(kafka)
    yield publisher
    await publisher.close()


@pytest_asyncio.fixture(loop_scope="session")
async def database(request: pytest.FixtureRequest, databases: DatabaseSettings, publisher: Publisher) -> AsyncIterator[Database]:
    """The pool of the schema that the test's module names as SCHEMA."""
    database = Database(databases, request.module.SCHEMA, publisher)
    await database.open()
    yield database
    await database.close()


@pytest.fixture(scope="session")
def stack(backing: Backing, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole system on the session's servers, with a fast trickle."""
    os.environ |= {"SIGHTLINE_KAFKA_BOOTSTRAP": backing.kafka, "SIGHTLINE_DATABASE_URL": backing.database}
    data = Path(os.environ.get("SIGHTLINE_TEST_DATA") or tmp_path_factory.mktemp("stack"))
    stack = local.up(data, lambda text: None, extra=local.QUICK_PERIODS)
    yield stack
    local.down(data, lambda text: None)
    for name in ("SIGHTLINE_KAFKA_BOOTSTRAP", "SIGHTLINE_DATABASE_URL"):
        del os.environ[name]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(stack: Stack) -> AsyncIterator[World]:
    """People and things on the stack, shared by all stories; each story takes officers of its own."""
    telemetry.setup("simulator", "test", TelemetrySettings(otlp_endpoint=stack.otlp, log_level="error"))
    async with World(stack) as world:
        yield world
    telemetry.shutdown()
