"""A host core on a memory broker with a fake clock, and a small publisher that writes to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from goalstate.agent.actions import Action, Follow, Program, ReadBack, Refusal, Unfollow
from goalstate.agent.beginning import beginning, is_sought
from goalstate.agent.core import HostCore, HostSettings
from goalstate.agent.dataplanes import MemoryDataPlane
from goalstate.agent.reports import Batch, Reporter
from goalstate.agent.retry import RetryPolicy
from goalstate.agent.state import Journal, StoredStream
from goalstate.agent.stream import Fault
from goalstate.bus.base import EARLIEST
from goalstate.bus.errors import PositionGone
from goalstate.bus.memory import Faults, MemoryBroker, MemoryReader
from goalstate.gs import digest as digests
from goalstate.gs import packing
from goalstate.gs.envelope import CheckpointPlace, Envelope, MessageKind, to_properties
from goalstate.gs.packing import Addressed
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.reports import host_reports
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import ORIGIN, Mark, StreamId, StreamKind, inbox_stream, vpc_stream
from goalstate.gs.topics import Topics

TOPICS = Topics()
HOST = "host-1"
INBOX = inbox_stream("rack-1")
VPC = "vpc-1"
STREAM = vpc_stream(VPC)
START_NS = 1_700_000_000 * 10**9


# --- resources ---


def vpc(revision: int = 1, *, id_: str = VPC, name: str = "") -> Resource:
    return _resource(Kind.VPC, resources_pb2.VpcConfiguration(name=name), id_, revision)


def subnet(
    id_: str = "subnet-1", revision: int = 1, *, vpc_id: str = VPC, name: str = ""
) -> Resource:
    config = resources_pb2.SubnetConfiguration(vpc_id=vpc_id, name=name)
    return _resource(Kind.SUBNET, config, id_, revision)


def neighbor(
    number: int,
    revision: int = 1,
    *,
    subnets: Sequence[str] = ("subnet-1",),
    host_ip: str = "100.64.0.9",
    vpc_id: str = VPC,
) -> Resource:
    config = resources_pb2.NeighborConfiguration(
        vpc_id=vpc_id,
        mac_address=f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}",
        host_ip_address=host_ip,
        host_mac_address="02:01:00:00:00:09",
    )
    for subnet_id in subnets:
        config.fixed_ips.add(subnet_id=subnet_id, ip_address=f"10.0.{number >> 8}.{number & 255}")
    return _resource(Kind.NEIGHBOR, config, f"port-{number}", revision)


def group(
    id_: str = "group-1", revision: int = 1, *, ports: Iterable[int] = (22,), vpc_id: str = VPC
) -> Resource:
    config = resources_pb2.SecurityGroupConfiguration(vpc_id=vpc_id)
    for port_number in ports:
        config.security_group_rules.add(
            id=f"rule-{port_number}",
            direction=resources_pb2.SecurityGroupConfiguration.INGRESS,
            port_range_min=port_number,
            port_range_max=port_number,
        )
    return _resource(Kind.SECURITY_GROUP, config, id_, revision)


def port(
    number: int = 1,
    revision: int = 1,
    *,
    vpc_id: str = VPC,
    subnet_id: str = "subnet-1",
    groups: Iterable[str] = (),
    up: bool = True,
) -> Resource:
    config = resources_pb2.PortConfiguration(vpc_id=vpc_id, admin_state_up=up)
    config.fixed_ips.add(subnet_id=subnet_id, ip_address=f"10.0.0.{number}")
    for id_ in groups:
        config.security_group_ids.add(id=id_)
    return _resource(Kind.PORT, config, f"port-{number}", revision)


def router(revision: int = 1, *, subnet_id: str = "subnet-1") -> Resource:
    config = resources_pb2.RouterConfiguration(vpc_id=VPC)
    config.subnet_routing_tables.add(subnet_id=subnet_id)
    return _resource(Kind.ROUTER, config, "router-1", revision)


def dhcp(revision: int = 1, *, subnet_id: str = "subnet-1") -> Resource:
    return _resource(
        Kind.DHCP, resources_pb2.DHCPConfiguration(subnet_id=subnet_id), "dhcp-1", revision
    )


def subscription(
    stream: StreamId | str = STREAM, revision: int = 1, topic: str = "", **fields: Any
) -> Resource:
    fact = goalstate_pb2.NodeSubscribeInfo(stream=str(stream), revision_number=revision)
    fact.topic = topic
    for name, value in fields.items():
        setattr(fact, name, value)
    return Resource(Kind.SUBSCRIPTION, str(stream), revision, fact.SerializeToString())


def gone(resource: Resource) -> Resource:
    """The deletion of a resource, one revision on."""
    return resource._replace(revision=resource.revision + 1, payload=b"")


def _resource(kind: Kind, config: Any, id_: str, revision: int) -> Resource:
    config.id = id_
    config.revision_number = revision
    return Resource(kind, id_, revision, config.SerializeToString())


# --- publishing ---

Sent = tuple[dict[str, str], bytes]


class Publisher:
    """Writes one stream as a publisher does. `publish` gives properties and payload."""

    def __init__(self, stream: StreamId, epoch: int = 1) -> None:
        self.stream = stream
        self.mark = ORIGIN
        self.epoch = epoch
        #: By host; on a multicast stream the host is "".
        self.held: dict[str, dict[tuple[Kind, str], Resource]] = {}
        #: The newest complete one, which messages tell of.
        self.checkpoint: CheckpointPlace | None = None

    def digest(self, host: str = "") -> int:
        return digests.of(self.held.get(host, {}).values())

    def publish(
        self,
        *resources: Resource,
        host: str | None = None,
        claim: Iterable[Resource] | None = None,
    ) -> Sent:
        """One message. On an inbox stream for `host` (default: HOST).

        `claim`: what the digests count in the place of the resources.
        """
        if host is None:
            host = HOST if self.stream.kind is StreamKind.INBOX else ""
        held = self.held.setdefault(host, {})
        for resource in resources if claim is None else claim:
            if resource.payload:
                held[resource.kind, resource.id] = resource
            else:
                held.pop((resource.kind, resource.id), None)
        after = self.mark if self.mark.epoch < self.epoch else None
        sequence = 1 if after is not None else self.mark.sequence + 1
        self.mark = Mark(self.epoch, sequence)
        payload = packing.encode(
            [Addressed(host, resource) for resource in resources],
            {host: self.digest(host)} if host and resources else None,
        )
        return self.sent(payload, self.mark, after=after if after != ORIGIN else None)

    def sent(
        self,
        payload: bytes,
        mark: Mark,
        kind: MessageKind = MessageKind.DELTA,
        chunk: int = 1,
        chunks: int = 1,
        *,
        after: Mark | None = None,
        until: Mark | None = None,
        checkpoint: CheckpointPlace | None = None,
    ) -> Sent:
        """A message with the stream's digest as it is now."""
        total = sum(digests.of(some.values()) for some in self.held.values()) & digests.MASK
        envelope = Envelope(
            102,
            self.stream,
            mark,
            kind,
            chunk,
            chunks,
            1,
            digests.to_hex(total),
            digests.checksum(payload),
            START_NS,
            after,
            "",
            checkpoint or self.checkpoint,
            until,
        )
        return to_properties(envelope), payload


