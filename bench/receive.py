"""What it takes to receive one small message, by how it is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pulsar
import uvloop

from bench.alone import alone
from bench.machine import cpu_s
from bench.report import Goal, Section, Table
from bench.samples import Samples, written
from bench.system import Brokers, Progress
from goalstate.bus.base import LATEST, Message
from goalstate.bus.pulsar import PulsarBus
from goalstate.bus.pulsar_client import packed
from goalstate.dpm.core import Core
from goalstate.gs import envelope as envelopes
from goalstate.gs.intent import Intent
from goalstate.gs.streams import StreamKind
from goalstate.gs.topics import Topics
from goalstate.scale.generate import Region

METHOD = """\
{readers} readers of one topic in one process, through the bus of the agents; {rounds} messages, one
at a time, each sent once all readers have the one before. A message is what one port more is on the
stream of its VPC. From the send: `stored` until the broker confirms it, `first` and `last` until
the first and the last reader's callback. Processor time is by each delivery: of the readers'
process with all of its threads, and of the broker's. Milliseconds are medians of the messages. The
rows take turns. ZSTD with a property of Pulsar for each field of the envelope is how goalstate sent
before; LZ4 with one property for all is how it sends now. Where the time goes then (perf, one
process of 400 readers): with ZSTD a third is in setting up and freeing its state of 160 KB, which a
message of some hundred bytes does not need; properties are parsed, copied and freed one by one; the
rest is the client's own parsing, two changes of thread for a delivery, and Python.

What is left (seen on 2 cores, 2026-11-28). Until the first reader has it, the time is the broker's:
the journal, then the turns of its threads. After that both cores are busy until the last one has
it, so that it takes about half of what both processes use of a processor for all readers. The
broker's part is that of any client: a cursor of the ledger and a frame for each reader. Dispatch
outside of the subscription's thread, another garbage collector, and more connections made no
difference. In a region readers are on hosts of their own, and only the broker's part adds up."""
#: Name, compression, and whether all properties are one.
_WAYS = (
    ("ZSTD, a property for each field (before)", pulsar.CompressionType.ZSTD, False),
    ("ZSTD, one property", pulsar.CompressionType.ZSTD, True),
    ("LZ4, a property for each field", pulsar.CompressionType.LZ4, False),
    ("LZ4, one property (now)", pulsar.CompressionType.LZ4, True),
    ("not compressed, one property", pulsar.CompressionType.NONE, True),
)
#: Readers, and messages.
FULL, QUICK = (1000, 150), (50, 10)
_WARM_UP = 10
_DELIVERY_S = 30.0
GOAL_HALF = 0.5


class _Way(NamedTuple):
    """Of each message, ms until it was stored, and until its first and its last reader had it; µs
    of processor time by delivery, of the readers and of the broker."""

    stored_ms: list[float]
    first_ms: list[float]
    last_ms: list[float]
    cpu_us: float
    broker_us: float


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    readers, rounds = QUICK if quick else FULL
    progress(f"receive: {readers:,} readers, {len(_WAYS)} ways to send")
    broker = brokers.get()
    ways = alone(_receive, broker.url, broker.pids, readers, rounds)
    rows = []
    for (name, *_), way in zip(_WAYS, ways, strict=True):
        last = Samples.of(way.last_ms)
        rows.append(
            (
                name,
                written(way.cpu_us),
                written(way.broker_us) if broker.pids else "–",
                written(Samples.of(way.stored_ms).median),
                written(Samples.of(way.first_ms).median),
                written(last.median),
                written(last.p99),
            )
        )
    before, now = ways[0], ways[-2]
    goals = [
        Goal(
            "processor time of a small delivery, now against before",
            GOAL_HALF,
            "×",
            Samples.of([now.cpu_us / before.cpu_us]),
            at_size=not quick,
        ),
        Goal(
            f"one small message to the last of {readers:,} readers, now against before",
            GOAL_HALF,
            "×",
            Samples.of([Samples.of(now.last_ms).median / Samples.of(before.last_ms).median]),
            at_size=not quick,
        ),
    ]
    columns = (
        "sent as",
        "readers' CPU µs a delivery#",
        "broker's#",
        "stored ms#",
        "first ms#",
        "last ms#",
        "last ms, p99#",
    )
    return Section(
        "receive",
        "One small change to many: what it takes to receive it",
        METHOD.format(readers=f"{readers:,}", rounds=rounds),
        goals,
        [Table(columns, rows)],
        {"readers": readers, "ways": [way._asdict() for way in ways]},
    )


