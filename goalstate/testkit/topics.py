"""What is on the topics of a region, decoded: what a publisher put there, and what hosts report.

A message of a stream that is none is no silence: reading it fails the test, and says which message
and which property or what of its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from google.protobuf.message import DecodeError

from goalstate.bus.base import EARLIEST, Message
from goalstate.gs import digest as digests
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import Envelope
from goalstate.gs.errors import EnvelopeError, MessageError
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.reports import host_reports
from goalstate.gs.versions import decode
from goalstate.testkit.errors import BadMessage, hide
from goalstate.testkit.laws import Log
from goalstate.testkit.region import Region, stream_id

__tracebackhide__ = hide


class Read(NamedTuple):
    """One message of a stream."""

    envelope: Envelope
    state: goalstate_pb2.GoalStateV2
    #: As they are on the topic.
    properties: Mapping[str, str]
    payload: bytes
    #: Of the bus: a reader that starts here gets what comes after.
    position: bytes


class TopicReader:
    """Reads topics of a region. Streams are named vpc/ID, sg/ID or inbox/GROUP."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def topic(self, stream: str) -> str:
        """The topic that a stream travels on. Raises KitError for what names no stream."""
        return self._region.topic(stream)

    def raw(self, topic: str) -> list[Message]:
        """All messages of any topic, as they are. Raises BusError."""
        connection = self._region.connection

        async def read() -> list[Message]:
            return [message async for message in connection.bus.read_to_end(topic, EARLIEST)]

        return connection.call(read())

    def stream(self, stream: str) -> list[Read]:
        """All messages of a stream, oldest first. Raises BadMessage, KitError, BusError."""
        return self._decoded(stream, self.topic(stream))

    def checkpoints(self, stream: str) -> list[Read]:
        """All messages of the checkpoints of a stream. Raises as `stream`."""
        return self._decoded(stream, self._region.topics.checkpoints_of(stream_id(stream)))

    def assert_lawful(self, stream: str) -> list[Read]:
        """The messages of a stream, which all keep the laws of a stream (see `laws`).

        Raises BadMessage, with every law that the first bad message breaks.
        """
        log = Log()
        found = self.stream(stream)
        for number, (envelope, _, _, payload, _) in enumerate(found, 1):
            broken = list(log.read(envelope, payload))
            if broken:
                raise BadMessage(
                    f"message {number} of {len(found)} on {stream} ({envelope.mark}) breaks the "
                    "laws of a stream:" + "".join(f"\n  {law}" for law in broken)
                )
        return found

    def await_stream(
        self,
        stream: str,
        condition: Callable[[list[Read]], object],
        what: str,
        *,
        within: float | None = None,
    ) -> list[Read]:
        """Wait until the messages of a stream are as they must be, and give them.

        `what` names the condition. Raises ConditionNotMet, and as `stream`.
        """

        def read() -> list[Read] | None:
            messages = self.stream(stream)
            return messages if messages and condition(messages) else None

        found = self._region.until(read, f"on {stream}: {what}", within=within)
        assert found is not None
        return found

    def reports(self, host: str = "") -> list[agent_pb2.HostReport]:
        """What hosts (or one) reported. In order for each host. Raises BadMessage, BusError."""
        topics = self._region.topics
        found = []
        for shard in range(topics.report_shards):
            topic = topics.reports(shard)
            for number, message in enumerate(self.raw(topic), 1):
                try:
                    told = list(host_reports(agent_pb2.Report.FromString(message.payload)))
                except (DecodeError, ValueError) as error:
                    raise BadMessage(
                        f"message {number} on {topic} is no goalstate.agent.v1.Report: {error}"
                    ) from None
                found += [one for one in told if host in ("", one.host)]
        return sorted(found, key=lambda one: (one.host, one.incarnation, one.number))

    def await_report(
        self,
        host: str,
        condition: Callable[[agent_pb2.HostReport], object],
        what: str,
        *,
        within: float | None = None,
    ) -> agent_pb2.HostReport:
        """Wait until a host reports something, and give the first such report.

        `what` names it. Raises ConditionNotMet, BadMessage, BusError.
        """

        def read() -> agent_pb2.HostReport | None:
            return next(filter(condition, self.reports(host)), None)

        found = self._region.until(read, f"host {host} reports {what}", within=within)
        assert found is not None
        return found

    def _decoded(self, stream: str, topic: str) -> list[Read]:
        found = []
        for number, message in enumerate(self.raw(topic), 1):
            try:
                found.append(_read(stream, message))
            except MessageError as error:
                shown = ", ".join(f"{k}={v}" for k, v in sorted(message.properties.items()))
                raise BadMessage(
                    f"message {number} on {topic} is none of {stream}: {error}\n"
                    f"  properties: {shown or 'none'}\n"
                    f"  payload: {len(message.payload)} bytes, {message.payload[:32].hex()}…"
                ) from None
        return found


def _read(stream: str, message: Message) -> Read:
    """Raises MessageError."""
    envelope = envelopes.from_properties(message.properties)
    if str(envelope.stream) != stream:
        raise EnvelopeError("stream", f"says that it is of {envelope.stream}")
    checksum = digests.checksum(message.payload)
    if envelope.checksum != checksum:
        raise EnvelopeError("checksum", f"is {envelope.checksum}, that of the bytes is {checksum}")
    state = decode(message.payload, declared=envelope.schema)
    if not isinstance(state, goalstate_pb2.GoalStateV2):
        raise EnvelopeError("schema", f"is {envelope.schema}, and 102 was expected")
    return Read(envelope, state, message.properties, message.payload, message.position)
