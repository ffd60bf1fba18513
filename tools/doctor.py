"""`sightline doctor`: is everything around the services as they need it? A line each, with the fix."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from chassis.bus import Severity, client_config, topic_differences
from chassis.settings import KafkaSettings
from confluent_kafka import Consumer, ConsumerGroupState, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec  # type: ignore[attr-defined]
from contracts.topics import EMERGENCY_EVENT, REGISTRY_DUTY, TOPICS
from cryptography import x509
from psycopg.rows import dict_row

from tools.local.stack import WITH_TABLES, Stack, ails, serving

_WITHIN_S = 5
_EXPIRES_SOON, _CLOCK_OFF, _WAITS_LONG = timedelta(days=14), timedelta(seconds=1), timedelta(seconds=5)
_LANE_LAG = 100


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One line."""

    level: Level
    what: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Patient:
    """What is looked at; a part that is None is left out."""

    kafka: KafkaSettings | None
    database: str | None
    certificates: tuple[Path, ...] = ()
    stack: Stack | None = None
    # One broker and one database server are right for a laptop, and wrong where lives depend on them.
    laptop: bool = False


def examine(patient: Patient) -> Iterator[Finding]:
    """Everything, in the order in which one would mend it."""
    checks: list[tuple[str, Callable[[Patient], Iterator[Finding]]]] = [("certificates", _certificates)]
    if patient.kafka:
        checks += [("brokers", _brokers), ("topics", _topics), ("replication", _replication), ("lanes", _lanes), ("dead letters", _dlqs)]
    if patient.database:
        checks += [
            ("database", _database), ("durability", _durability), ("clock", _clock), ("waiting", _waiting), ("cameras", _cameras),
        ]  # fmt: skip
    if patient.stack:
        checks.append(("services", _services))
    for name, check in checks:
        try:
            yield from check(patient)
        except (KafkaException, TimeoutError) as error:
            yield Finding(Level.FAILURE, name, f"Kafka does not answer: {error}", "check SIGHTLINE_KAFKA_* and the brokers' own logs")
        except psycopg.OperationalError as error:
            text = str(error).strip().splitlines()[0]
            yield Finding(Level.FAILURE, name, f"PostgreSQL does not answer: {text}", "check SIGHTLINE_DATABASE_URL and the server's log")
        except psycopg.Error as error:
            yield Finding(Level.WARNING, name, f"not to be seen: {error}".strip(), "use a role that may read the services' schemas")


def _admin(patient: Patient) -> Any:
    assert patient.kafka  # noqa: S101 (examine asks only where there is one)
    return AdminClient(client_config(patient.kafka))


def _query(patient: Patient, query: LiteralString) -> list[dict[str, Any]]:
    with psycopg.connect(patient.database or "", connect_timeout=_WITHIN_S, autocommit=True, row_factory=dict_row) as connection:
        return connection.execute(query).fetchall()


def _certificates(patient: Patient) -> Iterator[Finding]:
    for path in patient.certificates:
        for certificate in x509.load_pem_x509_certificates(path.read_bytes()):
            left = certificate.not_valid_after_utc - datetime.now(UTC)
            name = certificate.subject.rfc4514_string()
            level = Level.FAILURE if left < timedelta(0) else Level.WARNING if left < _EXPIRES_SOON else Level.OK
            state = f"{name} expired {-left.days} days ago" if left < timedelta(0) else f"{name}: {left.days} days left"
            yield Finding(level, "certificate", state, "" if level == Level.OK else f"renew {path} and restart what uses it")


def _brokers(patient: Patient) -> Iterator[Finding]:
    brokers = _admin(patient).list_topics(timeout=_WITHIN_S).brokers
    enough = len(brokers) >= 3 or patient.laptop
    yield Finding(Level.OK if enough else Level.WARNING, "brokers", f"{len(brokers)} answer", "" if enough else "run at least three")


def _topics(patient: Patient) -> Iterator[Finding]:
    wanted = [each for topic in TOPICS for each in (topic, topic.dlq())]
    differences = list(topic_differences(_admin(patient), wanted))
    for severity, text in differences:
        found, _, fix = text.partition(": ")
        yield Finding(Level.WARNING if severity == Severity.MINOR else Level.FAILURE, "topic", found, fix)
    if not differences:
        yield Finding(Level.OK, "topics", f"all {len(wanted)} as in the table")


