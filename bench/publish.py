"""How fast the publisher, as a process on a real broker, gets a load of intent onto its topics."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic, perf_counter
from typing import Any

import pulsar

from bench.machine import cpu_s
from bench.report import Goal, Section, Table
from bench.samples import Samples, written
from bench.system import Brokers, MeasurementFailed, Progress, System
from goalstate.bus.pulsar_client import properties_of
from goalstate.gs import intent_codec
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.streams import Mark, StreamId, inbox_stream, vpc_stream
from goalstate.gs.topics import Topics
from goalstate.scale.generate import Region

GOAL_PORTS_S = 25_000
HOSTS = 200
VPCS = 10
PORTS_A_ROUND = 1000
#: Seconds for the messages of one round.
_ROUND_S = 60.0

METHOD = """\
The publisher is a process of its own. A client sends it {vpcs} intents of
{ports:,} ports each (one for each of {vpcs} VPCs, in a region of {hosts} hosts) in one ApplyStream
call. Inside the interval: from before the call to the moment when the last message that came of it
has been delivered to a plain Pulsar reader on its topic (there is one on every topic; reading costs
the broker and the other core, not the publisher). That is validation, a durable entry in the intent
log, derivation, packing, compression (LZ4) and the broker's confirmation. In the first round all
VPCs and topics are new; the later rounds add as many ports to the same VPCs. The processor seconds
are the publisher's, all of its threads."""


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    rounds = 4 if quick else 9
    broker = brokers.get()
    region = Region(hosts=HOSTS, vpcs=(rounds * PORTS_A_ROUND,) * VPCS)
    pieces = [list(region.vpc_intents(n + 1, PORTS_A_ROUND)) for n in range(VPCS)]
    with System(broker, "publish", progress) as system:
        system.apply_all(region.host_intents())
        streams = [vpc_stream(region.vpc_id(n + 1)) for n in range(VPCS)]
        groups = sorted({region.host(index).group for index in range(HOSTS)})
        streams += [inbox_stream(group) for group in groups]
        arrivals = _Arrivals(broker.url, system.topics, streams)
        try:
            measured = [
                _round(
                    system,
                    arrivals,
                    [
                        api.ApplyRequest(intent=intent_codec.to_proto(of_vpc[number]))
                        for of_vpc in pieces
                    ],
                )
                for number in range(rounds)
            ]
        finally:
            arrivals.close()
    ports = VPCS * PORTS_A_ROUND
    rows = []
    for name, some in (("new VPCs and topics", measured[:1]), ("the same VPCs", measured[1:])):
        rows.append(
            (
                name,
                len(some),
                Samples.of(ports / one["wall_s"] for one in some),
                Samples.of(one["cpu_s"] / ports * 10_000 for one in some),
                written(Samples.of(ports / one["durable_s"] for one in some).median),
                some[0]["messages"],
            )
        )
    columns = (
        "10,000 ports into",
        "rounds#",
        "ports/s, wall#",
        "CPU s per 10,000 ports#",
        "ports/s answered#",
        "messages#",
    )
    later = measured[1:]
    goals = [
        Goal(
            "derivation and publishing, per core second of the publisher",
            GOAL_PORTS_S,
            "ports/s",
            Samples.of(ports / one["cpu_s"] for one in later),
            at_least=True,
        ),
        Goal(
            "derivation and publishing, wall time",
            GOAL_PORTS_S,
            "ports/s",
            Samples.of(ports / one["wall_s"] for one in later),
            at_least=True,
        ),
    ]
    method = METHOD.format(broker=broker.describe(), vpcs=VPCS, ports=PORTS_A_ROUND, hosts=HOSTS)
    return Section(
        "publish",
        "Derivation and publishing, through the publisher's process",
        method,
        goals,
        [Table(columns, rows)],
        {"ports": ports, "rounds": measured},
    )


def _round(
    system: System, arrivals: _Arrivals, requests: Sequence[api.ApplyRequest]
) -> dict[str, float]:
    cpu = cpu_s(system.dpm_pid)
    begun = perf_counter()
    replies = system.apply_requests(requests)
    durable = perf_counter()
    last: dict[StreamId, Mark] = {}
    for reply in replies:
        for at in reply.streams:
            stream = StreamId.parse(at.stream)
            last[stream] = max(Mark(at.epoch, at.sequence), last.get(stream, Mark(0, 0)))
    ended = arrivals.await_all(last)
    return {
        "wall_s": ended - begun,
        "durable_s": durable - begun,
        "cpu_s": cpu_s(system.dpm_pid) - cpu,
        "messages": arrivals.take(),
    }


class _Arrivals:
    """Plain readers on topics of ours, and which marks they have seen."""

    def __init__(self, url: str, topics: Topics, streams: Sequence[StreamId]) -> None:
        logger = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")
        self._client = pulsar.Client(url, logger=logger)
        self._news = threading.Condition()
        self._seen: dict[StreamId, Mark] = {}
        self._newest = 0.0
        self.messages = 0
        for stream in streams:
            self._client.create_reader(
                topics.of_stream(stream),
                pulsar.MessageId.earliest,
                reader_listener=self._listener(stream),
            )

    def _listener(self, stream: StreamId) -> Any:
        def listener(reader: Any, message: Any) -> None:
            now = perf_counter()
            properties = properties_of(message)
            with self._news:
                self._seen[stream] = Mark(int(properties["epoch"]), int(properties["seq"]))
                self._newest = now
                self.messages += 1
                self._news.notify()

        return listener

    def await_all(self, last: dict[StreamId, Mark]) -> float:
        """Wait until all these marks were seen; gives when the last message came (perf_counter).

        Raises MeasurementFailed.
        """
        end = monotonic() + _ROUND_S
        with self._news:
            while missing := [s for s, mark in last.items() if self._seen.get(s, (0, 0)) < mark]:
                if not self._news.wait(timeout=max(0.0, end - monotonic())):
                    raise MeasurementFailed(
                        f"not published within {_ROUND_S:g} s: {missing[0]} and "
                        f"{len(missing) - 1} other streams"
                    )
            return self._newest

    def take(self) -> int:
        """How many messages came since this was last asked."""
        with self._news:
            count, self.messages = self.messages, 0
        return count

    def close(self) -> None:
        self._client.close()
