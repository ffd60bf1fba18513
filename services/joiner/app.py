"""The Faust app of one lane, from its settings. All that makes Faust safe here is in this file and in `agents`."""

import ssl
from pathlib import Path

import faust
from chassis.bus import MAX_PUBLISHED
from faust.auth import SASLCredentials

from services.joiner.settings import JoinerSettings


def build(settings: JoinerSettings) -> faust.App:
    """An app that shares nothing with other lanes: the id names its group, its table and its changelog.

    Never `exactly_once` (it duplicates and hangs), never the web server, no leader topic; a short session, because a
    lane that dies is replaced after it. What covers Faust's failures: docs/decisions/0002-faust-is-not-trusted-alone.md.
    """
    kafka, folder = settings.kafka, settings.data_dir / settings.lane
    folder.mkdir(parents=True, exist_ok=True)
    generation = _generation(settings)
    return faust.App(
        f"sightline-joiner-{settings.lane}" + (f"-{generation}" if generation else ""),
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
        topic_allow_declare=True,
        web_enabled=False,
    )


def start_over(settings: JoinerSettings) -> None:
    """Let the next process have a new id, and so a new group and a new table, which it fills from the source topics."""
    _generation_file(settings).write_text(str(_generation(settings) + 1))


def _generation(settings: JoinerSettings) -> int:
    file = _generation_file(settings)
    return int(file.read_text()) if file.exists() else 0


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
