"""`decode`: goal-state messages, and what else is on the topics, as text or JSON.

Laws: the format of a message is found from its bytes, never from its name. A message that cannot
be read is named, with the reason, and the ones after it are read all the same; the exit code says
that there was one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError, Message

from goalstate.bus import admin
from goalstate.bus.base import EARLIEST, Bus
from goalstate.bus.base import Message as BusMessage
from goalstate.bus.connect import connect
from goalstate.bus.errors import BrokerUnreachable, BusError
from goalstate.cli.errors import ExitCode, InputError, no_broker
from goalstate.cli.files import read_bytes
from goalstate.cli.output import Output
from goalstate.cli.plain import brief
from goalstate.gs.errors import MalformedMessage, MessageError
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2 import DeadLetters, Report
from goalstate.gs.pb.goalstate.log.v1.log_pb2 import Record
from goalstate.gs.resources import STATES_FIELD
from goalstate.gs.sharding import shard_of
from goalstate.gs.streams import StreamId, StreamKind
from goalstate.gs.topics import Topics
from goalstate.gs.versions import FORMAT_V1, decode

#: The largest message taken from a file, in bytes: protobuf's own limit.
_LIMIT = 2**31 - 1
_KNOWN = (
    "`goalstate status` shows the streams that there are, with their topics; "
    "--region says which region a --stream is of"
)
#: Fields that the other columns tell.
_TOLD = frozenset({"id", "revision_number", "update_type"})
#: Fields that say nothing: a neighbor's type is derived by who reads it, and a rule's operation and
#: group are its group's.
_SILENT = frozenset({"operation_type", "neighbor_type", "security_group_id"})


class Raw(NamedTuple):
    """A message as it was found: `name` says where."""

    name: str
    payload: bytes
    properties: dict[str, str]
    #: What the topic carries where that is no goal state; else None.
    type: type[Message] | None = None
    key: str = ""
    position: str = ""


def decode_command(
    paths: Sequence[str],
    topic: str,
    stream: str,
    broker: str | None,
    admin_url: str,
    topics: Topics,
    limit: int,
    follow: bool,
    as_text: bool,
    out: Output,
) -> ExitCode:
    """Files, or one topic, or one stream. Raises CommandError."""
    if [bool(paths), bool(topic), bool(stream)].count(True) != 1:
        raise InputError(
            "nothing to decode, or too much", "give files, or --topic, or --stream: one of them"
        )
    if paths:
        return decode_files(paths, as_text, out)
    if not broker:
        raise InputError(
            "reading a topic needs a broker", "give --broker URL (GOALSTATE_BROKER_URL)"
        )
    if topics.shard >= topics.shards:
        raise InputError(f"there is no shard {topics.shard} of {topics.shards}", "see --help")
    name = topic_of_stream(topics, stream) if stream else topic
    _check_is_there(admin_url, name)
    return asyncio.run(_decode_topic(broker, topics, name, out, as_text, limit, follow))


def decode_files(paths: Iterable[str], as_text: bool, out: Output) -> ExitCode:
    shown = _Shown(as_text, out)
    for path in paths:
        shown.add(Raw("standard input" if path == "-" else path, read_bytes(path), {}))
    return shown.exit_code


def topic_of_stream(topics: Topics, stream: str) -> str:
    """Of a VPC in the shard that it is of, else in that of `topics`. Raises InputError."""
    try:
        one = StreamId.parse(stream)
        if one.kind is StreamKind.VPC:
            topics = topics._replace(shard=shard_of(one.id, topics.shards))
        return topics.of_stream(one)
    except ValueError as error:
        raise InputError(str(error), "write it as vpc/ID, sg/ID or inbox/GROUP") from None


def _check_is_there(admin_url: str, topic: str) -> None:
    """Raises InputError where the broker, asked by its admin API, does not have the topic.

    Without that API nobody can tell: to read a topic that Pulsar does not have makes it.
    """
    parts = topic.removeprefix("persistent://").split("/")
    if not admin_url or len(parts) != 3:
        return
    try:
        known = admin.topics(admin_url, parts[0], parts[1])
    except BusError as error:
        raise InputError(
            f"whether there is a topic {topic} cannot be found out: {error}",
            "correct --admin-url (GOALSTATE_BROKER_ADMIN_URL), or go without",
        ) from error
    if topic not in known:
        raise InputError(f"there is no topic {topic}", _KNOWN)


async def _decode_topic(
    broker: str, topics: Topics, topic: str, out: Output, as_text: bool, limit: int, follow: bool
) -> ExitCode:
    """The messages of a topic, oldest first; `limit` 0: all. `follow`: until interrupted."""
    shown = _Shown(as_text, out)
    try:
        bus = await connect(broker)
    except BrokerUnreachable as error:
        raise no_broker(broker, error) from error
    except BusError as error:
        raise InputError(str(error), "give --broker pulsar://HOST:PORT") from error
    try:
        async for message in _messages(bus, topic, follow):
            shown.add(_raw(message, topics))
            if limit and shown.count >= limit:
                break
    except BusError as error:
        raise InputError(f"{topic} cannot be read: {error}", _KNOWN) from error
    finally:
        await bus.close()
    if not shown.count:
        raise InputError(f"{topic} holds no messages", _KNOWN)
    return shown.exit_code


async def _messages(bus: Bus, topic: str, follow: bool) -> AsyncIterator[BusMessage]:
    if not follow:
        async for message in bus.read_to_end(topic, EARLIEST):
            yield message
        return
    queue: asyncio.Queue[BusMessage] = asyncio.Queue()
    reader = await bus.open_reader(topic, EARLIEST, queue.put_nowait)
    try:
        while True:
            yield await queue.get()
    finally:
        await reader.close()


def _raw(message: BusMessage, topics: Topics) -> Raw:
    type_: type[Message] | None = None
    for one in topics.all_shards():
        if message.topic == one.intent_log:
            type_ = Record
        elif message.topic in {one.reports(number) for number in range(one.report_shards)}:
            type_ = Report
    if message.topic in {topics.dead_letters(number) for number in range(topics.report_shards)}:
        type_ = DeadLetters
    name = f"{message.topic} at {message.position.hex()}"
    properties = dict(message.properties)
    return Raw(name, message.payload, properties, type_, message.key, message.position.hex())


class _Shown:
    """Prints messages as they come, and remembers whether all could be read."""

    def __init__(self, as_text: bool, out: Output) -> None:
        self._as_text = as_text
        self._out = out
        self.count = 0
        self.exit_code = ExitCode.OK

    def add(self, raw: Raw) -> None:
        self.count += 1
        out = self._out
        head: dict[str, Any] = {"source": raw.name, "bytes": len(raw.payload)}
        if raw.position:
            head |= {"key": raw.key, "position": raw.position, "properties": raw.properties}
        try:
            message = _parse(raw)
        except MessageError as error:
            self.exit_code = ExitCode.USAGE
            out.result(head | {"error": str(error)})
            out.text(f"{raw.name}: {len(raw.payload)} bytes that cannot be read: {error}", "red")
            return
        name = message.DESCRIPTOR.name
        out.result(
            head
            | {
                "type": name,
                "message": json_format.MessageToDict(message, preserving_proto_field_name=True),
            }
        )
        if out.as_json:
            return
        out.text(f"# {raw.name}: {name}, {len(raw.payload)} bytes", style="bold")
        for key in sorted(raw.properties):
            out.text(f"#   {key} = {raw.properties[key]}")
        if self._as_text or raw.type is not None:
            out.text(text_format.MessageToString(message, as_utf8=True).rstrip())
        else:
            out.text(f"# format version {getattr(message, 'format_version', 0)}")
            _resources(message, out)
        out.text()


def _parse(raw: Raw) -> Message:
    """Raises MessageError."""
    if raw.type is None:
        declared = raw.properties.get("schema", "")
        return decode(
            raw.payload, declared=int(declared) if declared.isdecimal() else None, limit=_LIMIT
        )
    try:
        return raw.type.FromString(raw.payload)
    except DecodeError as error:
        raise MalformedMessage(f"these bytes are no {raw.type.__name__}: {error}") from None


def _resources(message: Any, out: Output) -> None:
    out.table(("operation", "kind", "id", "revision#", "what"), _rows(message))
    if message.format_version == FORMAT_V1:
        return
    for host, section in sorted(message.host_resources.items()):
        digest = f", digest {section.digest.hex()}" if section.digest else ""
        out.text(f"host {host}: {len(section.resources)} resources{digest}")
        for fact in section.subscriptions:
            operation = type(fact).DESCRIPTOR.fields_by_name["subscribe_operation"].enum_type
            word = operation.values_by_number[fact.subscribe_operation].name.lower()
            out.text(f"  {word} {fact.stream} {fact.topic}".rstrip())


def _rows(message: Any) -> Iterator[tuple[object, ...]]:
    for kind, name in STATES_FIELD.items():
        states = getattr(message, name)
        entries = states if message.format_version == FORMAT_V1 else states.values()
        for entry in sorted(entries, key=lambda entry: entry.configuration.id):
            config = entry.configuration
            operation = resources_pb2.OperationType.Name(entry.operation_type).lower()
            yield (
                operation,
                kind.name.lower(),
                config.id,
                config.revision_number,
                brief(config, _TOLD, _SILENT),
            )
