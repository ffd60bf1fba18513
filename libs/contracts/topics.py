"""Every topic of the system: the one place that names them. Docs, chart and broker are made from it or tested against it."""

from datetime import timedelta

from chassis.bus import Topic
from sightline.activation.v1.activation_pb2 import ActivationDecision, ActivationResult, DecisionRejection
from sightline.audit.v1.alert_pb2 import AlertEvent
from sightline.audit.v1.leaf_pb2 import AuditCheckpoint
from sightline.audit.v1.record_pb2 import AuditRecord
from sightline.common.v1.radio_pb2 import RadioIdentity
from sightline.emergency.v1.emergency_pb2 import EmergencyEvent
from sightline.evidence.v1.recording_pb2 import RecordingEvent
from sightline.location.v1.position_pb2 import Position, PositionReport
from sightline.media.v1.chain_pb2 import ChainHead
from sightline.media.v1.served_pb2 import ServedAccount
from sightline.registry.v1.device_pb2 import DeviceRecord
from sightline.registry.v1.duty_pb2 import DutyRecord
from sightline.streams.v1.session_pb2 import GrantEvent, SessionEvent
from sightline.streams.v1.stream_service_pb2 import CameraStatus

# The join needs both of its topics cut the same way; the number can never change without moving the topic.
RADIO_PARTITIONS = 12

REGISTRY_DUTY = Topic(
    "sightline.registry.duty.v1", DutyRecord, "radio identity", "registry", ("joiner", "streams", "location"),
    RADIO_PARTITIONS, timedelta(hours=2),
)  # fmt: skip
REGISTRY_DEVICE = Topic(
    "sightline.registry.device.v1", DeviceRecord, "agency, kind, id", "registry", ("location", "agencies"),
    1, timedelta(days=7), "compact",
)  # fmt: skip
EMERGENCY_EVENT = Topic(
    "sightline.emergency.event.v1", EmergencyEvent, "radio identity", "emergency",
    ("joiner", "streams", "evidence", "location", "agencies"),
    RADIO_PARTITIONS, timedelta(days=7),
)  # fmt: skip
ACTIVATION_DECISION = Topic(
    "sightline.activation.decision.v1", ActivationDecision, "radio identity", "joiner", ("streams",),
    RADIO_PARTITIONS, timedelta(days=7),
)  # fmt: skip
ACTIVATION_RESULT = Topic(
    "sightline.activation.result.v1", ActivationResult, "emergency id", "streams", ("emergency", "evidence"),
    RADIO_PARTITIONS, timedelta(days=7),
)  # fmt: skip
ACTIVATION_REJECTION = Topic(
    "sightline.activation.rejection.v1", DecisionRejection, "emergency id", "streams", ("operators",),
    RADIO_PARTITIONS, timedelta(days=7),
)  # fmt: skip
STREAM_SESSION = Topic(
    "sightline.stream.session.v1", SessionEvent, "session id", "streams", ("evidence", "location", "agencies"),
    RADIO_PARTITIONS, timedelta(days=7),
)  # fmt: skip
STREAM_CAMERA = Topic(
    "sightline.stream.camera.v1", CameraStatus, "agency, camera id", "streams", ("location", "agencies"),
    RADIO_PARTITIONS, timedelta(days=7), "compact",
)  # fmt: skip
STREAM_GRANT = Topic(
    "sightline.stream.grant.v1", GrantEvent, "session id", "streams", ("audit", "agencies"),
    RADIO_PARTITIONS, timedelta(days=7),
)  # fmt: skip
MEDIA_CHAIN = Topic(
    "sightline.media.chain.v1", ChainHead, "recording id", "relay", ("evidence", "agencies"),
    RADIO_PARTITIONS, timedelta(days=35),
)  # fmt: skip
MEDIA_SERVED = Topic(
    "sightline.media.served.v1", ServedAccount, "grant id", "relay", ("audit", "agencies"),
    RADIO_PARTITIONS, timedelta(days=7),
)  # fmt: skip
EVIDENCE_RECORDING = Topic(
    "sightline.evidence.recording.v1", RecordingEvent, "recording id", "evidence", ("agencies",),
    RADIO_PARTITIONS, timedelta(days=7),
)  # fmt: skip
# Positions are many: what a device told is of use for a short time, what was taken is history in PostgreSQL soon after.
LOCATION_REPORT = Topic(
    "sightline.location.report.v1", PositionReport, "device", "AVL systems", ("location",),
    RADIO_PARTITIONS, timedelta(hours=2),
)  # fmt: skip
LOCATION_POSITION = Topic(
    "sightline.location.position.v1", Position, "device", "location", ("location",),
    RADIO_PARTITIONS, timedelta(hours=2),
)  # fmt: skip
AUDIT_RECORD = Topic(
    "sightline.audit.record.v1", AuditRecord, "producer", "every service", ("audit",),
    6, timedelta(days=7),
)  # fmt: skip
AUDIT_CHECKPOINT = Topic(
    "sightline.audit.checkpoint.v1", AuditCheckpoint, "the log", "audit", ("agencies",),
    1, timedelta(days=365),
)  # fmt: skip
AUDIT_ALERT = Topic(
    "sightline.audit.alert.v1", AlertEvent, "alert id", "audit", ("agencies",),
    1, timedelta(days=35),
)  # fmt: skip

TOPICS = (
    REGISTRY_DUTY, REGISTRY_DEVICE, EMERGENCY_EVENT, ACTIVATION_DECISION, ACTIVATION_RESULT, ACTIVATION_REJECTION, STREAM_SESSION,
    STREAM_CAMERA, STREAM_GRANT, MEDIA_CHAIN, MEDIA_SERVED, EVIDENCE_RECORDING, LOCATION_REPORT, LOCATION_POSITION, AUDIT_RECORD,
    AUDIT_CHECKPOINT, AUDIT_ALERT,
)  # fmt: skip


def radio_key(radio: RadioIdentity) -> bytes:
    """Record key of a radio: `wacn-system-unit` in hexadecimal, as on a radio's own display."""
    return f"{radio.wacn:05x}-{radio.system_id:03x}-{radio.unit_id:06x}".encode()