def _replication(patient: Patient) -> Iterator[Finding]:
    admin = _admin(patient)
    there = admin.list_topics(timeout=_WITHIN_S).topics
    names = [topic.name for topic in TOPICS if topic.name in there]
    asked = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, name) for name in names])
    in_sync = {resource.name: int(answer.result(_WITHIN_S)["min.insync.replicas"].value) for resource, answer in asked.items()}
    thin, behind = [], []
    for name in names:
        for partition in there[name].partitions.values():
            if len(partition.replicas) < 3 or in_sync[name] < 2:
                thin.append(name)
            if len(partition.isrs) < len(partition.replicas):
                behind.append(f"{name}/{partition.id}")
    if thin and not patient.laptop:
        fix = "give them replication factor 3 and min.insync.replicas 2, or a broker that dies takes events with it"
        yield Finding(Level.FAILURE, "replication", f"{len(set(thin))} topics have too few replicas", fix)
    if behind:
        yield Finding(Level.WARNING, "replication", f"{len(behind)} partitions have replicas that lag", "see which broker is down or slow")
    if not behind and not (thin and not patient.laptop):
        yield Finding(Level.OK, "replication", "one broker, as on any laptop" if thin else "3 replicas, all in sync")


def _lanes(patient: Patient) -> Iterator[Finding]:
    admin = _admin(patient)
    groups = [g.group_id for g in admin.list_consumer_groups().result(_WITHIN_S).valid if g.group_id.startswith("sightline-joiner-")]
    working = 0
    for group, answer in (admin.describe_consumer_groups(groups) if groups else {}).items():
        description = answer.result(_WITHIN_S)
        if description.state == ConsumerGroupState.EMPTY or not description.members:
            continue  # of an earlier generation, or down: the number of working lanes tells
        lag = _lag(admin, group)
        working += 1
        level = Level.OK if lag < _LANE_LAG else Level.WARNING
        yield Finding(
            level, f"lane {group.removeprefix('sightline-joiner-')}", f"{lag} records behind", "" if lag < _LANE_LAG else "see its log"
        )
    if working < 2:
        fix = "start two lanes (joiner.lanes: [a, b]): with one, its death delays cameras by a second"
        yield Finding(Level.FAILURE if not working else Level.WARNING, "lanes", f"{working} of 2 work", fix)


def _lag(admin: Any, group: str) -> int:
    """Records of the join's topics that a lane's group has not committed; it commits every few seconds."""
    asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
    committed = {(p.topic, p.partition): p.offset for p in asked[group].result(_WITHIN_S).topic_partitions}
    places = [TopicPartition(t.name, n) for t in (EMERGENCY_EVENT, REGISTRY_DUTY) for n in range(t.partitions)]
    ends = admin.list_offsets({place: OffsetSpec.latest() for place in places})  # type: ignore[no-untyped-call]
    behind = 0
    for place, answer in ends.items():
        offset = committed.get((place.topic, place.partition), -1)
        behind += max(0, answer.result(_WITHIN_S).offset - offset) if offset >= 0 else 0
    return behind


def _dlqs(patient: Patient) -> Iterator[Finding]:
    assert patient.kafka  # noqa: S101
    consumer = Consumer(client_config(patient.kafka) | {"group.id": "sightline-doctor"})
    there = _admin(patient).list_topics(timeout=_WITHIN_S).topics
    try:
        full = False
        for dlq in (topic.dlq() for topic in TOPICS if topic.dlq().name in there):
            low, high = consumer.get_watermark_offsets(TopicPartition(dlq.name, 0), timeout=_WITHIN_S)
            if high > low:
                full = True
                fix = "read dlq_error in their headers; what was ours to mend can be published again"
                yield Finding(Level.WARNING, dlq.name, f"{high - low} records", fix)
        if not full:
            yield Finding(Level.OK, "dead letters", "none")
    finally:
        consumer.close()


def _database(patient: Patient) -> Iterator[Finding]:
    there = {row["nspname"] for row in _query(patient, "SELECT nspname FROM pg_namespace")}
    missing = [name for name in WITH_TABLES if name not in there]
    if missing:
        yield Finding(Level.FAILURE, "schemas", f"missing: {', '.join(missing)}", "run `python -m services.<name> migrate` for each")
    else:
        yield Finding(Level.OK, "database", f"answers; schemas {', '.join(WITH_TABLES)}")


