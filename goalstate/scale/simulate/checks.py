"""What must hold in a run, whatever goes wrong in it.

Laws, each checked by other means than the product keeps it by:

1.  A watermark that an agent tells, or that a publisher believes, never goes back within an
    incarnation, unless the stream was dropped in between.
2.  A wait is never early: when it says that a change has converged, every host that it counted
    holds all that the streams brought up to the change's marks, at that or a higher revision. A
    host whose agent was started anew is judged by any of its agents since the wait began, and by
    those that the publisher had heard of last when it began and when it ended.
3.  What was acknowledged stays: the change of that number in the log is that intent. What was
    refused is not in the log.
4.  When all faults are over and time has passed, every intent is decided, every wait has ended, and
    every host holds what the oracle makes of the intents in the log, in its core and in its data
    plane; publisher and hosts agree about marks and digests.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from goalstate.agent.reports import applied
from goalstate.bus.memory import MemoryBroker
from goalstate.dpm.core import Core, Requirement
from goalstate.dpm.inventory import Publication, StreamState
from goalstate.dpm.recovery import changes_of
from goalstate.gs import envelope as envelopes
from goalstate.gs import packing
from goalstate.gs.derivation import Key
from goalstate.gs.envelope import MessageKind
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.resources import STATES_FIELD, Kind, Resource
from goalstate.gs.streams import ORIGIN, Channel, Mark, StreamId, StreamKind, inbox_stream
from goalstate.gs.topics import Topics
from goalstate.scale import oracle
from goalstate.scale.simulate.hosts import Agent


class Violation(Exception):
    """A law is broken; the text says which, and by what."""


class _Operation(NamedTuple):
    host: str
    kind: Kind
    id: str
    revision: int
    deletion: bool


class Told:
    """Law 1, for what agents tell."""

    def __init__(self) -> None:
        self._marks: dict[tuple[str, int], dict[str, Mark]] = {}
        #: By host and incarnation: numbers of reports that said that a stream was dropped.
        self._dropped: dict[tuple[str, int, str], list[int]] = defaultdict(list)
        #: The same with what was told of the stream until then.
        self._had: dict[tuple[str, int, str], list[tuple[int, Mark]]] = defaultdict(list)
        #: By publisher and host: incarnation, number of the report, and marks.
        self._believed: dict[tuple[str, str], tuple[int, int, dict[StreamId, Mark]]] = {}

    def told(self, report: agent_pb2.HostReport) -> None:
        marks = self._marks.setdefault((report.host, report.incarnation), {})
        for stream in report.dropped:
            had = marks.pop(stream, ORIGIN)
            self._dropped[report.host, report.incarnation, stream].append(report.number)
            self._had[report.host, report.incarnation, stream].append((report.number, had))
        for one in report.streams:
            mark = Mark(one.epoch, one.sequence)
            before = marks.get(one.stream)
            if before is not None and mark < before:
                raise Violation(
                    f"{report.host} tells {one.stream} at {mark} after it told {before}"
                )
            marks[one.stream] = mark

    def believed(
        self,
        publisher: str,
        host: str,
        incarnation: int,
        number: int,
        applied: dict[StreamId, Mark],
    ) -> None:
        """What a publisher holds of a host after a report. Raises Violation."""
        before = self._believed.get((publisher, host))
        self._believed[publisher, host] = (incarnation, number, applied)
        if before is None or before[0] != incarnation:
            return
        for stream, mark in before[2].items():
            now = applied.get(stream)
            if now is not None and now < mark:
                drops = self._dropped[host, incarnation, str(stream)]
                if not any(before[1] < drop <= number for drop in drops):
                    raise Violation(
                        f"{publisher} believes {host} to be at {now} of {stream}, after {mark}"
                    )

    def has_left(self, agent: Agent, stream: StreamId, number: int) -> bool:
        """Did an agent drop a stream since it sent the report of that number?"""
        drops = self._dropped[agent.host, agent.incarnation, str(stream)]
        return stream in agent.core.news.dropped or any(drop > number for drop in drops)

    def had(self, agent: Agent, stream: StreamId, mark: Mark, number: int) -> bool:
        """Did an agent tell that it is at a mark, and drop the stream in a report after the one of
        that number?"""
        told = self._had[agent.host, agent.incarnation, str(stream)]
        return any(drop > number and had >= mark for drop, had in told)

    def forget_beliefs(self, publisher: str) -> None:
        """The publisher is no more."""
        for key in [key for key in self._believed if key[0] == publisher]:
            del self._believed[key]


class Streams:
    """What is on the streams, read from the topics once, for law 2; of those on sessions, what is
    durable."""

    def __init__(self, broker: MemoryBroker, topics: Topics) -> None:
        self._broker = broker
        self._topics = topics
        self._read: dict[StreamId, tuple[int, list[tuple[Mark, list[_Operation]]]]] = {}
        #: Of those of the streams that went to sessions.
        self._carried: dict[StreamId, dict[Mark, list[_Operation]]] = defaultdict(dict)
        #: First messages on another channel, and which that is.
        self.switches: dict[tuple[StreamId, Mark], Channel] = {}
        #: Messages that no writer of the log wrote, by stream, mark and digest.
        self.foreign: set[tuple[StreamId, Mark, str]] = set()

    def durable(self, publications: Iterable[Publication]) -> None:
        """What came of a change that is in the log; told of by each publisher that knows it."""
        for envelope, payload, channel, begins in publications:
            if begins:
                self.switches[envelope.stream, envelope.mark] = channel
            if channel is Channel.SESSION and envelope.mark not in self._carried[envelope.stream]:
                operations = list(_operations(envelope.stream, payload))
                self._carried[envelope.stream][envelope.mark] = operations

    def misled(self, agent: Agent, stream: StreamId) -> bool:
        """Has it read what a former publisher said, and nothing of the new one that voids that?"""
        following = agent.core.streams.get(stream)
        if following is None:
            return False
        at = following.live.mark
        return any(
            of == stream and mark.epoch == at.epoch and mark <= at for of, mark, _ in self.foreign
        )

    def last_operations(self, stream: StreamId, up_to: Mark) -> Iterator[_Operation]:
        """The newest operation on each resource, up to a mark."""
        newest: dict[tuple[str, Kind, str], _Operation] = {}
        carried = self._carried.get(stream)
        messages = self._messages(stream)
        if carried:
            messages = sorted([*messages, *carried.items()], key=lambda one: one[0])
        for mark, operations in messages:
            if mark <= up_to:
                for operation in operations:
                    newest[operation.host, operation.kind, operation.id] = operation
        return iter(sorted(newest.values()))

    def _messages(self, stream: StreamId) -> list[tuple[Mark, list[_Operation]]]:
        """In the order of their marks, each once."""
        count, found = self._read.get(stream, (0, []))
        messages = self._broker.messages(self._topics.of_stream(stream))
        if len(messages) > count:
            known = {mark for mark, _ in found}
            for message in messages[count:]:
                envelope = envelopes.from_properties(message.properties)
                place = (stream, envelope.mark, envelope.digest)
                if (
                    envelope.kind is MessageKind.DELTA
                    and envelope.mark not in known
                    and place not in self.foreign
                ):
                    known.add(envelope.mark)
                    found.append((envelope.mark, list(_operations(stream, message.payload))))
            found.sort(key=lambda one: one[0])
            self._read[stream] = (len(messages), found)
        return found


def _operations(stream: StreamId, payload: bytes) -> Iterator[_Operation]:
    state = goalstate_pb2.GoalStateV2.FromString(payload)
    of: dict[tuple[int, str], str] = {}
    for host, section in state.host_resources.items():
        for named in section.resources:
            of[named.type, named.id] = host
        for fact in section.subscriptions:
            gone = fact.subscribe_operation == goalstate_pb2.Unsubscribe
            yield _Operation(host, Kind.SUBSCRIPTION, fact.stream, fact.revision_number, gone)
    for kind, field in STATES_FIELD.items():
        for id_, entry in getattr(state, field).items():
            host = of[int(kind), id_] if stream.kind is StreamKind.INBOX else ""
            revision = entry.configuration.revision_number
            deletion = entry.operation_type == resources_pb2.DELETE
            yield _Operation(host, kind, id_, revision, deletion)


class WatchedStream(StreamState):
    """Of a stream, which revisions of a host's subscription are of one time that it followed: a
    stream that goes to another channel changes it, too."""

    __slots__ = ("renewed",)

    def __init__(self) -> None:
        super().__init__()
        #: How often the subscription of each host changed since it began to follow.
        self.renewed: dict[str, int] = {}

    def follow(self, host: str, follows: bool) -> None:
        if follows:
            self.renewed[host] = self.renewed.get(host, -1) + 1
        else:
            self.renewed.pop(host, None)
        super().follow(host, follows)


def followers(core: Core, requirement: Requirement) -> dict[str, int]:
    """Hosts that a requirement is for, with the revision of the subscription by which they began to
    follow (of an inbox: 0)."""
    hosts = core.concerned(requirement)
    return {
        host: _joined(core, host, requirement.stream)
        for host in sorted(hosts)
        if core.follows(host, requirement.stream)
    }


def _joined(core: Core, host: str, stream: StreamId) -> int:
    record = core.memory.records.get(Key(Kind.SUBSCRIPTION, str(stream), host))
    if record is None:
        return 0
    state = core.streams[stream]
    assert isinstance(state, WatchedStream)
    return record.revision - state.renewed.get(host, 0)


def judged(
    agents: Mapping[str, list[Agent]], since_ns: int, heard: Mapping[str, set[int]]
) -> dict[str, list[Agent]]:
    """Of each host the agents by which a wait that began then is judged. `heard`: incarnations that
    the publisher had heard of last."""
    return {
        host: [
            agent
            for agent in all_
            if agent.stopped_ns is None
            or agent.stopped_ns >= since_ns
            # Of one that was started anew and cut off nobody can know.
            or agent.incarnation in heard.get(host, ())
        ]
        for host, all_ in agents.items()
    }


def check_wait(
    requirement: Requirement,
    concerned: dict[str, int],
    core: Core,
    agents: dict[str, list[Agent]],
    streams: Streams,
    expired: list[str],
    has_left: Callable[[Agent, StreamId, Mark], bool],
) -> None:
    """Law 2, for one requirement of a change that is said to have converged.

    `concerned`: `followers` before the wait began. `core`: the newest there is. `agents`: of each
    host, those that lived since. `has_left`: did one drop a stream since what was heard of it, or
    since the wait began, when it was at the mark? A
    host that left the stream since, to come back to it, or has yet to learn that it did, had what
    was wanted before it left; one that is misled by a former publisher is so until
    the new one says more. Raises Violation.
    """
    stream, mark, *_ = requirement
    hosts = {
        host
        for host, joined in concerned.items()
        if host not in expired
        and core.follows(host, stream)
        and _joined(core, host, stream) == joined
    }
    if not hosts:
        return
    operations = list(streams.last_operations(stream, mark))
    for host in sorted(hosts):
        if any(
            _told_of(agent, stream) < concerned[host] or has_left(agent, stream, mark)
            for agent in agents.get(host, [])
            if stream.kind is not StreamKind.INBOX
        ):
            continue
        if stream.kind is StreamKind.INBOX and any(a.left for a in agents.get(host, [])):
            continue  # it was not waited for any more, and is another host since it came back
        if any(streams.misled(agent, stream) for agent in agents.get(host, [])):
            continue
        wanted = [one for one in operations if one.host in ("", host)]
        lacks = [
            [one for one in wanted if not _holds(agent, stream, one, core)]
            for agent in agents.get(host, [])
        ]
        if not lacks:
            raise Violation(f"converged at {stream} {mark}, but {host} has no agent")
        fewest = min(lacks, key=len)
        if fewest:
            one = fewest[0]
            what = "still holds" if one.deletion else "does not hold"
            raise Violation(
                f"converged at {stream} {mark}, but {host} {what} "
                f"{one.kind.name.lower()}/{one.id} at revision {one.revision}"
                + (f" (and {len(fewest) - 1} more)" if len(fewest) > 1 else "")
            )


def _told_of(agent: Agent, stream: StreamId) -> int:
    """The revision of the subscription that an agent holds; 0: none."""
    inbox = agent.core.streams.get(agent.core.inbox)
    held = inbox.live.held.get(Kind.SUBSCRIPTION, {}) if inbox is not None else {}
    subscription = held.get(str(stream))
    return subscription.revision if subscription is not None else 0


def _holds(agent: Agent, stream: StreamId, one: _Operation, core: Core) -> bool:
    """Is it as that operation of a stream, or a later one, made it?

    What it was in another VPC, whose stream has yet to say that it left, is no affair of this one.
    """
    newest = max(
        (
            record.revision
            for key in {Key(one.kind, one.id, one.host), Key(one.kind, one.id)}
            if (record := core.memory.records.get(key)) is not None
        ),
        default=one.revision,
    )
    if one.kind is Kind.SUBSCRIPTION:
        followed = agent.core.streams.get(StreamId.parse(one.id))
        follows = followed is not None and not followed.leaving
        return newest > one.revision or follows != one.deletion
    held = agent.programmed.get((one.kind, one.id))
    if held is None or any(
        other.id != stream and other.applied(one.kind).get(one.id) == held
        for other in agent.core.streams.values()
    ):
        return one.deletion or newest > one.revision
    return held.revision >= one.revision


# --- the log ---


def changes(broker: MemoryBroker, topics: Topics) -> list[log_pb2.Change]:
    """The changes that count, by the plainest reading of the log: each that is the next one.

    Of a session only what comes between its incarnation, the first of its epoch, and the next one.
    """
    found: list[log_pb2.Change] = []
    parts: dict[str, list[bytes]] = defaultdict(list)
    had = Counter[str]()
    owner, epoch = "", 0
    for message in broker.messages(topics.intent_log):
        session, number = message.properties["session"], int(message.properties["number"])
        if number <= had[session]:
            continue
        part, _, of = message.properties["part"].partition("/")
        if number != had[session] + 1 or int(part) == 1:
            parts[session] = []  # what was begun is not gone on with
        had[session] = number
        if int(part) != len(parts[session]) + 1:
            continue
        parts[session].append(message.payload)
        if len(parts[session]) == int(of):
            record = log_pb2.Record.FromString(b"".join(parts.pop(session)))
            if record.incarnation.epoch > epoch:
                owner, epoch = session, record.incarnation.epoch
            changes = changes_of(record)
            if session == owner and changes and changes[0].change == len(found) + 1:
                found += changes
    return found


def in_groups(broker: MemoryBroker, topics: Topics) -> int:
    """How many changes share their record with another one, in records of one part."""
    records = (
        log_pb2.Record.FromString(message.payload)
        for message in broker.messages(topics.intent_log)
        if message.properties["part"] == "1/1"
    )
    return sum(len(record.group.changes) for record in records)


# --- in the end ---


def unsettled(core: Core, agents: dict[str, Agent], groups: dict[str, str]) -> list[str]:
    """Where hosts and publisher do not agree yet; `groups`: of the hosts of the region."""
    found = []
    if agents.keys() != groups.keys():
        found.append(f"agents run on {sorted(agents)}, hosts are {sorted(groups)}")
    for name, agent in agents.items():
        if agent.group != groups.get(name):
            found.append(f"{name}: its agent is in another group")
        streams = agent.core.streams
        should = {s for s, head in core.streams.items() if head.is_followed_by(name)}
        should.add(inbox_stream(agent.group))
        if streams.keys() != should:
            odd = sorted(map(str, streams.keys() ^ should))
            found.append(f"{name} follows {odd} wrongly, or not")
        for stream_id, stream in streams.items():
            head = core.streams.get(stream_id)
            if head is None:
                continue
            if stream.watermark != head.mark:
                found.append(f"{name} {stream_id}: at {stream.watermark}, not {head.mark}")
            inbox = stream_id == agent.core.inbox
            digest = core.inventory.host_digest(name) if inbox else head.digest
            if stream.live.digest != digest:
                found.append(f"{name} {stream_id}: another digest than the publisher")
        for stream_id, _, id_, fault in agent.core.exceptions():
            found.append(f"{name} {stream_id} {id_}: {fault.reason}")
    return found


def check_hosts(
    accepted: list[log_pb2.Change], agents: dict[str, Agent], *, own_stream: bool
) -> None:
    """Every host holds what the intents say, in its core and its data plane. Raises Violation."""
    expected = oracle.expected(
        (change.intent for change in accepted), security_groups_own_stream=own_stream
    )
    for name, agent in sorted(agents.items()):
        core = agent.core
        held = (
            (
                str(stream.id),
                goalstate_pb2.GoalStateV2.FromString(packing.encode(applied(core, stream))),
            )
            for stream in core.streams.values()
        )
        differences = oracle.compare(expected, name, held)
        if differences:
            first = differences[0]
            raise Violation(
                f"{first.host}: {first.kind}/{first.id} {first.what} "
                f"({len(differences)} differences from the intents)"
            )
        said: dict[tuple[Kind, str], Resource] = {
            (kind, id_): resource
            for stream in core.streams.values()
            for kind in stream.kinds
            if kind is not Kind.SUBSCRIPTION
            for id_, resource in stream.applied(kind).items()
        }
        if agent.programmed != said:
            odd = sorted(
                f"{kind.name.lower()}/{id_}"
                for kind, id_ in said.keys() | agent.programmed.keys()
                if said.get((kind, id_)) != agent.programmed.get((kind, id_))
            )
            raise Violation(f"{name}: its data plane differs in {odd}")
        if any(core.counters.drifts.values()):
            found = dict(core.counters.drifts)
            raise Violation(f"{name}: its audits found {found}, where nothing had drifted")