class Checkpoint:
    """A checkpoint of a publisher's stream while it is written, chunk by chunk."""

    def __init__(self, broker: MemoryBroker, publisher: Publisher, chunks: int) -> None:
        """All that was published so far must be on the log."""
        self.broker = broker
        self.publisher = publisher
        self.mark = publisher.mark
        self.chunk = 0
        self.chunks = chunks
        self.log_topic = TOPICS.of_stream(publisher.stream)
        self.topic = TOPICS.checkpoints_of(publisher.stream)
        earlier = broker.messages(self.topic)
        self.place = CheckpointPlace(
            earlier[-1].position if earlier else EARLIEST,
            broker.messages(self.log_topic)[-1].position,
        )

    def add(self, *resources: Resource, host: str = "") -> None:
        """Write the next chunk, on an inbox stream with these resources of a host."""
        self.chunk += 1
        payload = packing.encode(
            [Addressed(host, resource) for resource in resources],
            {host: self.publisher.digest(host)} if host else None,
        )
        self._put(
            self.topic,
            self.publisher.sent(
                payload, self.mark, MessageKind.CHECKPOINT, self.chunk, self.chunks
            ),
        )

    def close(self) -> None:
        """Write the end, and tell of it on the log."""
        assert self.chunk == self.chunks
        publisher, nothing = self.publisher, packing.encode([])
        kind = MessageKind.IN_SYNC
        end = publisher.sent(nothing, self.mark, kind, until=publisher.mark, checkpoint=self.place)
        self._put(self.topic, end)
        publisher.checkpoint = self.place
        self._put(self.log_topic, publisher.sent(nothing, publisher.mark, kind))

    def _put(self, topic: str, sent: Sent) -> None:
        properties, payload = sent
        self.broker.publish(topic, payload, properties=properties)


