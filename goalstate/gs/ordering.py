"""The order in which changes are applied, so that no moment in between is worse than both ends.

Additions go in the order of dependency (vpc, subnet, security group, DHCP, router, gateway, port,
neighbor); deletions come after all additions, in the reverse order (make before break). One
exception goes before everything: a change that takes a permission away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.resources import Kind, Resource

#: Kinds in the order in which they are added.
ADD_ORDER: Sequence[Kind] = (
    Kind.VPC,
    Kind.SUBNET,
    Kind.SECURITY_GROUP,
    Kind.DHCP,
    Kind.ROUTER,
    Kind.GATEWAY,
    Kind.PORT,
    Kind.NEIGHBOR,
    Kind.SUBSCRIPTION,
)
#: Kinds of which an update may take a permission away, see `revokes`.
REVOKERS = frozenset({Kind.SECURITY_GROUP, Kind.PORT, Kind.NEIGHBOR})
_RANK = {kind: rank for rank, kind in enumerate(ADD_ORDER)}
_LAST = len(ADD_ORDER)


def phase(kind: Kind, deleted: bool, revokes: bool = False) -> int:
    """Where a change stands in the order: a lower phase is applied first."""
    if revokes:
        return -1
    return 2 * _LAST - _RANK[kind] if deleted else _RANK[kind]


def _rule_key(rule: Any) -> bytes:
    bare = resources_pb2.SecurityGroupConfiguration.SecurityGroupRule()
    bare.CopyFrom(rule)
    bare.ClearField("id")
    bare.ClearField("operation_type")
    serialized: bytes = bare.SerializeToString(deterministic=True)
    return serialized


def revokes(before: Resource | None, after: Resource) -> bool:
    """Does this change take a permission away that `before` gave?

    True for a security group that loses a rule, for a port that leaves a security group (with all
    its rules) or is switched off, and for a neighbor that leaves a group, whose members rules may
    let in. Deleting one of them as a whole is a deletion like any other.
    """
    if before is None or not before.payload or not after.payload:
        return False
    if after.kind is Kind.SECURITY_GROUP:
        parse = resources_pb2.SecurityGroupConfiguration.FromString
        old = {_rule_key(rule) for rule in parse(before.payload).security_group_rules}
        new = {_rule_key(rule) for rule in parse(after.payload).security_group_rules}
        return not old <= new
    if after.kind is Kind.PORT:
        was = resources_pb2.PortConfiguration.FromString(before.payload)
        now = resources_pb2.PortConfiguration.FromString(after.payload)
        left = {g.id for g in was.security_group_ids} - {g.id for g in now.security_group_ids}
        return bool(left) or (was.admin_state_up and not now.admin_state_up)
    if after.kind is Kind.NEIGHBOR:
        parse_neighbor = resources_pb2.NeighborConfiguration.FromString
        was_in = set(parse_neighbor(before.payload).security_group_ids)
        return not was_in <= set(parse_neighbor(after.payload).security_group_ids)
    return False
