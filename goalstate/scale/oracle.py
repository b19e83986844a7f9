"""What every host must hold, worked out from the intents alone, and compared with what it holds.

This is the check on everything else, so it shares nothing with it but the schema (see
`expectation`). It is fast in one place only: most hosts hold the same bytes, so a verdict on a
payload is given once for each stream and then remembered.

Revision and request id are how a configuration travelled, not what it says: they are ignored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.scale import expectation
from goalstate.scale.expectation import Merged

#: Kinds by the word in a Difference: the map of GoalStateV2 and the configuration.
_KINDS: dict[str, tuple[str, Any]] = {
    "vpc": ("vpc_states", resources_pb2.VpcConfiguration),
    "subnet": ("subnet_states", resources_pb2.SubnetConfiguration),
    "port": ("port_states", resources_pb2.PortConfiguration),
    "dhcp": ("dhcp_states", resources_pb2.DHCPConfiguration),
    "neighbor": ("neighbor_states", resources_pb2.NeighborConfiguration),
    "security_group": ("security_group_states", resources_pb2.SecurityGroupConfiguration),
    "router": ("router_states", resources_pb2.RouterConfiguration),
    "gateway": ("gateway_states", resources_pb2.GatewayConfiguration),
}
_INBOX_KINDS = ("port", "dhcp")

#: Expected configurations of a stream, or of a host's part of one: by kind and id.
Expected = dict[str, dict[str, Any]]


def _empty(kinds: Iterable[str]) -> Expected:
    return {kind: {} for kind in kinds}


class Difference(NamedTuple):
    """One resource of one host that is not as it must be."""

    host: str
    #: vpc, subnet, port, dhcp, neighbor, security_group, router, gateway, subscription or stream.
    kind: str
    id: str
    #: missing, unexpected, or the fields that differ with both values.
    what: str


class Resource(NamedTuple):
    """A held resource by its serialized configuration; `kind` is a word as in Difference."""

    kind: str
    id: str
    payload: bytes


class Oracle:
    """What must be held: on each stream, and by each host."""

    def __init__(self, state: Merged, *, security_groups_own_stream: bool) -> None:
        #: Host → its group, whose inbox it reads.
        self.groups: dict[str, str] = {host.id: host.group for host in state.hosts.values()}
        #: Host → its ports and DHCP answers.
        self.inboxes: dict[str, Expected] = {host: _empty(_INBOX_KINDS) for host in self.groups}
        #: Host → the streams that it must follow beside its inbox, as vpc/ID or sg/ID.
        self.follows: dict[str, set[str]] = {host: set() for host in self.groups}
        #: Stream of a VPC or security group → what every follower must hold of it.
        self.streams: dict[str, Expected] = {}
        #: (stream, kind) → payload → (id inside, what is wrong with it).
        self.verdicts: dict[tuple[str, str], dict[bytes, tuple[str, str]]] = defaultdict(dict)
        self._write_down(state, security_groups_own_stream)

    def _write_down(self, state: Merged, own_stream: bool) -> None:
        shared = ("vpc", "subnet", "security_group", "router", "gateway", "neighbor")
        gateway_ids = defaultdict(list)
        for gateway in state.gateways.values():
            gateway_ids[gateway.vpc_id].append(gateway.id)
        for vpc in state.vpcs.values():
            expected = self.streams[f"vpc/{vpc.id}"] = _empty(shared)
            expected["vpc"][vpc.id] = expectation.vpc_configuration(vpc, gateway_ids[vpc.id])
        for subnet in state.subnets.values():
            self._of_vpc(subnet)["subnet"][subnet.id] = expectation.subnet_configuration(
                subnet, state.vpcs[subnet.vpc_id]
            )
        for router in state.routers.values():
            self._of_vpc(router)["router"][router.id] = expectation.router_configuration(router)
        for gateway in state.gateways.values():
            self._of_vpc(gateway)["gateway"][gateway.id] = expectation.gateway_configuration(
                gateway
            )
        for group in state.security_groups.values():
            if own_stream:
                self.streams[f"sg/{group.id}"] = _empty(("security_group",))
                self.streams[f"sg/{group.id}"]["security_group"][group.id] = (
                    expectation.group_configuration(group)
                )
            else:
                self._of_vpc(group)["security_group"][group.id] = expectation.group_configuration(
                    group
                )
        for port in state.ports.values():
            if not port.host_id:
                continue
            host = state.hosts[port.host_id]
            self._of_vpc(port)["neighbor"][port.id] = expectation.neighbor_configuration(port, host)
            self.inboxes[host.id]["port"][port.id] = expectation.port_configuration(port, host)
            self.follows[host.id].add(f"vpc/{port.vpc_id}")
            if own_stream:
                self.follows[host.id].update(f"sg/{id_}" for id_ in port.security_group_ids)
        for dhcp in state.dhcps.values():
            port = state.ports[dhcp.port_id]
            if port.host_id:
                self.inboxes[port.host_id]["dhcp"][dhcp.id] = expectation.dhcp_configuration(
                    dhcp, port
                )

    def _of_vpc(self, object_: Any) -> Expected:
        return self.streams[f"vpc/{object_.vpc_id}"]


def expected(
    intents: Iterable[intent_pb2.Intent], *, security_groups_own_stream: bool = False
) -> Oracle:
    """What follows from accepted intents, in the order in which they were accepted."""
    state = Merged()
    for intent in intents:
        state.merge(intent)
    return Oracle(state, security_groups_own_stream=security_groups_own_stream)


def compare(
    oracle: Oracle,
    host: str,
    applied: Iterable[tuple[str, goalstate_pb2.GoalStateV2 | Resource]],
    *,
    counting: bool = False,
) -> list[Difference]:
    """Everything in which a host differs from what it must hold; empty: nothing.

    `applied` has what the host holds, each with its stream: resources, or whole messages with any
    number of them. A counting host cannot say what it holds of the streams of VPCs and security
    groups, so only its inbox is compared.
    """
    comparison = Comparison(oracle, host, counting=counting)
    for stream, held in applied:
        if isinstance(held, Resource):
            comparison.add(stream, held.kind, held.id, held.payload)
        else:
            comparison.add_message(stream, held)
    return comparison.finish()


class Comparison:
    """The comparison of one host, piece by piece; `finish` gives the result."""

    def __init__(self, oracle: Oracle, host: str, *, counting: bool = False) -> None:
        self._oracle = oracle
        self._host = host
        self._counting = counting
        self._differences: list[Difference] = []
        self._inbox = f"inbox/{oracle.groups.get(host, '')}"
        self._seen: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._subscribed: set[str] = set()
        self._strange: set[str] = set()
        if host not in oracle.groups:
            self._differ("stream", host, "there is no such host in the intent")

    def add(self, stream: str, kind: str, id_: str, payload: bytes) -> None:
        """A resource that the host holds of a stream."""
        if not self._must_follow(stream):
            return
        # Only shared streams are worth remembering: an inbox's payloads come once.
        verdicts = {} if stream == self._inbox else self._oracle.verdicts[stream, kind]
        self._check(kind, id_, payload, verdicts, self._wanted(stream, kind), stream)

    def add_subscription(self, stream: str) -> None:
        """A stream that the host says it follows, beside its inbox."""
        self._subscribed.add(stream)

    def add_message(self, stream: str, state: goalstate_pb2.GoalStateV2) -> None:
        """All resources and subscription facts of a message, as held of a stream."""
        for section in state.host_resources.values():
            self._subscribed.update(
                fact.stream
                for fact in section.subscriptions
                if fact.subscribe_operation == goalstate_pb2.Subscribe
            )
        for kind, (field, _) in _KINDS.items():
            states = getattr(state, field)
            if not states or not self._must_follow(stream):
                continue
            verdicts = {} if stream == self._inbox else self._oracle.verdicts[stream, kind]
            wanted = self._wanted(stream, kind)
            for id_, entry in states.items():
                payload = entry.configuration.SerializeToString()
                self._check(kind, id_, payload, verdicts, wanted, stream)

    def finish(self) -> list[Difference]:
        """All differences, ordered by kind and id."""
        if self._host in self._oracle.groups:
            follows = self._oracle.follows[self._host]
            for stream in follows - self._subscribed:
                self._differ("subscription", stream, "missing")
            for stream in self._subscribed - follows:
                self._differ("subscription", stream, "unexpected")
            for stream in [self._inbox, *(() if self._counting else follows)]:
                for kind, wanted in self._expected(stream).items():
                    for id_ in wanted.keys() - self._seen[stream, kind]:
                        self._differ(kind, id_, f"missing (stream {stream})")
        return sorted(self._differences)

    def _check(
        self,
        kind: str,
        id_: str,
        payload: bytes,
        verdicts: dict[bytes, tuple[str, str]],
        wanted: dict[str, Any],
        stream: str,
    ) -> None:
        verdict = verdicts.get(payload)
        if verdict is None:
            verdict = verdicts[payload] = _judge(kind, payload, wanted)
        inside, what = verdict
        seen = self._seen[stream, kind]
        if what:
            self._differ(kind, id_, what)
        if inside != id_:
            self._differ(kind, id_, f"holds the configuration of {inside!r}")
        if id_ in seen:
            self._differ(kind, id_, f"held twice (stream {stream})")
        seen.add(id_)

    def _must_follow(self, stream: str) -> bool:
        """Should the host hold anything of the stream? If not, that is one difference."""
        if stream == self._inbox:
            return True
        if stream in self._oracle.follows.get(self._host, ()):
            return not self._counting
        if stream not in self._strange:
            self._strange.add(stream)
            self._differ("stream", stream, "unexpected: the host holds something of it")
        return False

    def _expected(self, stream: str) -> Expected:
        if stream == self._inbox:
            return self._oracle.inboxes[self._host]
        return self._oracle.streams[stream]

    def _wanted(self, stream: str, kind: str) -> dict[str, Any]:
        return self._expected(stream).get(kind, {})

    def _differ(self, kind: str, id_: str, what: str) -> None:
        self._differences.append(Difference(self._host, kind, id_, what))


def _judge(kind: str, payload: bytes, wanted: dict[str, Any]) -> tuple[str, str]:
    """The id inside a payload, and what is wrong with the rest (empty: nothing)."""
    held = _KINDS[kind][1].FromString(payload)
    must = wanted.get(held.id)
    if must is None:
        return held.id, "unexpected"
    held.ClearField("revision_number")
    held.ClearField("request_id")
    if held == must:
        return held.id, ""
    fields = [
        f"{field.name} is {_shown(getattr(held, field.name))}, "
        f"must be {_shown(getattr(must, field.name))}"
        for field in held.DESCRIPTOR.fields
        if getattr(held, field.name) != getattr(must, field.name)
    ]
    # Fields that this schema does not know are in none of its fields.
    return held.id, "; ".join(fields) or "has fields that are not in the schema"


def _shown(value: Any) -> str:
    return " ".join(str(value).split()) or "empty"
