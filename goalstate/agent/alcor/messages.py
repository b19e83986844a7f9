"""What is pushed to a host that speaks Alcor's schema, and what its replies say. Pure.

Laws:

1.  A message is for one host. It holds operations of one kind and of one sort, additions or
    deletions, so that no receiver can apply them in a worse order than they were given in.
2.  What they refer to goes along as INFO, for receivers that look for it in the same message.
3.  A resource is CREATE the first time that it is pushed in a session, and UPDATE afterwards.
    Configurations go as they were published, each a whole one (update type FULL).
4.  v1 says whether a neighbor is L2 or L3 for the host, by the ports that it has when it is pushed.
5.  What a reply does not name has not been applied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from goalstate.gs import convert
from goalstate.gs.packing import CHUNK_BYTES
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.resources import (
    CONFIGURATION,
    STATES_FIELD,
    Kind,
    Resource,
    configuration,
    references,
)
from goalstate.gs.versions import FORMAT_V2

#: Resources by kind and id, as they were pushed.
Tables = Mapping[Kind, Mapping[str, Resource]]

_CREATE = resources_pb2.CREATE
_UPDATE = resources_pb2.UPDATE
_DELETE = resources_pb2.DELETE
_INFO = resources_pb2.INFO


class Operation(NamedTuple):
    """A resource to be pushed, and its place in the program that it is of."""

    place: int
    resource: Resource


def parts(operations: Sequence[Resource], limit: int = CHUNK_BYTES) -> Iterator[list[Operation]]:
    """Cut a program, in its order, into the contents of messages of about `limit` bytes."""
    part: list[Operation] = []
    ids: set[str] = set()
    size = 0
    of: tuple[Kind, bool] | None = None
    for place, resource in enumerate(operations):
        sort = (resource.kind, resource.deleted)
        cost = len(resource.payload) + 3 * len(resource.id) + 32
        if part and (sort != of or size + cost > limit or resource.id in ids):
            yield part
            part, ids, size = [], set(), 0
        of = sort
        part.append(Operation(place, resource))
        ids.add(resource.id)
        size += cost
    if part:
        yield part


def v2(host: str, operations: Sequence[Operation], pushed: Tables) -> goalstate_pb2.GoalStateV2:
    """The message, for a receiver to which `pushed` was pushed in this session."""
    message = goalstate_pb2.GoalStateV2(format_version=FORMAT_V2)
    section = message.host_resources[host]
    for _, resource in operations:
        known = resource.id in pushed.get(resource.kind, {})
        _put(message, section, resource, _UPDATE if known else _CREATE)
    named = {(int(r.type), r.id) for r in section.resources}
    for _, resource in operations:
        if resource.deleted:
            continue
        for kind, id_ in references(resource.kind, configuration(resource)):
            reference = pushed.get(kind, {}).get(id_)
            if reference is not None and (int(kind), id_) not in named:
                named.add((int(kind), id_))
                _put(message, section, reference, _INFO)
    return message


def v1(
    host: str, operations: Sequence[Operation], pushed: Tables, attached: Collection[str]
) -> goalstate_pb2.GoalState:
    """The same in the other format. `attached`: subnets in which the host has ports."""
    message = convert.to_v1(v2(host, operations, pushed), host, attached)
    # It says of the host what a v2 needs; one host's agent that knows v1 only needs none of it.
    message.ClearField("host_resources")
    return message


def _put(message: Any, section: Any, resource: Resource, operation: int) -> None:
    state = getattr(message, STATES_FIELD[resource.kind])[resource.id]
    if resource.deleted:
        state.operation_type = _DELETE
        gone = CONFIGURATION[resource.kind](id=resource.id, revision_number=resource.revision)
        state.configuration.CopyFrom(gone)
    else:
        state.operation_type = operation
        state.configuration.CopyFrom(configuration(resource))
    section.resources.add(type=int(resource.kind), id=resource.id)


class Said(NamedTuple):
    """What a reply says of operations: by place, why refused, and which are to be asked again."""

    refused: dict[int, str]
    pending: list[Operation]


def said(reply: goalstate_pb2.GoalStateOperationReply, operations: Sequence[Operation]) -> Said:
    """What the reply to a message of these operations says."""
    statuses = {
        (int(status.resource_type), status.resource_id): status
        for status in reply.operation_statuses
        # An agent that has only the schema's word for it may answer what was for reference too.
        if status.operation_type != _INFO
    }
    refused: dict[int, str] = {}
    pending = []
    for operation in operations:
        place, resource = operation
        status = statuses.get((int(resource.kind), resource.id))
        if status is None:
            refused[place] = "the agent's reply does not name it"
        elif status.operation_status == resources_pb2.PENDING:
            pending.append(operation)
        elif status.operation_status != resources_pb2.SUCCESS:
            refused[place] = why(status)
    return Said(refused, pending)


def why(status: goalstate_pb2.GoalStateOperationReply.GoalStateOperationStatus) -> str:
    """What a status says, for people."""
    known = resources_pb2.OperationStatus.DESCRIPTOR.values_by_number
    number = status.operation_status
    name = known[number].name if number in known else f"status {number}"
    return f"the agent says {name}" + (f": {status.reason}" if status.reason else "")
