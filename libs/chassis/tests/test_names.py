"""Ids and names that are none are told from those that are."""

from uuid import UUID

import pytest
from chassis.names import are_names, is_uuid
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils import uuid7


@given(st.uuids())
def test_every_uuid_is_one_as_it_is_written(uuid: UUID) -> None:
    assert is_uuid(str(uuid))
    assert is_uuid(str(uuid7()))
    assert not is_uuid(uuid.hex)
    assert is_uuid(str(uuid).upper()) == (str(uuid) == str(uuid).upper())


@pytest.mark.parametrize("text", ["", "x", "lost+found", f"{uuid7()}\n", f"{{{uuid7()}}}", f"urn:uuid:{uuid7()}", "\0" * 36])
def test_what_is_no_uuid(text: str) -> None:
    assert not is_uuid(text)


def test_names_are_not_empty_not_long_and_without_nul() -> None:
    assert are_names("pd", "x" * 63)
    for bad in ("", "x" * 64, "a\0b"):
        assert not are_names("pd", bad)
