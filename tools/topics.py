"""Creates the topics of the table on a broker."""

from chassis.bus import client_config
from chassis.settings import KafkaSettings
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from contracts.topics import TOPICS


def create_topics(settings: KafkaSettings, replication: int) -> list[str]:
    """Create what is missing, dead-letter topics included; returns the new names. What exists is left alone."""
    wanted = [each for topic in TOPICS for each in (topic, topic.dlq())]
    durable = {"min.insync.replicas": str(max(1, replication - 1))}
    new = [NewTopic(t.name, t.partitions, replication, config=t.config() | durable) for t in wanted]
    created = []
    admin = AdminClient(client_config(settings))
    for name, answer in admin.create_topics(new, operation_timeout=20).items():
        try:
            answer.result(timeout=30)
            created.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    return created
