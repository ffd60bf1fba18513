"""The tables agree with the schemas."""

import importlib
import re
from pathlib import Path

import sightline
from contracts.callers import ALLOWED
from contracts.topics import EMERGENCY_EVENT, REGISTRY_DUTY, TOPICS, radio_key
from sightline.common.v1.radio_pb2 import RadioIdentity

_GENERATED = Path(sightline.__path__[0])
_MODULES = [
    importlib.import_module(".".join(("sightline", *path.relative_to(_GENERATED).with_suffix("").parts)))
    for path in sorted(_GENERATED.rglob("*_service_pb2.py"))
]


def test_every_method_has_its_allowed_callers_and_nothing_else_is_listed() -> None:
    methods = {
        f"/{service.full_name}/{method.name}"
        for module in _MODULES
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
