"""The Faust app of one lane, from its settings. All that makes Faust safe here is in this file and in `agents`."""

import ssl
from pathlib import Path
from typing import Any

import aiokafka
import faust
from chassis.bus import MAX_PUBLISHED, client_config
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from contracts.topics import RADIO_PARTITIONS
from faust.auth import SASLCredentials

from services.joiner.settings import JoinerSettings
from services.joiner.tables import TABLE

_FETCH_WAIT_MS = 50


class _QuickConsumer(aiokafka.AIOKafkaConsumer):  # type: ignore[misc]
    """Faust lets a fetch wait 1.5 s at the broker, which no setting changes. A fetch leaves out the partitions that have
    records waiting to be handled, so news on those waited for the whole of it: presses stalled for a second (measured)."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings | {"fetch_max_wait_ms": _FETCH_WAIT_MS})


def build(settings: JoinerSettings) -> faust.App:
    """An app that shares nothing with other lanes: the id names its group, its table and its changelog.

    Never `exactly_once` (it duplicates and hangs), never the web server, no leader topic; a short session, because a
    lane that dies is replaced after it. What covers Faust's failures: docs/decisions/0002-faust-is-not-trusted-alone.md.
    """
    kafka, folder = settings.kafka, settings.data_dir / settings.lane
    folder.mkdir(parents=True, exist_ok=True)
    aiokafka.AIOKafkaConsumer = _QuickConsumer
    return faust.App(
        app_id(settings),
        broker=[f"kafka://{broker}" for broker in kafka.bootstrap.split(",")],
        broker_credentials=_credentials(settings),
        broker_session_timeout=6.0,
        broker_heartbeat_interval=2.0,
        broker_rebalance_timeout=10.0,
        broker_max_poll_records=100,
        consumer_auto_offset_reset="earliest",
        datadir=str(folder),
        processing_guarantee="at_least_once",
        producer_acks=-1,
        producer_linger_ms=0,
        producer_max_request_size=MAX_PUBLISHED,
        store="memory://",
        stream_wait_empty=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
    )


def declare_table(settings: JoinerSettings) -> None:
    """Create the table's changelog before Faust looks for it; KafkaException if the brokers do not.

    Faust would create it itself, with one replica, and now and then goes on before the topic is there: such a lane fails on
    every duty record until it is started again.
    """
    name = f"{app_id(settings)}-{TABLE}-changelog"
    admin = AdminClient(client_config(settings.kafka))
    answer = admin.create_topics([NewTopic(name, RADIO_PARTITIONS, config={"cleanup.policy": "compact"})], operation_timeout=10)[name]
    try:
        answer.result(timeout=15)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
    if len(admin.list_topics(name, timeout=5).topics[name].partitions) != RADIO_PARTITIONS:
        raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))


def app_id(settings: JoinerSettings) -> str:
    """Name of the lane's Faust app, its group, its table."""
    generation = _generation(settings)
    return f"sightline-joiner-{settings.lane}" + (f"-{generation}" if generation else "")


def start_over(settings: JoinerSettings) -> None:
    """Let the next process have a new id, and so a new group and a new table, which it fills from the source topics."""
    new = _generation_file(settings).with_suffix(".new")
    new.write_text(str(_generation(settings) + 1))
    new.replace(_generation_file(settings))


def _generation(settings: JoinerSettings) -> int:
    file = _generation_file(settings)
    text = file.read_text() if file.exists() else ""
    return int(text) if text.isdigit() else 0


def _generation_file(settings: JoinerSettings) -> Path:
    return settings.data_dir / settings.lane / "generation"


def _credentials(settings: JoinerSettings) -> SASLCredentials | faust.auth.SSLCredentials | None:
    kafka = settings.kafka
    if kafka.security == "PLAINTEXT":
        return None
    context = ssl.create_default_context(cafile=str(kafka.ca_file) if kafka.ca_file else None)
    if kafka.security == "SSL":
        return faust.auth.SSLCredentials(context=context)
    password = kafka.password_file.read_text().strip() if kafka.password_file else ""
    return SASLCredentials(username=kafka.username, password=password, ssl_context=context, mechanism="SCRAM-SHA-512")
