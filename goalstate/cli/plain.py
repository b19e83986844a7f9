"""Protobuf messages as plain JSON values, and on one line for people.

Unlike protobuf's own JSON form, numbers of 64 bits are numbers here, all fields are there (also
those that are zero), and names are as in the .proto files: what a script wants to read.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def plain(message: Message) -> dict[str, Any]:
    """All fields of a message; enums by lower-case name, bytes in hexadecimal."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def brief(
    message: Message, told: frozenset[str] = frozenset(), silent: frozenset[str] = frozenset()
) -> str:
    """A message on one line, as `name=value`, without what is empty.

    Also without its fields of `told`, and those of `silent` at any depth. Enums are shown where
    they are zero as well: that is a value like the others (EGRESS, TCP), which protobuf's own text
    leaves out.
    """
    values = plain(message)
    return _brief({name: value for name, value in values.items() if name not in told}, silent)


def _brief(values: dict[str, Any], silent: frozenset[str]) -> str:
    return " ".join(
        f"{name}={_brief_value(value, silent)}"
        for name, value in values.items()
        if name not in silent and value not in ("", 0, None, [], {})
    )


def _brief_value(value: Any, silent: frozenset[str]) -> str:
    if isinstance(value, dict):
        return f"{{{_brief(value, silent)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_brief_value(item, silent) for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        of = entry.fields_by_name["value"]
        return {str(key): _value(of, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_value(field, item) for item in value]
    if entry is not None and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return plain(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        known = field.enum_type.values_by_number.get(value)
        return known.name.lower() if known is not None else value
    if field.type == FieldDescriptor.TYPE_BYTES:
        return value.hex()
    return value
