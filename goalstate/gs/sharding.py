"""Shards: how a region is divided, and what of an intent belongs where. Pure.

Laws:

1.  The shard of a VPC follows from its id and the number of shards alone. All that a VPC has is of
    its shard; VPCs never refer to each other, so shards do not either.
2.  Hosts belong to every shard: each shard knows all of them.
3.  What an intent deletes, and a DHCP of a port that it does not give, is of the VPC that it is of
    as things are; what is not there belongs anywhere: any shard says that it is not there.
4.  The parts of an intent are its objects, each in one of them (hosts in one of their own), in the
    order in which they can stand: hosts that come, the shards, hosts that go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import xxhash

from goalstate.gs.after import Reason
from goalstate.gs.errors import Violation
from goalstate.gs.intent import FIELDS, ObjectKind
from goalstate.gs.objects import Objects
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2

#: Places beside the shards, which are numbers from 0 up.
HOSTS = -1
ANYWHERE = -2

#: Metadata of a call: the shard that it is about.
SHARD = "goalstate-shard"

#: The VPC of an object that is there, by kind and id; None: it is not there.
Find = Callable[[ObjectKind, str], str | None]


def shard_of(vpc_id: str, shards: int) -> int:
    """The shard that a VPC belongs to, of so many."""
    return xxhash.xxh3_64_intdigest(vpc_id.encode()) % shards


def vpc_of(state: Objects, kind: ObjectKind, id_: str) -> str | None:
    """The VPC of an object that is there, None if it is not, or a host."""
    found: Any = state.get(kind, id_)
    if found is not None and kind is ObjectKind.DHCP:
        found = state.get(ObjectKind.PORT, found.port_id)
    if found is None or kind is ObjectKind.HOST:
        return None
    return str(found.id if kind is ObjectKind.VPC else found.vpc_id)


class Placed(NamedTuple):
    """Where an object or a deletion of an intent belongs."""

    field: str
    at: int
    #: A shard, HOSTS or ANYWHERE.
    place: int
    vpc_id: str = ""

    @property
    def path(self) -> str:
        return f"{self.field}[{self.at}]"


def placed(intent: intent_pb2.Intent, shards: int, find: Find) -> Iterator[Placed]:
    """Where each part of an intent belongs, in the order of its fields."""
    given = {port.id: port.vpc_id for port in intent.ports} if intent.dhcps else {}
    for kind, field in FIELDS.items():
        for index, object_ in enumerate(getattr(intent, field)):
            if kind is ObjectKind.HOST:
                yield Placed(field, index, HOSTS)
                continue
            vpc: str | None
            if kind is ObjectKind.VPC:
                vpc = object_.id
            elif kind is ObjectKind.DHCP:
                vpc = given.get(object_.port_id) or find(ObjectKind.PORT, object_.port_id)
            else:
                vpc = object_.vpc_id
            yield _in_vpc(field, index, vpc, shards)
    for index, deletion in enumerate(intent.deletes):
        kind_number = int(deletion.kind)
        if kind_number == ObjectKind.HOST:
            yield Placed("deletes", index, HOSTS)
        elif kind_number == ObjectKind.VPC:
            yield _in_vpc("deletes", index, deletion.id, shards)
        else:
            known = kind_number in ObjectKind._value2member_map_
            vpc = find(ObjectKind(kind_number), deletion.id) if known else None
            yield _in_vpc("deletes", index, vpc, shards)


def _in_vpc(field: str, index: int, vpc: str | None, shards: int) -> Placed:
    if not vpc:
        return Placed(field, index, ANYWHERE)
    return Placed(field, index, shard_of(vpc, shards), vpc)


class Belongs(NamedTuple):
    """Where an intent belongs as a whole: to one place, unless there are violations."""

    place: int
    violations: list[Violation]

    @property
    def shard(self) -> int:
        """Whose call it is, unless it is of hosts: what belongs anywhere is refused anywhere."""
        return max(self.place, 0)


def belongs(intent: intent_pb2.Intent, shards: int, find: Find) -> Belongs:
    """The one place of an intent; what is of another one than the first violates."""
    first: Placed | None = None
    violations = []
    for one in placed(intent, shards, find):
        if one.place == ANYWHERE:
            continue
        if first is None:
            first = one
        elif one.place != first.place:
            violations.append(_other_place(one, first))
    return Belongs(first.place if first is not None else ANYWHERE, violations)


def _other_place(one: Placed, first: Placed) -> Violation:
    if HOSTS in (one.place, first.place):
        return Violation(
            one.path,
            Reason.HOSTS_APART,
            "the region is divided into shards, and hosts belong to all of them: give hosts and "
            "VPCs apart, as `goalstate apply` does",
        )
    return Violation(
        one.path,
        Reason.OTHER_SHARD,
        f"VPC {one.vpc_id} is of shard {one.place}, and VPC {first.vpc_id} ({first.path}) of shard "
        f"{first.place}: this cannot be one change; give them apart, as `goalstate apply` does",
    )


def is_wide(intent: intent_pb2.Intent) -> bool:
    """May it be of several places, whatever there is, and into however many shards?"""

    def own(kind: ObjectKind, id_: str) -> str:
        return f"?{kind}/{id_}"  # of a VPC that is not said

    return len({one.vpc_id or one.place for one in placed(intent, 1, own)}) > 1


def split(
    intent: intent_pb2.Intent, shards: int, find: Find
) -> list[tuple[int, intent_pb2.Intent]]:
    """The parts of an intent, each with its place. What belongs anywhere goes with the first."""
    parts: dict[int, intent_pb2.Intent] = {}
    going = intent_pb2.Intent()
    anywhere = []
    for one in placed(intent, shards, find):
        object_ = getattr(intent, one.field)[one.at]
        if one.place == ANYWHERE:
            anywhere.append((one.field, object_))
        elif one.place == HOSTS and one.field == "deletes":
            going.deletes.append(object_)
        else:
            getattr(parts.setdefault(one.place, intent_pb2.Intent()), one.field).append(object_)
    if anywhere:
        place = min((place for place in parts if place != HOSTS), default=0)
        part = parts.setdefault(place, intent_pb2.Intent())
        for field, object_ in anywhere:
            getattr(part, field).append(object_)
    ordered = sorted(parts.items())  # hosts come first
    if going.deletes:
        ordered.append((HOSTS, going))
    return ordered


def rivals(intent: intent_pb2.Intent, others: Mapping[int, Objects]) -> list[Violation]:
    """What an intent gives that another shard has already: ids and tunnel ids are the region's."""
    violations = []
    for kind, field in FIELDS.items():
        if kind in (ObjectKind.HOST, ObjectKind.VPC):
            continue  # of all, and in one by its id
        for index, object_ in enumerate(getattr(intent, field)):
            for shard, state in others.items():
                vpc = vpc_of(state, kind, object_.id)
                if vpc is not None:
                    violations.append(
                        Violation(
                            f"{field}[{index}].id",
                            Reason.DUPLICATE_ID,
                            f"{kind.word} {object_.id} is there, in VPC {vpc} (shard {shard})",
                        )
                    )
    for field in ("vpcs", "subnets"):
        for index, object_ in enumerate(getattr(intent, field)):
            for shard, state in others.items():
                users = state.tunnel_users(object_.tunnel_id) if object_.tunnel_id else {}
                if users:
                    (kind, id_), _ = next(iter(users.items()))
                    violations.append(
                        Violation(
                            f"{field}[{index}].tunnel_id",
                            Reason.DUPLICATE_TUNNEL_ID,
                            f"{object_.tunnel_id} is taken by {kind.word} {id_} (shard {shard})",
                        )
                    )
    return violations
