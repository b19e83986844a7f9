"""What an agent process shows to Prometheus: read off its hosts at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from goalstate.agent.alcor.proxy import SPEAKS, Proxy
from goalstate.agent.counters import DELAY_BOUNDS, Delays
from goalstate.agent.fleet import Fleet

PREFIX = "goalstate_agent_"


class FleetMetrics(Collector):
    """Collects a fleet's numbers. Scrapes come on a thread of their own and read only."""

    def __init__(self, *fleets: Fleet, proxies: Sequence[Proxy] = ()) -> None:
        """Of the same hosts and with the same counters, one fleet for each shard of the region."""
        self._fleets = fleets
        self._proxies = proxies

    def collect(self) -> Iterator[Metric]:
        fleet, counters = self._fleets[0], self._fleets[0].counters
        hosts = [host.core for host in list(fleet.hosts.values())]
        cores = [host.core for fleet in self._fleets for host in list(fleet.hosts.values())]
        counting = sum(core.counting for core in hosts)
        yield _gauge(
            "hosts",
            "Hosts played, by whether they decode all of their streams.",
            "mode",
            {"full": len(fleet.hosts) - counting, "counting": counting},
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
        held = 0
        exceptions = {"pending": 0, "refused": 0, "retrying": 0}
        for core in cores:
            for stream in list(core.streams.values()):
                held += sum(map(len, list(stream.live.held.values())))
            for fault in list(core.programming.exceptions.faults.values()):
                status = "pending" if fault.pending else "retrying" if fault.retrying else "refused"
                exceptions[status] += 1
        yield GaugeMetricFamily(PREFIX + "resources_held", "Resources accepted and held.", held)
        yield _gauge(
            "exceptions",
            "Resources held and not applied.",
            "status",
            exceptions,
        )
        yield _histogram(
            "apply_delay_seconds",
            "From a message's publication until a host had applied it.",
            counters.delays,
        )
        yield _histogram(
            "revocation_delay_seconds",
            "The same, of each change that took a permission away.",
            counters.revocations,
        )
        for name, text, number in (
            ("message_bytes", "Their payloads' bytes.", counters.bytes),
            ("gaps", "Gaps seen in streams.", counters.gaps),
            ("resyncs", "Times that a stream was read again.", counters.resyncs),
            ("digest_mismatches", "Times that a digest differed.", counters.mismatches),
            ("corrupted_messages", "Messages with a wrong checksum.", counters.corrupted),
            ("reports", "Reports of hosts sent.", counters.reports),
            ("audits", "Rounds of audits of hosts.", counters.audits),
            ("retries", "Programmings of what was refused for now.", counters.retries),
            ("dead_letters", "Refusals written as dead letters.", counters.dead_letters),
        ):
            yield CounterMetricFamily(PREFIX + name, text, number)
        yield _counter(
            "drifts",
            "Differences that audits found, by what was not as it had been.",
            "where",
            dict(counters.drifts),
        )
        if self._proxies:
            speaks = Counter(proxy.speaks for proxy in self._proxies)
            yield _gauge(
                "remote_hosts",
                "Hosts with a remote agent, by what it was found to speak.",
                "speaks",
                {what: speaks[what] for what in SPEAKS},
            )
        readers = sum(fleet.readers.open for fleet in self._fleets)
        yield GaugeMetricFamily(PREFIX + "readers", "Open readers.", readers)
        sessions = [fleet.sessions for fleet in self._fleets if fleet.sessions is not None]
        if sessions:
            text = "Sessions with the publisher that are open."
            is_open = sum(one.is_open for one in sessions)
            yield GaugeMetricFamily(PREFIX + "sessions", text, is_open)
            text = "Messages that came over sessions, once for all hosts."
            messages = sum(one.follows.messages for one in sessions)
            yield CounterMetricFamily(PREFIX + "session_messages", text, messages)


def registry(*fleets: Fleet, proxies: Sequence[Proxy] = ()) -> CollectorRegistry:
    """A registry of its own: one process may run several fleets."""
    made = CollectorRegistry()
    made.register(FleetMetrics(*fleets, proxies=proxies))
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


def _histogram(name: str, text: str, delays: Delays) -> Metric:
    return HistogramMetricFamily(PREFIX + name, text, _buckets(list(delays.counts)), delays.total)


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Prometheus counts what is at or below each bound."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, DELAY_BOUNDS), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
