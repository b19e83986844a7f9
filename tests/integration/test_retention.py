"""On Apache Pulsar: an agent fetches what it missed, and what is trimmed strands nobody.

Publisher and hosts are processes of their own; what an agent fetched is what its metrics count.
"""

from __future__ import annotations

import asyncio
import http.client
import urllib.request
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from goalstate.bus import admin
from goalstate.bus.base import EARLIEST, Message
from goalstate.bus.brokers import Broker
from goalstate.bus.connect import connect
from goalstate.bus.errors import PositionGone
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import CheckpointPlace, Envelope
from goalstate.gs.intent import Intent
from goalstate.gs.streams import StreamId, inbox_stream, vpc_stream
from goalstate.scale.generate import Region
from tests.integration.processes import System, until

REGION = Region(hosts=4, vpcs=(400,), seed=7, group_size=4)
PORTS = 200
VPC = vpc_stream(REGION.vpc_id(1))
#: With a checkpoint after each change, or each few that come together.
SETTINGS = {"retention_s": 600, "checkpoint_min_bytes": 0, "checkpoint_factor": 0}


class Pulsar(System):
    """A region on Apache Pulsar whose agents store what they hold."""

    @property
    def admin_url(self) -> str:
        assert self.broker.admin_url is not None
        return self.broker.admin_url

    def start_agents(self, name: str) -> Counts:
        """All hosts, with the state that agents of this name stored."""
        arguments = ["agent", "run", *self.common, "--inspect", "127.0.0.1:0"]
        arguments += ["--hosts", str(REGION.hosts), "--group-size", "4"]
        arguments += ["--state-dir", str(self.directory / name)]
        self.fleets[name], facts = self.start(name, *arguments, GOALSTATE_AGENT_LEASE_S="3")
        return Counts(facts["metrics"])

    # --- what is on the topics ---

    def newest(self, stream: StreamId) -> Envelope:
        return envelopes.from_properties(self.last(self.topic(stream)).properties)

    def has_checkpoint_since(self, stream: StreamId, before: Envelope) -> bool:
        newest = self.newest(stream)
        return newest.checkpoint not in (None, before.checkpoint) and newest.mark > before.mark

    def is_all_after(self, stream: StreamId, closed: CheckpointPlace) -> bool:
        """Is what the newest checkpoint needs after these positions of its topic and the log?"""
        place = self.newest(stream).checkpoint
        return place is not None and place.begin > closed.begin and place.log > closed.log

    def reaches_back(self, topic: str, position: bytes) -> bool:
        """Does a topic still have what came after a position?"""

        async def read() -> bool:
            bus = await connect(self.broker.url)
            try:
                async for _ in bus.read_to_end(topic, position):
                    break
            except PositionGone:
                return False
            finally:
                await bus.close()
            return True

        return asyncio.run(read())

    def first(self, topic: str) -> bytes:
        """The position of a topic's first message."""

        async def read() -> bytes:
            bus = await connect(self.broker.url)
            try:
                async for message in bus.read_to_end(topic, EARLIEST):
                    return message.position
            finally:
                await bus.close()
            raise AssertionError(f"{topic} is empty")

        return asyncio.run(read())

    def last(self, topic: str) -> Message:
        async def read() -> Message | None:
            bus = await connect(self.broker.url)
            try:
                return await bus.last(topic)
            finally:
                await bus.close()

        message = asyncio.run(read())
        assert message is not None, topic
        return message

    def close_ledgers(self, *topics: str) -> None:
        """As the broker does by itself when they are full or old."""
        for topic in topics:
            self._admin("PUT", f"{admin.topic_path(topic)}/unload")

    def trim(self, *topics: str) -> None:
        """Let all closed ledgers be older than the region's retention."""
        none = {"retentionTimeInMinutes": 0, "retentionSizeInMB": 0}
        self._admin("POST", f"/admin/v2/namespaces/goalstate/{self.region}/retention", none)
        for topic in topics:
            self._admin("POST", f"{admin.topic_path(topic)}/trim")

    def _admin(self, method: str, path: str, body: object = None) -> None:
        status, answer = admin.request(self.admin_url, method, path, body)
        assert status < http.client.BAD_REQUEST, (path, status, answer)


class Counts:
    """What the hosts of an agent process fetched since it started, by its metrics."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/metrics"

    def __call__(self, name: str, **labels: str) -> float:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self._url, timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"goalstate_agent_{name}_total" and sample.labels == labels:
                    return float(sample.value)
        raise AssertionError(f"no metric {name} {labels}")


def more_ports(first: int, number: int) -> Iterator[Intent]:
    for index in range(first, first + number):
        yield Intent(ports=(REGION.port(1, PORTS + index),))


def test_agents_fetch_what_they_missed_and_a_checkpoint_where_that_is_trimmed(
    apache_broker: Broker, tmp_path: Path
) -> None:
    with Pulsar(apache_broker, tmp_path) as system:
        log, checkpoints = system.topic(VPC), system.topics.checkpoints_of(VPC)
        system.start_dpm(**SETTINGS)
        system.apply(REGION.host_intents())
        system.start_agents("agents")
        system.apply(islice(REGION.vpc_intents(1, PORTS), 1))
        system.converged()
        system.check()
        until(lambda: system.newest(VPC).checkpoint, "there is a checkpoint")

        # Missed, and on the log.
        system.fleets["agents"].kill()
        system.apply(more_ports(0, 100))
        missed, ports = 100 * REGION.hosts, PORTS + 100
        counts = system.start_agents("agents")
        system.all_live()
        system.converged()
        fetched = counts("messages", stream_kind="vpc")
        print(f"fetched {fetched:.0f} messages, {counts('message_bytes'):.0f} bytes")
        # What came just before the kill may not have been stored yet.
        assert missed <= fetched <= missed + 2 * REGION.hosts
        assert counts("resyncs") == counts("gaps") == 0
        system.check()

        # Missed, and trimmed: closed ledgers go. Those that are open have the newest checkpoint,
        # the messages after which it and the log are read, and what tells of it; with a retention
        # of time that is always so.
        system.fleets["agents"].kill()
        stored = system.first(log)
        closed = CheckpointPlace(system.last(checkpoints).position, system.last(log).position)
        system.close_ledgers(log, checkpoints)
        while not system.is_all_after(VPC, closed):
            before = system.newest(VPC)
            system.apply(more_ports(ports - PORTS, 1))
            ports += 1
            until(partial(system.has_checkpoint_since, VPC, before), "there is a newer checkpoint")
        inbox = inbox_stream(REGION.host(0).group)
        others = (system.topic(inbox), system.topics.checkpoints_of(inbox))

        def is_trimmed() -> bool:
            # The broker learns of a policy by and by.
            system.trim(log, checkpoints, *others, system.topics.intent_log)
            return not system.reaches_back(log, stored)

        until(is_trimmed, "the log is trimmed")
        counts = system.start_agents("agents")
        system.all_live()
        system.converged()
        assert counts("resyncs") >= REGION.hosts
        assert counts("digest_mismatches") == 0
        system.check()

        # The log of intents is whole, whatever the retention, and who is new finds what he needs.
        system.kill_dpm()
        system.close_ledgers(system.topics.intent_log)
        system.trim(system.topics.intent_log)
        system.start_dpm(**SETTINGS)
        assert system.client.status().objects["port"] == ports
        system.fleets["agents"].kill()
        system.start_agents("new")
        system.apply(more_ports(ports - PORTS, 1))
        system.all_live()
        system.converged()
        system.check()