def _durability(patient: Patient) -> Iterator[Finding]:
    names = "('fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names')"
    settings = {row["name"]: row["setting"] for row in _query(patient, f"SELECT name, setting FROM pg_settings WHERE name IN {names}")}
    for name in ("fsync", "full_page_writes"):
        if settings[name] != "on":
            yield Finding(
                Level.FAILURE, "durability", f"{name} is {settings[name]}", f"set {name} = on: an accepted press must survive a power cut"
            )
    if settings["synchronous_commit"] in ("off", "local") and not patient.laptop:
        yield Finding(Level.FAILURE, "durability", f"synchronous_commit is {settings['synchronous_commit']}", "set synchronous_commit = on")
    elif settings["synchronous_commit"] == "off":
        yield Finding(Level.FAILURE, "durability", "synchronous_commit is off", "set synchronous_commit = on")
    if settings["synchronous_standby_names"] or patient.laptop:
        yield Finding(Level.OK, "durability", settings["synchronous_standby_names"] or "fsync on; one server, as on any laptop")
    else:
        fix = "set synchronous_standby_names = 'ANY 1 (standby1, standby2)': else a dead server takes accepted presses with it"
        yield Finding(Level.FAILURE, "durability", "no synchronous standby", fix)


def _clock(patient: Patient) -> Iterator[Finding]:
    before = datetime.now(UTC)
    there = _query(patient, "SELECT clock_timestamp() AS now")[0]["now"]
    after = datetime.now(UTC)
    off = max(timedelta(0), before - there, there - after)
    level = Level.OK if off < _CLOCK_OFF else Level.FAILURE
    found = f"{off.total_seconds():.3f} s between this machine and the database"
    yield Finding(level, "clock", found, "" if level == Level.OK else "run an NTP client on both; age gates compare their clocks")


def _waiting(patient: Patient) -> Iterator[Finding]:
    """Events and audit records that were committed and have not been published."""
    for schema in WITH_TABLES:
        for table, what in (("outbox", "events"), ("audit_record", "audit records")):
            query: Any = (
                f"SELECT count(*) AS n, coalesce(clock_timestamp() - min(created_at), '0 s') AS age FROM {schema}.{table}"
                " WHERE published_at IS NULL AND created_at < clock_timestamp() - interval '1 s'"
            )
            row = _query(patient, query)[0]
            if row["age"] > _WAITS_LONG:
                found = f"{row['n']} wait, the oldest for {row['age'].total_seconds():.0f} s"
                yield Finding(Level.WARNING, f"{schema} {what}", found, f"see whether {schema} runs and reaches the brokers")
                return
    yield Finding(Level.OK, "waiting", "nothing committed waits to be published")


def _cameras(patient: Patient) -> Iterator[Finding]:
    """What cameras report that cannot be right: a fault of theirs, or a newer firmware than ours knows."""
    rows = _query(
        patient,
        "SELECT field, count(DISTINCT (agency_id, camera_id)) AS cameras, count(*) AS times, min(value) AS value FROM streams.camera_fault"
        " GROUP BY field ORDER BY cameras DESC LIMIT 5",
    )
    for row in rows:
        found = f"{row['field']} of {row['cameras']} cameras cannot be right, like {row['value']!r}"
        yield Finding(Level.WARNING, "camera reports", found, "left out and shown with the camera; tell its maker, or update Sightline")
    if not rows:
        yield Finding(Level.OK, "camera reports", "nothing in them that cannot be right")


def _services(patient: Patient) -> Iterator[Finding]:
    assert patient.stack  # noqa: S101
    down = [name for name in patient.stack.health if not serving(patient.stack, name)]
    for name in down:
        yield Finding(Level.FAILURE, name, "does not serve", f"see {patient.stack.data}/logs/{name}.log")
    ailing = {name: parts for name in patient.stack.health if name not in down and (parts := ails(patient.stack, name))}
    fixes = {"clock": "run an NTP client on every machine", "topics": "see `topic` above, and the service's log"}
    for name, parts in ailing.items():
        yield Finding(Level.FAILURE, name, f"serves, but not its {' and '.join(parts)}", "; ".join(fixes[part] for part in parts))
    if not down and not ailing:
        yield Finding(Level.OK, "services", f"all {len(patient.stack.health)} serve")
