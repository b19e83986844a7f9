"""A host agent of one's own: what a host must do, in one file, and nothing of `goalstate.agent`.

    python agent.py --broker URL --region NAME --host h1 --group rack-1 --state state.json

It needs a client of the broker (`goalstate.bus`; with Pulsar, `pulsar-client` would do as well) and
the generated protobuf classes. It follows the inbox of its group, which brings its ports and the
streams that it needs; it follows these; it takes the messages of each stream in their order, and
reports how far it is. What it holds it writes to a file, as JSON with each configuration in
hexadecimal digits: a real one would program a data plane instead.

It is small, and leaves out what makes a start quick and drift visible: it reads every topic from
its beginning (no checkpoints, no stored positions), and keeps no digests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from goalstate.bus.base import EARLIEST, Bus, Message, Producer, Reader
from goalstate.bus.connect import connect
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2

#: Seconds for which the publisher believes that we live, and between two reports.
LEASE_S, HEARTBEAT_S = 6.0, 2.0
#: Word for a kind → its map in GoalStateV2, and its number where a host's resources are listed.
KINDS = {
    "vpc": ("vpc_states", resources_pb2.VPC),
    "subnet": ("subnet_states", resources_pb2.SUBNET),
    "security_group": ("security_group_states", resources_pb2.SECURITYGROUP),
    "dhcp": ("dhcp_states", resources_pb2.DHCP),
    "router": ("router_states", resources_pb2.ROUTER),
    "gateway": ("gateway_states", resources_pb2.GATEWAY),
    "port": ("port_states", resources_pb2.PORT),
    "neighbor": ("neighbor_states", resources_pb2.NEIGHBOR),
}
Mark = tuple[int, int]


class Gap(Exception):
    """A message is not the next one of its stream."""


class Stream:
    """What we hold of one stream, and how far we have read it."""

    def __init__(self, name: str, topic: str) -> None:
        self.name = name
        self.topic = topic
        self.reader: Reader | None = None
        #: Epoch and sequence of the message that was taken last, its position, and when that was.
        self.mark: Mark = (0, 0)
        self.position = EARLIEST
        self.applied_ns = 0
        self.tables: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        self.revisions: dict[tuple[str, str], int] = {}

    def is_next(self, properties: Any) -> bool:
        """Is a message to be taken now? Not if it is known already. Raises Gap."""
        if properties["kind"] != "delta":
            return False  # it tells of a checkpoint, and changes nothing
        mark = (int(properties["epoch"]), int(properties["seq"]))
        if mark <= self.mark:
            return False  # a duplicate, or of a writer that was replaced
        if mark[0] == self.mark[0]:
            expected = (self.mark[0], self.mark[1] + 1)
        else:
            after = properties.get("after", "0/0").split("/")
            if (int(after[0]), int(after[1])) != self.mark:
                raise Gap(f"{mark} comes after {after}, and we are at {self.mark}")
            expected = (mark[0], 1)
        if mark != expected:
            raise Gap(f"{mark} came, and {expected} was to come")
        self.mark = mark
        return True

    def take(self, state: goalstate_pb2.GoalStateV2, mine: set[tuple[int, str]] | None) -> None:
        """Bring the tables up to date; `mine`: only these, by number of the kind and id."""
        for kind, (field, number) in KINDS.items():
            for id_, entry in getattr(state, field).items():
                if mine is not None and (number, id_) not in mine:
                    continue
                revision = entry.configuration.revision_number
                if revision <= self.revisions.get((kind, id_), 0):
                    continue  # never go back
                self.revisions[kind, id_] = revision
                if entry.operation_type == resources_pb2.DELETE:
                    self.tables[kind].pop(id_, None)
                else:
                    self.tables[kind][id_] = entry.configuration


class Agent:
    def __init__(self, bus: Bus, region: str, host: str, group: str, file: Path) -> None:
        self.bus = bus
        self.host = host
        self.file = file
        self.prefix = f"persistent://goalstate/{region}"
        self.inbox = f"inbox/{group}"
        self.streams: dict[str, Stream] = {}
        self.arrived: asyncio.Queue[tuple[Stream, Message]] = asyncio.Queue()
        self.reports: Producer
        # A later start of the same host has a higher incarnation.
        self.incarnation = time.time_ns()
        self.number = 0

    async def run(self, group: str) -> None:
        self.reports = await self.bus.open_producer(f"{self.prefix}/reports.0")
        await self.follow(self.inbox, f"{self.prefix}/inbox.{group}.log")
        while True:
            self.write()
            self.report()
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    stream, message = await self.arrived.get()
            except TimeoutError:
                continue
            await self.receive(stream, message)
            while not self.arrived.empty():
                await self.receive(*self.arrived.get_nowait())

    # --- streams ---

    async def follow(self, name: str, topic: str) -> None:
        if name not in self.streams:
            self.streams[name] = Stream(name, topic)
            await self.read(self.streams[name])

    async def read(self, stream: Stream) -> None:
        """Read a stream after the message that was taken last."""
        if stream.reader is not None:
            await stream.reader.close()

        def arrived(message: Message) -> None:
            self.arrived.put_nowait((stream, message))

        stream.reader = await self.bus.open_reader(stream.topic, stream.position, arrived)

    async def leave(self, name: str) -> None:
        stream = self.streams.pop(name, None)
        if stream is not None and stream.reader is not None:
            await stream.reader.close()

    async def receive(self, stream: Stream, message: Message) -> None:
        if self.streams.get(stream.name) is not stream:
            return  # it was left meanwhile
        try:
            if not stream.is_next(message.properties):
                return
        except Gap as gap:
            print(f"{stream.name}: {gap}: reading again", file=sys.stderr)
            await asyncio.sleep(0.1)  # what is lost for good must not keep us busy
            await self.read(stream)
            return
        stream.position = message.position
        state = goalstate_pb2.GoalStateV2.FromString(message.payload)
        if stream.name == self.inbox:
            section = state.host_resources[self.host]
            stream.take(state, {(one.type, one.id) for one in section.resources})
            for fact in section.subscriptions:
                if fact.subscribe_operation == goalstate_pb2.Subscribe:
                    await self.follow(fact.stream, fact.topic)
                else:
                    await self.leave(fact.stream)
        else:
            stream.take(state, None)
        stream.applied_ns = time.time_ns()

    # --- what we say ---

    def report(self) -> None:
        """Say how far we are with every stream. Cheap, so it is done at each change."""
        self.number += 1
        report = agent_pb2.Report(clock_id=f"clock of {self.host}", sent_unix_ns=time.time_ns())
        told = report.hosts.add(
            host=self.host,
            incarnation=self.incarnation,
            number=self.number,
            full=True,
            lease_s=LEASE_S,
        )
        for stream in self.streams.values():
            if stream.mark > (0, 0):
                epoch, sequence = stream.mark
                told.streams.add(
                    stream=stream.name,
                    epoch=epoch,
                    sequence=sequence,
                    applied_unix_ns=stream.applied_ns,
                )
        sent = self.reports.send(report.SerializeToString())
        sent.add_done_callback(partial(print_failure, "the report is lost; the next one says all"))

    def write(self) -> None:
        """Write down what we hold; whoever reads the file sees it before or after, whole."""
        tables: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
        for stream in self.streams.values():
            for kind, table in stream.tables.items():
                for id_, configuration in table.items():
                    tables[kind][id_] = configuration.SerializeToString().hex()
        follows = sorted(self.streams.keys() - {self.inbox})
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps({"follows": follows, "tables": tables}), "utf-8")
        os.replace(part, self.file)


def print_failure(what: str, done: asyncio.Future[bytes]) -> None:
    if not done.cancelled() and done.exception() is not None:
        print(f"{what}: {done.exception()}", file=sys.stderr)


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for option in ("broker", "region", "host", "group", "state"):
        parser.add_argument(f"--{option}", required=True)
    given = parser.parse_args()
    bus = await connect(given.broker)
    try:
        agent = Agent(bus, given.region, given.host, given.group, Path(given.state))
        await agent.run(given.group)
    finally:
        await bus.close()


if __name__ == "__main__":
    asyncio.run(main())
