"""Identity decides, the rest is taken: of messages that a life hangs on, what breaks a rule of the schema is left out and named.

Refused is only what keeps us from knowing who sent it or whom it is about.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import Any

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from chassis.errors import InvalidRequest

# Leaving out one thing may make another one wrong; a schema is not deeper than this.
_ROUNDS = 8
_VALUE = 64  # characters of a value at the most


def violations(message: Message) -> Mapping[str, str]:
    """What breaks a rule of the schema, in words by the path of the field."""
    return {path_of(each): each.proto.message or each.proto.rule_id for each in protovalidate.collect_violations(message)}


def path_of(violation: Any) -> str:
    """`position.latitude`, or `handled[3].epoch`; empty for a rule of the whole message."""
    return ".".join(e.field_name + (f"[{e.subscript.value}]" if e.subscript else "") for e in _elements(violation))


def _elements(violation: Any) -> list[Any]:
    return list(violation.proto.field.elements) if violation.proto.field else []


def invalid(broken: Mapping[str, str]) -> InvalidRequest:
    """The refusal that names each field and rule."""
    text = "; ".join(f"{name or 'request'}: {what}" for name, what in broken.items())
    return InvalidRequest(Reason.ERROR_REASON_INVALID_FIELD, text, violations=broken)


def settle(message: Message, identity: Collection[str]) -> dict[str, str]:
    """Leave out what breaks a rule of the schema; returns its values, as text, by their paths. InvalidRequest if `identity` does.

    Out goes the smallest part that means something by itself: a value that may be absent, an entry of a list, else the message around it.
    """
    left_out: dict[str, str] = {}
    for _ in range(_ROUNDS):
        # What is not there at all is left out already.
        found = [v for v in protovalidate.collect_violations(message) if len(_elements(v)) != 1 or path_of(v) not in left_out]
        if not found:
            return left_out
        refused = {path_of(v): v.proto.message or v.proto.rule_id for v in found if _root(v) in ("", *identity)}
        if refused:
            raise invalid(refused)
        for violation in found:
            left_out.setdefault(path_of(violation), _as_text(list(_steps(message, _elements(violation)))[-1]))
        entries: dict[tuple[int, str], tuple[Message, str, set[int]]] = {}
        for violation in found:
            _leave_out(message, _elements(violation), entries)
        for owner, name, places in entries.values():
            values = getattr(owner, name)
            kept = [value for place, value in enumerate(values) if place not in places]
            del values[:]
            values.extend(kept)
    raise invalid(violations(message))


def with_text_repaired(parse: Callable[[bytes], Message], data: bytes) -> Message | None:
    """A message of whose strings some are not UTF-8, which no parser takes; U+FFFD stands for what is not. None if that is not all."""
    descriptor = parse(b"").DESCRIPTOR
    try:
        twin = _twin(descriptor).FromString(data)
        _repair(twin, descriptor)
        return parse(twin.SerializeToString())
    except DecodeError:
        return None


def _repair(twin: Message, descriptor: Any) -> None:
    for field, value in twin.ListFields():
        meant = descriptor.fields_by_number[field.number]
        values = value if field.is_repeated else [value]
        if meant.message_type and not meant.message_type.GetOptions().map_entry:
            for each in values:
                _repair(each, meant.message_type)
        elif meant.type == FieldDescriptor.TYPE_STRING:
            texts = [each.decode(errors="replace").encode() for each in values]
            if field.is_repeated:
                value[:] = texts
            else:
                setattr(twin, field.name, texts[0])


@cache
def _twin(descriptor: Descriptor) -> type[Message]:
    """The same message with bytes where there are strings: the same on the wire."""
    pool, done = DescriptorPool(), set[str]()

    def add(file: FileDescriptor) -> None:
        if file.name not in done:
            done.add(file.name)
            for needed in file.dependencies:
                add(needed)
            content = FileDescriptorProto.FromString(file.serialized_pb)
            for message in content.message_type:
                _strings_to_bytes(message)
            pool.Add(content)

    add(descriptor.file)
    return GetMessageClass(pool.FindMessageTypeByName(descriptor.full_name))


def _strings_to_bytes(message: DescriptorProto) -> None:
    if not message.options.map_entry:  # no map has keys of bytes
        for field in message.field:
            if field.type == FieldDescriptorProto.TYPE_STRING:
                field.type = FieldDescriptorProto.TYPE_BYTES
    for nested in message.nested_type:
        _strings_to_bytes(nested)


def _root(violation: Any) -> str:
    elements = _elements(violation)
    return elements[0].field_name if elements else ""


def _leave_out(message: Message, path: list[Any], entries: dict[tuple[int, str], tuple[Message, str, set[int]]]) -> None:
    """Clear the field at the end of the path, the message around it, or note the entry of a list that it is in."""
    steps = list(_steps(message, path))
    last, name, _ = steps[-1]
    if last.DESCRIPTOR.fields_by_name[name].enum_type and path[-1].subscript is None and getattr(last, name):
        last.ClearField(name)  # unspecified: not known, the most cautious value of every enum
        return
    while steps:
        last, name, place = steps.pop()
        if place is not None:
            entries.setdefault((id(last), name), (last, name, set()))[2].add(place)
            return
        if not steps or (last.DESCRIPTOR.fields_by_name[name].has_presence and last.HasField(name)):
            last.ClearField(name)
            return
        # Without its value the rest of the message would mean something else: a latitude of 0.


def _as_text(step: tuple[Any, str, int | None]) -> str:
    owner, name, place = step
    value = getattr(owner, name) if place is None else getattr(owner, name)[place]
    return "" if isinstance(value, Message) else re.sub(r"[^ -~]", "?", str(value))[:_VALUE]


def _steps(message: Message, path: list[Any]) -> Iterator[tuple[Any, str, int | None]]:
    """The message, the field and the place in a list at each step of a path."""
    owner: Any = message
    for element in path:
        place = element.subscript.value if element.subscript else None
        yield owner, element.field_name, place
        value = getattr(owner, element.field_name)
        owner = value[place] if place is not None else value
