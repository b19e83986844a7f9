"""What a neighbor costs on the wire: real messages on real topics, counted by the broker."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
from collections.abc import Sequence
from itertools import product
from time import monotonic
from typing import Any
from urllib.parse import quote

from bench.hold import messages
from bench.report import Goal, Section, Table
from bench.samples import Samples, written
from bench.system import Brokers, MeasurementFailed, Progress
from goalstate.bus import admin
from goalstate.bus.base import EARLIEST, Bus, Message
from goalstate.bus.connect import connect
from goalstate.dpm.inventory import Publication
from goalstate.gs import envelope as envelopes
from goalstate.gs.streams import StreamKind
from goalstate.scale.generate import Region

GOAL_BYTES = 40
HOSTS = 1000
COMPRESSIONS = ("none", "lz4", "zstd")
#: What a DPM uses unless it is told otherwise.
DEFAULT = "lz4"
#: Seconds for the broker's counters to say what it has delivered.
_COUNTED_S = 30.0
_NAMESPACE = "goalstate"

METHOD = """\
The messages of one VPC's stream, as the publisher's core makes them for {neighbors:,} ports on
{hosts} hosts, are published to a topic and read by one reader. Counted by the broker
(`bytesInCounter`, `storageSize` and `bytesOutCounter` of the topic's statistics): everything that
travels as an entry, with the envelope's properties and Pulsar's own metadata, and with the VPC's
other resources (subnets, security groups), divided by the neighbors. Not counted: what TCP and the
broker's commands add. Ids are readable (`port-0001-000042`) or look like UUIDs. `ports an intent`
is how many ports come in one change, and so in one message, as far as 512 KB hold them. The
publisher's default compression is LZ4."""


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    neighbors = 20_000 if quick else 100_000
    broker = brokers.get()
    if not broker.admin_url:
        raise MeasurementFailed(
            "the broker's counters are read through its admin REST API: give --admin-url"
        )
    cases = [
        (ids, piece, compression)
        for (ids, piece), compression in product(
            (("readable", 10_000), ("UUID", 10_000), ("readable", 100)), COMPRESSIONS
        )
    ]
    data = []
    made: dict[tuple[str, int], list[Publication]] = {}
    for ids, piece, compression in cases:
        if (ids, piece) not in made:
            progress(f"wire: deriving {neighbors:,} neighbors, {ids} ids, {piece:,} an intent")
            region = Region(hosts=HOSTS, vpcs=(neighbors,), uuids=ids == "UUID", dhcp_share=0)
            made[ids, piece] = [
                publication
                for publication in messages(region, piece)
                if publication.envelope.stream.kind is StreamKind.VPC
            ]
        topic = f"wire-{os.getpid()}-{ids}-{piece}-{compression}"
        counted = asyncio.run(
            _counted(broker.url, broker.admin_url, topic, compression, made[ids, piece])
        )
        data.append({"ids": ids, "piece": piece, "compression": compression, **counted})
    rows = [
        (
            one["ids"],
            f"{one['piece']:,}",
            one["compression"],
            one["messages"],
            *(written(one[name] / neighbors) for name in ("payload", "in", "stored", "out")),
        )
        for one in data
    ]
    columns = (
        "ids",
        "ports an intent#",
        "compression",
        "messages#",
        "payload#",
        "published#",
        "stored#",
        "delivered#",
    )
    goals = [
        Goal(
            f"bytes a neighbor on the wire, {one['ids']} ids, {one['compression']}",
            GOAL_BYTES,
            "bytes",
            Samples.of([one["out"] / neighbors]),
        )
        for one in data
        if one["compression"] == DEFAULT and one["piece"] == 10_000
    ]
    method = METHOD.format(neighbors=neighbors, hosts=f"{HOSTS:,}")
    return Section(
        "wire",
        "Bytes per neighbor on the wire",
        method,
        goals,
        [Table(columns, rows)],
        {"neighbors": neighbors, "cases": data},
    )


async def _counted(
    url: str, admin_url: str, name: str, compression: str, publications: Sequence[Publication]
) -> dict[str, Any]:
    """Publish and read back; gives what the broker counted."""
    await admin.ensure_namespace(admin_url, _NAMESPACE, "bench")
    topic = f"persistent://{_NAMESPACE}/bench/{name}"
    bus = await connect(url, compression=compression)
    try:
        await _pass_through(bus, topic, publications)
        return await asyncio.to_thread(_statistics, admin_url, name, len(publications)) | {
            "payload": sum(len(publication.payload) for publication in publications)
        }
    finally:
        await bus.close()


async def _pass_through(bus: Bus, topic: str, publications: Sequence[Publication]) -> None:
    """Returns when a reader that was there before has got every message."""
    left = len(publications)
    complete = asyncio.Event()

    def sink(_: Message) -> None:
        nonlocal left
        left -= 1
        if not left:
            complete.set()

    reader = await bus.open_reader(topic, EARLIEST, sink)
    producer = await bus.open_producer(topic)
    sends = [
        producer.send(
            publication.payload,
            key=publication.envelope.stream.id,
            properties=envelopes.to_properties(publication.envelope),
        )
        for publication in publications
    ]
    await asyncio.gather(*sends)
    async with asyncio.timeout(_COUNTED_S):
        await complete.wait()
    await producer.close()
    await reader.close()


def _statistics(admin_url: str, name: str, messages: int) -> dict[str, Any]:
    """What the broker counted of a topic, once it has counted all. Blocks."""
    path = f"/admin/v2/persistent/{_NAMESPACE}/bench/{quote(name, safe='')}/stats"
    end = monotonic() + _COUNTED_S
    while True:
        status, body = admin.request(admin_url, "GET", path)
        if status != http.client.OK:
            raise MeasurementFailed(f"{admin_url}{path}: {status}")
        counted = json.loads(body)
        found = {
            "messages": counted["msgInCounter"],
            "in": counted["bytesInCounter"],
            "stored": counted["storageSize"],
            "out": counted["bytesOutCounter"],
        }
        if counted["msgInCounter"] == messages and counted["msgOutCounter"] >= messages:
            return found
        if monotonic() > end:
            raise MeasurementFailed(f"the broker counted {found}, of {messages} messages")