def messages() -> Iterator[tuple[bytes, dict[str, str]]]:
    """One port more, and one more, on the stream of a VPC."""
    region = Region(hosts=50, vpcs=(300,), dhcp_share=0)
    core = Core(Topics())
    core.begin_epoch(1)
    for intent in region.intents(100):
        core.accept(core.plan(intent), time.time_ns())
    number = 0
    while True:
        number += 1
        port = region.port(1, number % 300)
        moved = port._replace(mac_address=f"02:99:00:00:{number >> 8 & 255:02x}:{number & 255:02x}")
        for envelope, payload, *_ in core.accept(
            core.plan(Intent(ports=(moved,))), time.time_ns()
        ).publications:
            if envelope.stream.kind is StreamKind.VPC:
                yield payload, envelopes.to_properties(envelope)


def _receive(url: str, broker: tuple[int, ...], readers: int, rounds: int) -> list[_Way]:
    return uvloop.run(_rounds(url, broker, readers, rounds))


def _stored(
    loop: asyncio.AbstractEventLoop, stored: asyncio.Future[float], result: Any, position: Any
) -> None:
    """Called by the client, in a thread of its own."""
    loop.call_soon_threadsafe(stored.set_result, time.perf_counter())


async def _rounds(url: str, broker: tuple[int, ...], readers: int, rounds: int) -> list[_Way]:
    loop = asyncio.get_running_loop()
    bus = await PulsarBus.connect(url)
    sending = pulsar.Client(url, logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null"))
    ways = [_Way([], [], [], 0.0, 0.0) for _ in _WAYS]
    spent, spent_there = [0.0] * len(_WAYS), [0.0] * len(_WAYS)
    arrived: list[float] = []
    complete = asyncio.Event()

    def sink(message: Message) -> None:
        arrived.append(time.perf_counter())
        if len(arrived) == readers:
            complete.set()

    producers: list[Any] = []
    for place, (_, compression, _) in enumerate(_WAYS):
        topic = f"persistent://public/default/bench-receive-{place}-{time.time_ns()}"
        producer = await asyncio.to_thread(
            sending.create_producer, topic, compression_type=compression, batching_enabled=False
        )
        producers.append(producer)
        await asyncio.gather(*(bus.open_reader(topic, LATEST, sink) for _ in range(readers)))
    source = messages()
    for number in range(_WARM_UP + rounds):
        payload, properties = next(source)
        for place, (_, _, one) in enumerate(_WAYS):
            arrived.clear()
            complete.clear()
            stored: asyncio.Future[float] = loop.create_future()
            there = sum(map(cpu_s, broker))
            cpu, sent = time.process_time(), time.perf_counter()
            producers[place].send_async(
                payload, partial(_stored, loop, stored),
                properties=packed(properties) if one else properties,
            )  # fmt: skip
            async with asyncio.timeout(_DELIVERY_S):
                await complete.wait()
                spent_now = time.process_time() - cpu
                spent_there_now = sum(map(cpu_s, broker)) - there
                confirmed = await stored
            if number >= _WARM_UP:
                spent[place] += spent_now
                spent_there[place] += spent_there_now
                ways[place].stored_ms.append(1000 * (confirmed - sent))
                ways[place].first_ms.append(1000 * (arrived[0] - sent))
                ways[place].last_ms.append(1000 * (arrived[-1] - sent))
    await asyncio.to_thread(sending.close)
    await bus.close()
    by_delivery = 1e6 / (readers * rounds)
    return [
        way._replace(cpu_us=here * by_delivery, broker_us=there * by_delivery)
        for way, here, there in zip(ways, spent, spent_there, strict=True)
    ]