def checkpoint(broker: MemoryBroker, publisher: Publisher, chunks: int = 2) -> Checkpoint:
    """Write a checkpoint of a stream that nothing happens on meanwhile; in chunks for each host."""
    pieces = []
    for host, held in publisher.held.items():
        resources = list(held.values())
        size = -(-len(resources) // chunks)
        pieces += [(host, resources[at * size : (at + 1) * size]) for at in range(chunks)]
    written = Checkpoint(broker, publisher, len(pieces))
    for host, piece in pieces:
        written.add(*piece, host=host)
    written.close()
    return written


# --- the host ---


class Rig:
    """One core with its readers and a data plane, on a broker of its own."""

    def __init__(
        self,
        *,
        host: str = HOST,
        beside: Rig | None = None,
        faults: Faults | None = None,
        counting: bool = False,
        deadline_s: float = 30,
        limit: int = 4096,
        attempts: int = 8,
        audit_s: float = 0,
        stored: Iterable[StoredStream] = (),
    ) -> None:
        """`beside` another one: on its broker, with its publishers. It begins with `stored`."""
        self.now: int = beside.now if beside else START_NS
        self.broker: MemoryBroker = (
            beside.broker if beside else MemoryBroker(lambda: self.now, faults or Faults())
        )
        settings = HostSettings(
            TOPICS,
            int(deadline_s * 1e9),
            limit,
            retry=RetryPolicy(attempts),
            audit_interval_ns=int(audit_s * 1e9),
        )
        self.core = HostCore(host, INBOX, settings, counting=counting, journal=Journal())
        self.reporter = Reporter(self.core, incarnation=7, lease_s=30)
        self.plane = MemoryDataPlane()
        #: All programs so far, in order.
        self.programs: list[Sequence[Resource]] = []
        #: Ids that the data plane refuses.
        self.refuse: set[str] = set()
        #: Ids that it refuses for now.
        self.busy: set[str] = set()
        #: Can the data plane be read back, and of which kinds it was.
        self.readable = True
        self.read_backs: list[Kind] = []
        #: Programs wait for `finish` as long as this is True.
        self.slow = False
        self.waiting: list[Program] = []
        self.readers: dict[StreamId, MemoryReader] = {}
        self.follows: list[Follow] = []
        self.inbox: Publisher = beside.inbox if beside else Publisher(INBOX)
        self.vpc: Publisher = beside.vpc if beside else Publisher(STREAM)
        self.perform(self.core.start(self.now, stored))

    # what happens

    def put(self, sent: Sent, topic: str = "") -> None:
        """Bring a message to the end of its stream's topic."""
        properties, payload = sent
        topic = topic or TOPICS.of_stream(StreamId.parse(properties["stream"]))
        self.broker.publish(topic, payload, properties=properties)

    def on_inbox(self, *resources: Resource) -> None:
        self.put(self.inbox.publish(*resources))
        self.run()

    def on_vpc(self, *resources: Resource) -> None:
        self.put(self.vpc.publish(*resources))
        self.run()

    def join(self, *resources: Resource) -> None:
        """Subscribe the host to the VPC's stream, on which these come."""
        self.on_inbox(subscription())
        if resources:
            self.on_vpc(*resources)

    def run(self) -> None:
        self.broker.run_until_idle()

    def stall(self) -> None:
        """Say of a checkpoint that stopped half-way that it does not go on, as readers do."""
        for id_, stream in list(self.core.streams.items()):
            reading = stream.shadow
            if reading is not None and reading.chunk and stream.reread_ns is None:
                self.perform(self.core.position_gone(id_, self.now))
                self.run()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with ticks as they are asked for."""
        end = self.now + int(seconds * 1e9)
        while self.core.wakeup is not None and self.core.wakeup <= end:
            self.now = max(self.now, self.core.wakeup)
            self.perform(self.core.tick(self.now))
            self.run()
        self.now = end
        self.perform(self.core.tick(self.now))
        self.run()

    def perform(self, actions: Iterable[Action]) -> None:
        todo = list(actions)
        while todo:
            action = todo.pop(0)
            if isinstance(action, Follow):
                self._follow(action)
            elif isinstance(action, Unfollow):
                if action.stream in self.readers:
                    self.broker.detach(self.readers.pop(action.stream))
            elif isinstance(action, ReadBack):
                self.read_backs.append(action.kind)
                table = self.plane.tables[action.kind] if self.readable else None
                todo += self.core.read_back(action.number, action.kind, table, self.now)
            else:
                self.programs.append(action.operations)
                if self.slow:
                    self.waiting.append(action)
                else:
                    todo += self._finish(action)

    def finish(self) -> Sequence[Resource]:
        """Let the program that is under way end; gives what it was."""
        program = self.waiting.pop(0)
        self.perform(self._finish(program))
        return program.operations

    def _finish(self, program: Program) -> list[Action]:
        refused = {
            place: Refusal("no room", one.id in self.busy)
            for place, one in enumerate(program.operations)
            if one.id in self.refuse or one.id in self.busy
        }
        self.plane.program(
            [one for place, one in enumerate(program.operations) if place not in refused],
            lambda _: None,
        )
        return self.core.programmed(program.number, refused, self.now)

    def _follow(self, follow: Follow) -> None:
        self.follows.append(follow)
        if follow.stream in self.readers:
            self.broker.detach(self.readers[follow.stream])
            del self.readers[follow.stream]
        newest = self.broker.messages(follow.topic)[-1:] if is_sought(follow, TOPICS) else []
        begin = beginning(follow, newest[0] if newest else None, TOPICS)
        try:
            self.readers[follow.stream] = self.broker.attach(
                *begin,
                lambda m: self.perform(
                    self.core.receive(follow.stream, m.properties, m.payload, m.position, self.now)
                ),
            )
        except PositionGone:
            self.perform(self.core.position_gone(follow.stream, self.now))

    # what is

    @property
    def programmed(self) -> list[str]:
        """All operations so far, in order; a deletion has a minus sign."""
        return [("-" if one.deleted else "") + one.name for ops in self.programs for one in ops]

    def applied(self, stream: StreamId = STREAM) -> set[str]:
        """What the core says is applied of a stream."""
        one = self.core.streams.get(stream)
        if one is None:
            return set()
        return {resource.name for kind in one.kinds for resource in one.applied(kind).values()}

    def in_plane(self) -> set[str]:
        return {
            f"{kind.name.lower()}/{id_}"
            for kind, table in self.plane.tables.items()
            for id_ in table
        }

    def watermark(self, stream: StreamId = STREAM) -> Mark:
        return self.core.streams[stream].watermark

    def exceptions(self) -> dict[str, str]:
        """Kind/id → status and the first word of the reason."""
        return {
            name: f"{_status(fault)} {fault.reason.split(':')[0]}"
            for name, fault in self.faults().items()
        }

    def faults(self) -> Mapping[str, Any]:
        return {
            f"{Kind(kind).name.lower()}/{id_}" if id_ else f"{stream} {fault.mark}": fault
            for stream, kind, id_, fault in self.core.exceptions()
        }

    def agrees(self, publisher: Publisher | None = None) -> bool:
        """Does the host hold what the publisher published?"""
        publisher = publisher or self.vpc
        host = self.core.host if publisher.stream.kind is StreamKind.INBOX else ""
        return self.core.streams[publisher.stream].live.digest == publisher.digest(host)

    def letters(self, limit: int = 1 << 20) -> list[agent_pb2.DeadLetter]:
        return self.core.dead_letters(limit)

    def report(self, *, full: bool = False) -> agent_pb2.HostReport | None:
        """What the host tells, as its publisher reads it."""
        assert self.core.has_exceptions == any(True for _ in self.core.exceptions())
        batch = Batch()
        if not batch.add(self.reporter, full=full):
            return None
        (report,) = host_reports(batch.message("clock-1", 1))
        return report


def _status(fault: Fault) -> str:
    return "PENDING" if fault.pending else "RETRYING" if fault.retrying else "REFUSED"
