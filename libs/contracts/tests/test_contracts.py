"""The tables agree with the schemas."""

import re

import sightline.audit.v1.audit_service_pb2
import sightline.emergency.v1.emergency_service_pb2
import sightline.evidence.v1.evidence_service_pb2
import sightline.evidence.v1.shelf_link_service_pb2
import sightline.registry.v1.registry_service_pb2
import sightline.streams.v1.camera_link_service_pb2
import sightline.streams.v1.relay_link_service_pb2
import sightline.streams.v1.session_service_pb2
import sightline.streams.v1.stream_service_pb2
from contracts.callers import ALLOWED
from contracts.topics import EMERGENCY_EVENT, REGISTRY_DUTY, TOPICS, radio_key
from sightline.common.v1.radio_pb2 import RadioIdentity

_SERVICES = (
    sightline.audit.v1.audit_service_pb2,
    sightline.emergency.v1.emergency_service_pb2,
    sightline.evidence.v1.evidence_service_pb2,
    sightline.evidence.v1.shelf_link_service_pb2,
    sightline.registry.v1.registry_service_pb2,
    sightline.streams.v1.camera_link_service_pb2,
    sightline.streams.v1.relay_link_service_pb2,
    sightline.streams.v1.session_service_pb2,
    sightline.streams.v1.stream_service_pb2,
)


def test_every_method_has_its_allowed_callers_and_nothing_else_is_listed() -> None:
    methods = {
        f"/{service.full_name}/{method.name}"
        for module in _SERVICES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(ALLOWED) == methods


def test_a_topics_major_is_its_packages_major() -> None:
    for topic in TOPICS:
        version = re.search(r"\.v(\d+)$", topic.name)
        assert version
        assert f".v{version[1]}." in topic.message.DESCRIPTOR.full_name


def test_the_joins_topics_are_cut_the_same_way() -> None:
    assert EMERGENCY_EVENT.partitions == REGISTRY_DUTY.partitions
    assert EMERGENCY_EVENT.key == REGISTRY_DUTY.key


def test_a_radios_key_is_unique_inside_its_system_only() -> None:
    keys = {radio_key(RadioIdentity(wacn=w, system_id=s, unit_id=u)) for w in (1, 17) for s in (1, 17) for u in (1, 17)}
    assert len(keys) == 8
