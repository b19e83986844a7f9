"""Packing resources into GoalStateV2 messages, and back.

A change set becomes as few messages as its size allows. Within one message an id appears at most
once for each kind (GoalStateV2 keeps states in maps), so a port that leaves one host and enters
another of the same group takes two messages; the caller's order decides which comes first.

Messages are written as Frames: the same bytes as a GoalStateV2 with these configurations, which
are not parsed only to be serialized again.

On an inbox stream a message is for several hosts: `host_resources` says which resources are whose,
and carries for each host the digest of what it holds and the facts of its subscriptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from goalstate.gs import digest as digests
from goalstate.gs.errors import MalformedMessage
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.pb.goalstate.agent.v1.frame_pb2 import Frame
from goalstate.gs.resources import CONFIGURATION, STATES_FIELD, Kind, Resource
from goalstate.gs.versions import FORMAT_V2

#: Bytes of payload in a message, about: larger change sets are chunked.
CHUNK_BYTES = 512 * 1024

_CREATE = resources_pb2.CREATE
_UPDATE = resources_pb2.UPDATE
_DELETE = resources_pb2.DELETE


class Addressed(NamedTuple):
    """A resource and the host that it is for; no host: for every reader of the stream."""

    host: str
    resource: Resource


def chunk(items: Sequence[Addressed], limit: int = CHUNK_BYTES) -> list[list[Addressed]]:
    """Cut a change set, in its order, into the contents of messages of about `limit` bytes."""
    chunks: list[list[Addressed]] = []
    current: list[Addressed] = []
    seen: dict[Kind, set[str]] = {kind: set() for kind in Kind}
    size = 0
    for item in items:
        host, (kind, id_, _, payload) = item
        length = len(id_)
        cost = len(payload) + 2 * length + 16
        unique = id_
        if host:
            cost += length + 12
            if kind is Kind.SUBSCRIPTION:
                # They lie inside their host's section: only there must they be unique.
                unique = f"{host}\0{id_}"
        if current and (size + cost > limit or unique in seen[kind]):
            chunks.append(current)
            current, size = [], 0
            for ids in seen.values():
                ids.clear()
        current.append(item)
        seen[kind].add(unique)
        size += cost
    if current:
        chunks.append(current)
    return chunks


def encode(items: Sequence[Addressed], host_digests: Mapping[str, int] | None = None) -> bytes:
    """One message with these resources, serialized.

    `host_digests` holds, for an inbox stream, the digest of every host in `items` after the
    message.
    """
    message = Frame(format_version=FORMAT_V2)
    states: dict[Kind, Any] = {k: getattr(message, name) for k, name in STATES_FIELD.items()}
    sections = message.host_resources
    section: Any = None
    of = ""
    for host, (kind, id_, revision, payload) in items:
        if host and host != of:
            of, section = host, sections[host]
        if kind is Kind.SUBSCRIPTION:
            fact = section.subscriptions.add()
            if payload:
                fact.MergeFromString(payload)
                fact.subscribe_operation = goalstate_pb2.Subscribe
            else:
                fact.subscribe_operation = goalstate_pb2.Unsubscribe
                fact.stream = id_
                fact.revision_number = revision
            continue
        state = states[kind][id_]
        if payload:
            state.operation_type = _CREATE if revision == 1 else _UPDATE
            state.configuration = payload
        else:
            state.operation_type = _DELETE
            gone = CONFIGURATION[kind](id=id_, revision_number=revision)
            state.configuration = gone.SerializeToString()
        if host:
            named = section.resources.add()
            # Kinds of one host's resources are Alcor's: their numbers are ResourceType's.
            named.type = kind
            named.id = id_
    for host, value in (host_digests or {}).items():
        sections[host].digest = digests.to_bytes(value)
    serialized: bytes = message.SerializeToString(deterministic=True)
    return serialized


def unpack(state: Any, kinds: Sequence[Kind] | None = None) -> Iterator[tuple[Resource, Any]]:
    """Every resource of a GoalStateV2's maps, with its parsed configuration message.

    Kinds come in the order of `kinds` (default: as they are declared). Subscriptions are in the
    hosts' sections and not among them. Raises MalformedMessage where a map key and the id inside
    differ.
    """
    for kind in kinds or STATES_FIELD:
        for id_, entry in getattr(state, STATES_FIELD[kind]).items():
            config = entry.configuration
            if config.id != id_:
                raise MalformedMessage(
                    f"{kind.name.lower()}_states[{id_!r}] holds the configuration of {config.id!r}"
                )
            if entry.operation_type == _DELETE:
                yield Resource(kind, id_, config.revision_number, b""), config
            else:
                yield (
                    Resource(kind, id_, config.revision_number, config.SerializeToString()),
                    config,
                )


def subscriptions(section: Any) -> Iterator[tuple[Resource, Any]]:
    """The subscription facts in a host's section, as resources whose id is the stream's."""
    for fact in section.subscriptions:
        if fact.subscribe_operation == goalstate_pb2.Unsubscribe:
            yield Resource(Kind.SUBSCRIPTION, fact.stream, fact.revision_number, b""), fact
        else:
            yield (
                Resource(
                    Kind.SUBSCRIPTION, fact.stream, fact.revision_number, fact.SerializeToString()
                ),
                fact,
            )
