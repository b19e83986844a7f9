"""Protobuf messages as YAML text (and so as JSON text), with errors that say where.

A mapping is a message, with the keys of its fields; a sequence is a repeated field. The schema
decides what a scalar is, not YAML: an unquoted 02:00:00:00:00:01 in a field for text is that text,
although YAML 1.1 reads a number there. Laws:

1.  Nothing is ignored: an unknown key, a key given twice, or a value of another type is an error
    with its line and path. All of a text's are told at once; what is no YAML ends the search.
2.  What `dump` writes, `parse` reads back as an equal message.
3.  An empty value (`ports:` with nothing after it, or null) is a field that is not given.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import yaml
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from goalstate.gs.errors import IntentSyntaxError

M = TypeVar("M", bound=Message)

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

#: Levels of nesting; no message here comes near.
_MAX_DEPTH = 32

# An escape counts only after an even number of backslashes.
_PAIR = re.compile(
    r"((?<!\\)(?:\\\\)*)(\\u[dD][89abAB][0-9a-fA-F]{2})(\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)

_MERGE = "tag:yaml.org,2002:merge"
_NULL = "tag:yaml.org,2002:null"
_BOOL = "tag:yaml.org,2002:bool"
_TRUE = frozenset({"true", "yes", "on"})
_INTEGERS = {
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
}


class _Loader(_SafeLoader):  # type: ignore[misc]
    """Bounds the nesting: the loader in C recurses, and overruns the stack of the process.

    The two methods are called around each node; what they do otherwise is of no use here.
    """

    _depth = 0

    def descend_resolver(self, current_node: Any, _index: Any) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                None, None, "this is nested too deeply", current_node.start_mark
            )

    def ascend_resolver(self) -> None:
        self._depth -= 1


def parse(text: str, source: str, type_: type[M]) -> list[M]:
    """The messages in a text, one for each YAML document that is not empty.

    `source` names the text in errors. Raises IntentSyntaxError, with all errors that were found.
    """
    messages = []
    errors: list[IntentSyntaxError] = []
    loader = None
    try:
        loader = _Loader(_joined(text) if text.lstrip()[:1] in ("{", "[") else text)
        while loader.check_node():
            node = loader.get_node()
            if _is_null(node):
                continue
            message = type_()
            errors += _Reader(source, loader).document(message, node)
            messages.append(message)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        errors.append(IntentSyntaxError(source, line, "", f"this is no YAML: {problem}"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = f"the character {error.character!r} is not allowed in YAML"
        errors.append(IntentSyntaxError(source, line, "", reason))
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        errors.append(IntentSyntaxError(source, line, "", "this is no Unicode text"))
    finally:
        if loader is not None:
            loader.dispose()
    if errors:
        first, *others = errors
        raise IntentSyntaxError(source, first.line, first.path, first.reason, others)
    return messages


def dump(message: Message) -> str:
    """The message as a YAML document; fields that have their default are left out."""
    text: str = yaml.dump(
        _plain(message), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return text


def _joined(json: str) -> str:
    """JSON writes a character beyond the basic plane as two escapes, which YAML refuses."""
    return _PAIR.sub(
        lambda m: (
            m[1]
            + (m[2] + m[3])
            .encode()
            .decode("unicode_escape")
            .encode("utf-16", "surrogatepass")
            .decode("utf-16")
        ),
        json,
    )


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for field, value in message.ListFields():
        if _is_map(field):
            plain[field.name] = {key: value[key] for key in sorted(value)}
        elif field.is_repeated:
            plain[field.name] = [_plain_value(field, item) for item in value]
        else:
            plain[field.name] = _plain_value(field, value)
    return plain


def _plain_value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return _plain(value)
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return named.name if named else value
    return value


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_null(node: Any) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def _found(node: Any) -> str:
    """What a node is, for a message."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return repr(node.value)


