"""What everybody wrote down: the journals, PostgreSQL, the topics. Collected after a trial, by clients of its own."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, TopicPartition
from contracts.topics import ACTIVATION_DECISION, ACTIVATION_RESULT, AUDIT_RECORD, EMERGENCY_EVENT, TOPICS
from psycopg.rows import dict_row
from sightline.activation.v1.activation_pb2 import ActivationDecision, ActivationResult
from sightline.audit.v1.record_pb2 import AuditRecord
from sightline.emergency.v1.emergency_pb2 import Emergency, EmergencyEvent

from testkit.trial.journal import read
from tools.local.stack import WITH_TABLES

Row = dict[str, Any]


@dataclass
class Evidence:
    """All of one agency's trial."""

    presses: list[Row]  # journal: intended, sent, answered, cleared
    cameras: list[Row]  # journal: start
    rows: Mapping[str, list[Row]]  # PostgreSQL: press, emergency, shown, decision, activation
    events: list[Emergency]
    decisions: list[ActivationDecision]
    results: list[ActivationResult]
    audit: list[AuditRecord]  # of all agencies: the numbers are the producers'
    dead_letters: list[tuple[str, bytes]] = field(default_factory=list)
    unread: int = 0  # records of these topics that are no messages at all


_QUERIES = {
    "emergency": "SELECT emergency_id::text, radio, is_open, version, document FROM emergency.emergency WHERE agency_id = %s",
    "press": "SELECT p.request_id, p.emergency_id::text, p.version, p.outcome FROM emergency.press p"
    " JOIN emergency.emergency USING (emergency_id) WHERE agency_id = %s",
    "shown": "SELECT a.emergency_id::text, a.epoch, a.camera_id, a.version FROM emergency.activation a"
    " JOIN emergency.emergency USING (emergency_id) WHERE agency_id = %s",
    "decision": "SELECT emergency_id::text, epoch, content, decided_by FROM streams.decision WHERE agency_id = %s",
    "activation": "SELECT emergency_id::text, epoch, camera_id, version, officer_id, state, ordered_at FROM streams.activation"
    " WHERE agency_id = %s",
    "rejected": "SELECT r.emergency_id::text, r.epoch, r.decided_by, r.why FROM streams.rejected_decision r"
    " JOIN streams.known_emergency USING (emergency_id) WHERE agency_id = %s",
}


def waiting(database: str) -> dict[str, int]:
    """Events and audit records that have not been published yet, by schema."""
    found = {}
    with psycopg.connect(database, autocommit=True) as connection:
        for schema in WITH_TABLES:
            for table in ("outbox", "audit_record"):
                query = f"SELECT count(*) FROM {schema}.{table} WHERE published_at IS NULL"
                row = connection.execute(query).fetchone()
                found[f"{schema}.{table}"] = int(row[0]) if row else 0
    return found


def deadlocks(database: str) -> int:
    """Deadlocks that the server has had to end; each costs a second, and means that two transactions lock in different orders."""
    with psycopg.connect(database, autocommit=True) as connection:
        row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
        return int(row[0]) if row else 0


def unfinished(database: str, agency_id: str) -> int:
    """Activations without any outcome, or with one that is not shown yet."""
    with psycopg.connect(database, autocommit=True) as connection:
        query = (
            "SELECT count(*) FROM streams.activation a LEFT JOIN emergency.activation s USING (emergency_id, epoch, camera_id)"
            " WHERE a.agency_id = %s AND (a.state = 'REQUESTED' OR s.version IS DISTINCT FROM a.version)"
        )
        row = connection.execute(query, [agency_id]).fetchone()
        return int(row[0]) if row else 0


async def collect(kafka: str, database: str, agency_id: str, folder: Path) -> Evidence:
    """Read everything; takes a few seconds."""
    return await asyncio.to_thread(_collect, kafka, database, agency_id, folder)


def _collect(kafka: str, database: str, agency_id: str, folder: Path) -> Evidence:
    rows: dict[str, list[Row]] = {}
    with psycopg.connect(database, autocommit=True, row_factory=dict_row) as connection:
        for name, query in _QUERIES.items():
            rows[name] = connection.execute(query, [agency_id]).fetchall()
    records = _read_topics(kafka, [each.name for topic in TOPICS for each in (topic, topic.dlq())])
    found = Evidence(list(read(folder / "presses.jsonl")), list(read(folder / "cameras.jsonl")), rows, [], [], [], [])

    def parse(topic: str, kind: Callable[[bytes], Any], agency: Callable[[Any], str | None], into: list[Any]) -> None:
        for value in records[topic]:
            try:
                message = kind(value)
            except Exception:
                found.unread += 1
                continue
            if agency(message) in (None, agency_id):
                into.append(message)

    parse(EMERGENCY_EVENT.name, lambda v: EmergencyEvent.FromString(v).emergency, lambda m: str(m.agency_id), found.events)
    parse(ACTIVATION_DECISION.name, ActivationDecision.FromString, lambda m: str(m.agency_id), found.decisions)
    parse(ACTIVATION_RESULT.name, ActivationResult.FromString, lambda m: str(m.agency_id), found.results)
    parse(AUDIT_RECORD.name, AuditRecord.FromString, lambda m: None, found.audit)
    found.dead_letters = [(topic, value) for topic, values in records.items() if topic.endswith(".dlq") for value in values]
    return found


def _read_topics(kafka: str, topics: Sequence[str]) -> dict[str, list[bytes]]:
    """All values of some topics, from their beginning to their present end."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "trial", "enable.auto.commit": False, "isolation.level": "read_committed"})
    found: dict[str, list[bytes]] = defaultdict(list)
    try:
        ends: dict[tuple[str, int], int] = {}
        for topic in topics:
            for number in consumer.list_topics(topic, timeout=30).topics[topic].partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
                if high > low:
                    ends[topic, number] = high
        consumer.assign([TopicPartition(topic, number, 0) for topic, number in ends])
        while ends:
            for message in consumer.consume(5000, 0.2):
                if message.error() is None:
                    found[message.topic() or ""].append(message.value() or b"")
            for place in consumer.position([TopicPartition(*place) for place in ends]):
                if place.offset >= ends[place.topic, place.partition]:
                    del ends[place.topic, place.partition]
    finally:
        consumer.close()
    return found
