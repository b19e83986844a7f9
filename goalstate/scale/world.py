"""A region in one thread: publisher, bus and hosts as pure cores, with a clock that is a number.

Everything that happens follows from the seed, so that a run can be repeated exactly: which message
is delivered next, which is lost, repeated or late, and when. Nothing here waits: time passes only
where nobody has anything else to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from goalstate.agent.actions import Action, Follow, Program, Unfollow
from goalstate.agent.beginning import beginning, is_sought
from goalstate.agent.core import HostCore, HostSettings
from goalstate.agent.follows import SessionReader
from goalstate.agent.reports import Batch, Reporter
from goalstate.bus.base import LATEST, Message
from goalstate.bus.errors import PositionGone
from goalstate.bus.memory import Faults, MemoryBroker, MemoryReader
from goalstate.dpm.building import Building, in_sync
from goalstate.dpm.channels import NEVER, ChannelPolicy
from goalstate.dpm.convergence import Convergence, Progress
from goalstate.dpm.core import Accepted, Core
from goalstate.dpm.inventory import Publication
from goalstate.dpm.rings import OF_STREAM, Checkpoint, Rings
from goalstate.dpm.sessions import Sessions, checkpoint_of
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import CheckpointPlace
from goalstate.gs.intent import Intent, ObjectKind
from goalstate.gs.packing import CHUNK_BYTES
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import Channel, StreamId, inbox_stream
from goalstate.gs.topics import Topics, is_session
from goalstate.scale.links import Link

SECOND_NS = 1_000_000_000
START_NS = 1_000 * SECOND_NS
LEASE_S = 3600.0


class WorldSettings(NamedTuple):
    faults: Faults = Faults()
    security_groups_own_stream: bool = False
    chunk_bytes: int = CHUNK_BYTES
    #: When VPCs travel over sessions. The hosts of a group share one, as one process of agents.
    channels: ChannelPolicy = NEVER
    #: How often a session is cut, of the steps in which something is under way on it.
    cuts: float = 0.0
    #: Bytes that are kept of each stream on sessions, for those who lag.
    ring_bytes: int = OF_STREAM


class _Host:
    """A host: its core, its readers, and a data plane that does as it is told."""

    def __init__(self, world: World, host: str, group: str, incarnation: int) -> None:
        self.core = HostCore(host, inbox_stream(group), HostSettings(world.topics, sessions=True))
        self.reporter = Reporter(self.core, incarnation=incarnation, lease_s=LEASE_S)
        #: What the data plane was told to hold.
        self.programmed: dict[tuple[Kind, str], Resource] = {}
        #: Operations that it was told, and of these, such that changed nothing.
        self.operations = 0
        self.repeated = 0
        self._world = world
        self._link = world.links[group]
        self._readers: dict[StreamId, MemoryReader | SessionReader] = {}

    def do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Follow):
                self._close(action.stream)
                self._open(action)
            elif isinstance(action, Unfollow):
                self._close(action.stream)
            elif isinstance(action, Program):
                self._program(action)

    def stop(self) -> None:
        """Read no more, whatever is still on its way."""
        for stream in list(self._readers):
            self._close(stream)

    def _program(self, program: Program) -> None:
        self.operations += len(program.operations)
        for resource in program.operations:
            key = (resource.kind, resource.id)
            before = self.programmed.pop(key, None)
            if resource.payload:
                self.programmed[key] = resource
            self.repeated += before == (resource if resource.payload else None)
        self.do(self.core.programmed(program.number, {}, self._world.now_ns))

    def _open(self, follow: Follow) -> None:
        stream = follow.stream

        def sink(message: Message) -> None:
            # A message of a reader that was replaced meanwhile is no message to this host.
            if self._readers.get(stream) is reader:
                self.do(
                    self.core.receive(
                        stream,
                        message.properties,
                        message.payload,
                        message.position,
                        self._world.now_ns,
                    )
                )

        reader: MemoryReader | SessionReader
        if is_session(follow.topic):
            reader = self._readers[stream] = self._link.follows.attach(stream, follow.start, sink)
            return
        broker, topics = self._world.broker, self._world.topics
        newest = broker.messages(follow.topic)[-1:] if is_sought(follow, topics) else []
        begin = beginning(follow, newest[0] if newest else None, topics)
        try:
            reader = broker.attach(*begin, sink, name=self.core.host)
        except PositionGone:
            self.do(self.core.position_gone(stream, self._world.now_ns))
            return
        self._readers[stream] = reader

    def _close(self, stream: StreamId) -> None:
        reader = self._readers.pop(stream, None)
        if isinstance(reader, SessionReader):
            reader.detach()
        elif reader is not None:
            self._world.broker.detach(reader)


class World:
    """One publisher, one broker, and the hosts that were added."""

    def __init__(self, settings: WorldSettings = WorldSettings()) -> None:
        self.now_ns = START_NS
        self.topics = Topics(report_shards=1)
        self.broker = MemoryBroker(lambda: self.now_ns, settings.faults)
        self.core = Core(
            self.topics,
            security_groups_own_stream=settings.security_groups_own_stream,
            chunk_bytes=settings.chunk_bytes,
        )
        self.links: dict[str, Link] = {}
        self._random = Random(f"world/{settings.faults.seed}")
        self._settings = settings
        #: Where the checkpoints are of streams that came back to their topics, and those of which
        #: one is still to be written.
        self._places: dict[StreamId, CheckpointPlace] = {}
        self._due: dict[StreamId, None] = {}
        self.restart()
        self.convergence = Convergence(self.core.follows, self.core.inventory.digest_at)
        self.hosts: dict[str, _Host] = {}
        #: How often the agent of each host was started.
        self._starts = Counter[str]()
        self.broker.attach(self.topics.reports(0), LATEST, self._on_report, name="publisher")

    # --- what happens ---

    def restart(self) -> None:
        """Another publisher goes on from what this one accepted, with sessions of its own."""
        self.core.begin_epoch(self.core.epoch + 1, self._settings.channels)
        on_sessions = {
            s: at.mark for s, at in self.core.streams.items() if at.channel is Channel.SESSION
        }
        rings = Rings(on_sessions, of_stream=self._settings.ring_bytes)
        self.sessions = Sessions(rings, self._build, clock_ns=lambda: self.now_ns)
        for link in self.links.values():
            link.connect(self.sessions)

    async def _build(self, stream: StreamId) -> Checkpoint:
        return checkpoint_of(self._built(stream), self.now_ns)

    def _built(self, stream: StreamId) -> Building:
        building = Building(self.core, stream)
        while not building.done:
            building.step()
        return building

    def add_hosts(self, hosts: Mapping[str, str]) -> None:
        """Start agents: host → its group. Each start of a host is a new incarnation."""
        for name, group in hosts.items():
            self._starts[name] += 1
            if group not in self.links:
                self.links[group] = Link()
                self.links[group].connect(self.sessions)
            host = self.hosts[name] = _Host(self, name, group, self._starts[name])
            host.do(host.core.start(self.now_ns))

    def remove_host(self, name: str) -> None:
        """Stop an agent, which leaves nothing behind; `add_hosts` may start it anew, in any group.

        Raises KeyError if it does not run.
        """
        self.hosts.pop(name).stop()

    def apply(self, intent: Intent) -> Accepted | None:
        """Accept an intent and publish it; None if it changes nothing. Raises IntentRejected."""
        changes = self.core.plan(intent)
        if not changes:
            return None
        accepted = self.core.accept(changes, self.now_ns)
        self.core.logged(accepted.change)
        self.publish(accepted.publications)
        return accepted

    def publish(self, publications: Iterable[Publication]) -> None:
        for publication in publications:
            stream = publication.envelope.stream
            if publication.begins:
                self._places.pop(stream, None)
                self._due[stream] = None
            if publication.channel is Channel.SESSION:
                self.sessions.send(publication, lambda: None)
                continue
            if publication.begins:
                self.sessions.leave(stream)
            self._put(self.topics.of_stream(stream), publication, self._places.get(stream))

    def write_checkpoints(self) -> None:
        """Of the streams that came back to their topics: `settle` does so as well."""
        for stream in self._due:
            if self.core.streams[stream].channel is Channel.SESSION:
                continue
            building = self._built(stream)
            topic = self.topics.checkpoints_of(stream)
            before = self.broker.messages(topic)
            newest = self.broker.messages(self.topics.of_stream(stream))[-1]
            place = CheckpointPlace(before[-1].position if before else b"", newest.position)
            for publication in building.publications(building.begun, place):
                self._put(topic, publication, publication.envelope.checkpoint)
            self._places[stream] = place
            told = in_sync(envelopes.from_properties(newest.properties))
            self._put(self.topics.of_stream(stream), told, place)
        self._due.clear()

    def _put(self, topic: str, publication: Publication, place: CheckpointPlace | None) -> None:
        envelope = publication.envelope._replace(checkpoint=place)
        properties = envelopes.to_properties(envelope)
        self.broker.publish(topic, publication.payload, properties=properties)

    def step(self) -> bool:
        """Let one thing happen that is under way; False: there is none."""
        busy = [link for link in self.links.values() if not link.idle]
        if not busy or (not self.broker.idle and self._random.random() < 0.5):
            return self.broker.step()
        link = self._random.choice(busy)
        if self._random.random() < self._settings.cuts:
            link.connect(self.sessions)
        else:
            link.step(self._random)
        return True

    def _run_until_idle(self) -> None:
        while self.step():
            pass

    def settle(self, rounds: int = 1000) -> None:
        """Let everything happen that is going to: deliveries, repairs that wait, reports.

        Raises RuntimeError if that has no end within `rounds` steps of time.
        """
        for _ in range(rounds):
            self._run_until_idle()
            self.write_checkpoints()
            self._run_until_idle()
            due = [h.core.wakeup for h in self.hosts.values() if h.core.wakeup is not None]
            if not due:
                self.report()
                self._run_until_idle()
                return
            self.now_ns = max(self.now_ns + 1, min(due))
            for host in self.hosts.values():
                host.do(host.core.tick(self.now_ns))
        raise RuntimeError(f"the region does not come to rest within {rounds} rounds")

    def report(self, *, full: bool = False) -> None:
        """Let every host report what it has to."""
        batch = Batch()
        if any([batch.add(host.reporter, full=full) for host in self.hosts.values()]):
            message = batch.message("world", self.now_ns)
            self.broker.publish(self.topics.reports(0), message.SerializeToString())

    def _on_report(self, message: Message) -> None:
        report = agent_pb2.Report.FromString(message.payload)
        for host in report.hosts:
            self.convergence.report(host, self.now_ns)
        for advance in report.advances:
            self.convergence.advance(advance, self.now_ns)

    # --- what is ---

    def progress(self) -> Progress:
        """How far all that was published is applied, as the publisher knows it."""
        concerns = [
            (r.stream, r.mark, self.core.concerned(r)) for r in self.core.requirements_of_all()
        ]
        wait = self.convergence.begin(concerns, 0)
        try:
            return self.convergence.progress(wait, self.now_ns)
        finally:
            self.convergence.end(wait)

    def desired(self) -> Intent:
        """The accepted intent as one intent."""
        objects = self.core.desired.objects
        return Intent(
            hosts=tuple(objects(ObjectKind.HOST)),
            vpcs=tuple(objects(ObjectKind.VPC)),
            subnets=tuple(objects(ObjectKind.SUBNET)),
            security_groups=tuple(objects(ObjectKind.SECURITY_GROUP)),
            routers=tuple(objects(ObjectKind.ROUTER)),
            gateways=tuple(objects(ObjectKind.GATEWAY)),
            ports=tuple(objects(ObjectKind.PORT)),
            dhcps=tuple(objects(ObjectKind.DHCP)),
        )

    def disagreements(self) -> list[str]:
        """Where hosts and publisher do not agree about a stream that a host follows."""
        found = []
        for name, host in self.hosts.items():
            for stream_id, stream in host.core.streams.items():
                head = self.core.streams.get(stream_id)
                if head is None:
                    continue
                if stream.watermark != head.mark:
                    found.append(f"{name} {stream_id}: at {stream.watermark}, not {head.mark}")
                inbox = stream_id == host.core.inbox
                digest = self.core.inventory.host_digest(name) if inbox else head.digest
                if stream.live.digest != digest:
                    found.append(f"{name} {stream_id}: another digest than the publisher")
            follows = set(host.core.streams) - {host.core.inbox}
            should = {s for s, head in self.core.streams.items() if name in head.followers}
            if follows != should:
                found.append(f"{name} follows {sorted(map(str, follows ^ should))} wrongly or not")
        return found
