"""What an agent process shows to Prometheus: read off its hosts at each scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from goalstate.agent.counters import DELAY_BOUNDS
from goalstate.agent.fleet import Fleet

PREFIX = "goalstate_agent_"


class FleetMetrics(Collector):
    """Collects a fleet's numbers. Scrapes come on a thread of their own and read only."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        fleet, counters = self._fleet, self._fleet.counters
        hosts = [host.core for host in fleet.hosts.values()]
        counting = sum(core.counting for core in hosts)
        yield _gauge(
            "hosts",
            "Hosts played, by whether they decode all of their streams.",
            "mode",
            {"full": len(hosts) - counting, "counting": counting},
        )
        yield _counter(
            "messages",
            "Messages accepted, once for each host.",
            "stream_kind",
            {kind.value: number for kind, number in counters.messages.items()},
        )
        yield _counter(
            "resources_applied",
            "Changes of resources that data planes confirmed.",
            "kind",
            {kind.name.lower(): number for kind, number in dict(counters.applied).items()},
        )
        held = pending = refused = 0
        for core in hosts:
            for stream in list(core.streams.values()):
                held += sum(map(len, list(stream.live.held.values())))
            statuses = [fault.pending for fault in list(core.programming.exceptions.values())]
            pending += sum(statuses)
            refused += len(statuses) - sum(statuses)
        yield GaugeMetricFamily(PREFIX + "resources_held", "Resources accepted and held.", held)
        yield _gauge(
            "exceptions",
            "Resources held and not applied.",
            "status",
            {"pending": pending, "refused": refused},
        )
        delays = counters.delays
        yield HistogramMetricFamily(
            PREFIX + "apply_delay_seconds",
            "From a message's publication until a host had applied it.",
            _buckets(list(delays.counts)),
            delays.total,
        )
        for name, text, number in (
            ("gaps", "Gaps seen in streams.", counters.gaps),
            ("resyncs", "Times that a stream was read again.", counters.resyncs),
            ("digest_mismatches", "Times that a digest differed.", counters.mismatches),
            ("corrupted_messages", "Messages with a wrong checksum.", counters.corrupted),
            ("reports", "Reports of hosts sent.", counters.reports),
        ):
            yield CounterMetricFamily(PREFIX + name, text, number)
        yield GaugeMetricFamily(PREFIX + "readers", "Open readers.", fleet.readers.open)
        sessions = fleet.sessions
        if sessions is not None:
            text = "Sessions with the publisher that are open."
            yield GaugeMetricFamily(PREFIX + "sessions", text, int(sessions.is_open))
            text = "Messages that came over sessions, once for all hosts."
            yield CounterMetricFamily(PREFIX + "session_messages", text, sessions.follows.messages)


def registry(fleet: Fleet) -> CollectorRegistry:
    """A registry of its own: one process may run several fleets."""
    made = CollectorRegistry()
    made.register(FleetMetrics(fleet))
    return made


def _gauge(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Prometheus counts what is at or below each bound."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, DELAY_BOUNDS), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