class _Reader:
    """Reads the nodes of one document into a message."""

    def __init__(self, source: str, loader: Any) -> None:
        self._source = source
        self._loader = loader
        #: Fields by type of message; building this from the descriptor each time is slow.
        self._fields: dict[str, dict[str, FieldDescriptor]] = {}
        self._errors: list[IntentSyntaxError] = []

    def document(self, message: Any, node: Any) -> list[IntentSyntaxError]:
        """Fill the message; gives what is wrong with the document, by line."""
        self._try(self._message, message, node, "")
        return sorted(self._errors, key=lambda error: error.line)

    def _try(self, read: Callable[..., None], *arguments: Any) -> None:
        """An error ends this reading, and only this one."""
        try:
            read(*arguments)
        except IntentSyntaxError as error:
            # Its traceback would keep the nodes of a large text.
            self._errors.append(error.with_traceback(None))

    def _message(self, message: Any, node: Any, path: str) -> None:
        descriptor: Descriptor = message.DESCRIPTOR
        fields = self._fields.get(descriptor.full_name)
        if fields is None:
            fields = {field.name: field for field in descriptor.fields}
            self._fields[descriptor.full_name] = fields
        for key, value_node in self._items(
            node, path, f"{descriptor.name} (a mapping of its fields)"
        ):
            field = fields.get(key.value)
            inner = f"{path}.{key.value}" if path else str(key.value)
            if field is None:
                near = difflib.get_close_matches(str(key.value), fields, 1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(fields)}"
                reason = f"{descriptor.name} has no such field ({hint})"
                self._errors.append(self._error(key, inner, reason))
            elif not _is_null(value_node):
                self._try(self._field, message, field, value_node, inner)

    def _field(self, message: Any, field: FieldDescriptor, node: Any, path: str) -> None:
        if _is_map(field):
            entries = getattr(message, field.name)
            entry: Any = field.message_type
            value_field = entry.fields_by_name["value"]
            for key, value_node in self._items(node, path, "mapping"):
                inner = f"{path}.{key.value}"
                self._try(self._entry, entries, key.value, value_field, value_node, inner)
        elif field.is_repeated:
            if not isinstance(node, yaml.SequenceNode):
                raise self._error(node, path, f"{_found(node)} is no list")
            items = getattr(message, field.name)
            for index, item in enumerate(node.value):
                inner = f"{path}[{index}]"
                if field.message_type is not None:
                    self._try(self._message, items.add(), item, inner)
                else:
                    self._try(self._item, items, field, item, inner)
        elif field.message_type is not None:
            self._message(getattr(message, field.name), node, path)
        else:
            setattr(message, field.name, self._scalar(field, node, path))

    def _entry(self, entries: Any, key: str, field: FieldDescriptor, node: Any, path: str) -> None:
        entries[key] = self._scalar(field, node, path)

    def _item(self, items: Any, field: FieldDescriptor, node: Any, path: str) -> None:
        items.append(self._scalar(field, node, path))

    def _items(self, node: Any, path: str, what: str) -> Iterator[tuple[Any, Any]]:
        """Keys and values, those of merged mappings (`<<`) included."""
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, path, f"{_found(node)} is no {what}")
        own: set[str] = set()
        merges = False
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._errors.append(self._error(key, path, f"{_found(key)} cannot be a key"))
            elif key.tag == _MERGE:
                merges = True
            elif key.value in own:
                reason = f"the key {key.value!r} is given twice"
                self._errors.append(self._error(key, path, reason))
            else:
                own.add(key.value)
        # What cannot be a key could not be looked up below.
        node.value = [item for item in node.value if isinstance(item[0], yaml.ScalarNode)]
        if not merges:
            return iter(node.value)
        # Flattening puts merged keys first; later ones win, as they do in YAML.
        self._loader.flatten_mapping(node)
        return iter({key.value: (key, value) for key, value in node.value}.values())

    def _scalar(self, field: FieldDescriptor, node: Any, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, path, f"{_found(node)} is given where one value is expected")
        text: str = node.value
        if field.enum_type is not None:
            return self._enum(field, node, path)
        if field.type == FieldDescriptor.TYPE_STRING:
            return text
        if field.type == FieldDescriptor.TYPE_BOOL:
            if node.tag != _BOOL:
                raise self._error(node, path, f"{text!r} is neither true nor false")
            return text.lower() in _TRUE
        low, high = _INTEGERS[field.type]
        try:
            number = int(text)
        except ValueError:
            raise self._error(node, path, f"{text!r} is no whole number") from None
        if not low <= number <= high:
            raise self._error(node, path, f"{number} is not within {low} to {high}")
        return number

    def _enum(self, field: FieldDescriptor, node: Any, path: str) -> int:
        enum: Any = field.enum_type
        names = enum.values_by_name
        value = names.get(node.value.upper())
        if value is None:
            raise self._error(node, path, f"there is no {node.value!r} (known: {', '.join(names)})")
        return int(value.number)

    def _error(self, node: Any, path: str, reason: str) -> IntentSyntaxError:
        return IntentSyntaxError(self._source, node.start_mark.line + 1, path, reason)
