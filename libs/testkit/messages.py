"""Messages as anybody may send them: strategies out of protobuf's own descriptors, wrong values and unknown fields included."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_F = FieldDescriptor
_EDGES_64 = (0, 1, -1, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 315_576_000_000, 253_402_300_800)
_SIGNED_64 = st.sampled_from(_EDGES_64) | st.integers(-(2**63), 2**63 - 1)
_UNSIGNED_64 = st.sampled_from((0, 1, 2**31, 2**32, 2**63, 2**64 - 1)) | st.integers(0, 2**64 - 1)
_SIGNED_32 = st.sampled_from((0, 1, 2, 3, 4, 5, 6, 7, -1, 2**31 - 1, -(2**31)))
_UNSIGNED_32 = st.sampled_from((0, 1, 50, 100, 101, 255, 65_535, 65_536, 310_000, 2**24, 2**31, 2**32 - 1))
_DOUBLE = st.sampled_from((0.0, -1.0, 52.1, 4.3, 90.0, 91.0, -181.0, 1e308)) | st.floats(allow_nan=True, allow_infinity=True)
_FLOAT = st.sampled_from((0.0, -1.0, 12.5, 9_999_999.0)) | st.floats(width=32, allow_nan=True, allow_infinity=True)
# Surrogates are no text; everything else may be in one.
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.uuids().map(str)
_VALUES: Mapping[int, st.SearchStrategy[Any]] = {
    _F.TYPE_DOUBLE: _DOUBLE, _F.TYPE_FLOAT: _FLOAT, _F.TYPE_INT64: _SIGNED_64, _F.TYPE_UINT64: _UNSIGNED_64, _F.TYPE_INT32: _SIGNED_32,
    _F.TYPE_UINT32: _UNSIGNED_32, _F.TYPE_BOOL: st.booleans(), _F.TYPE_STRING: _TEXT, _F.TYPE_BYTES: st.binary(max_size=200),
    _F.TYPE_ENUM: _SIGNED_32,
}  # fmt: skip


def messages(kind: type[Message], **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Any such messages, as bytes; `fixed` are fields that have to be right."""
    garbled = st.sampled_from([b"", b"", *_garbled(kind.DESCRIPTOR, fixed)])
    return st.builds(
        lambda message, *more: b"".join((message.SerializeToString(), *more)), _message(kind.DESCRIPTOR, fixed), garbled, _UNKNOWN
    )


def _garbled(descriptor: Any, fixed: Collection[str] = ()) -> Iterator[bytes]:
    """For each text of the message, and of those in it, one that is not UTF-8: such a message cannot be made, only sent."""
    for field in descriptor.fields:
        if field.name in fixed:
            continue
        if field.message_type:
            yield from (_delimited(field.number, inner) for inner in _garbled(field.message_type))
        elif field.type == _F.TYPE_STRING:
            yield _delimited(field.number, b"M\xfcller \xff\xfe")


def _delimited(number: int, content: bytes) -> bytes:
    """A length-delimited field, of less than 128 bytes."""
    tag = number << 3 | 2
    return (bytes([tag]) if tag < 0x80 else bytes([tag & 0x7F | 0x80, tag >> 7])) + bytes([len(content)]) + content


def _message(descriptor: Any, fixed: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    make = GetMessageClass(descriptor)
    names = {field.name: field for field in descriptor.fields if field.name not in fixed}
    optional = {name: _field(field) for name, field in names.items()}
    return st.fixed_dictionaries(dict(fixed), optional=optional).map(lambda values: _built(make, values))


def _built(make: Any, values: Mapping[str, Any]) -> Any:
    return make(**values)


def _field(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    one = _message(field.message_type, {}) if field.message_type else _VALUES[field.type]
    return st.lists(one, max_size=4) if field.is_repeated else one


def _unknown(number: int, content: bytes) -> bytes:
    """A field of a newer release: a length-delimited one of a number that nothing here has."""
    tag = number << 3 | 2
    return bytes([tag & 0x7F | 0x80, tag >> 7 & 0x7F | 0x80, tag >> 14]) + bytes([len(content)]) + content


_UNKNOWN = st.lists(st.builds(_unknown, st.integers(2048, 2**16), st.binary(max_size=100)), max_size=3).map(b"".join)
