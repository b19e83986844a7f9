"""What the publisher counts, for Prometheus. Each engine has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from goalstate.dpm.inventory import Publication
from goalstate.gs.streams import Channel

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        self.changes = Counter(
            "goalstate_dpm_changes", "Intents by what became of them.", ["result"], registry=r
        )
        self.apply_seconds = Histogram(
            "goalstate_dpm_apply_seconds",
            "From an intent's arrival until it is durable.",
            buckets=_SECONDS,
            registry=r,
        )
        self.forwarded = Counter(
            "goalstate_dpm_forwarded",
            "Calls passed on to the publisher that serves, by the status that they ended with.",
            ["code"],
            registry=r,
        )
        for code in ("OK", "UNAVAILABLE"):  # exported, as 0, before there is one
            self.forwarded.labels(code=code)
        self.duplicates = Counter(
            "goalstate_dpm_duplicates",
            "Ids and tunnel ids that two shards accepted within the same moment.",
            registry=r,
        )
        self.published_messages = Counter(
            "goalstate_dpm_published_messages", "Messages sent.", ["scope"], registry=r
        )
        self.published_bytes = Counter(
            "goalstate_dpm_published_bytes",
            "Bytes of payload sent, before compression.",
            ["scope"],
            registry=r,
        )
        self.session_messages = Counter(
            "goalstate_dpm_session_messages",
            "Of the messages sent, those of streams on sessions.",
            registry=r,
        )
        self.sessions = Gauge(
            "goalstate_dpm_sessions", "Sessions of agent processes that are open.", registry=r
        )
        self.session_resyncs = Gauge(
            "goalstate_dpm_session_resyncs",
            "Follows that ended because their session was too slow, since this writer began.",
            registry=r,
        )
        self.channels = Gauge(
            "goalstate_dpm_vpcs", "VPCs by what they travel on.", ["channel"], registry=r
        )
        self.objects = Gauge(
            "goalstate_dpm_objects", "Objects of accepted intent.", ["kind"], registry=r
        )
        self.hosts = Gauge("goalstate_dpm_hosts", "Hosts by lease.", ["lease"], registry=r)
        self.convergence_seconds = Histogram(
            "goalstate_dpm_convergence_seconds",
            "From acceptance of a change until a wait found its hosts converged.",
            buckets=_SECONDS,
            registry=r,
        )
        self.publish_backlog = Gauge(
            "goalstate_dpm_publish_backlog", "Messages that are not confirmed yet.", registry=r
        )
        self.reports = Counter(
            "goalstate_dpm_reports", "Reports of hosts received.", ["result"], registry=r
        )
        self.exceptions = Gauge(
            "goalstate_dpm_exceptions",
            "Resources that hosts report as not applied, and streams that drifted.",
            ["status"],
            registry=r,
        )
        self.checkpoints = Counter(
            "goalstate_dpm_checkpoints",
            "Checkpoints of streams by what became of them: written or failed.",
            ["result"],
            registry=r,
        )
        for result in ("written", "failed"):  # exported, as 0, before there is one
            self.checkpoints.labels(result=result)
        self.checkpoint_bytes = Counter(
            "goalstate_dpm_checkpoint_bytes",
            "Bytes of payload of the checkpoints written, before compression.",
            registry=r,
        )
        self.checkpoint_due_seconds = Gauge(
            "goalstate_dpm_checkpoint_due_seconds",
            "For how long the checkpoint has been due that is due for longest; 0: none is.",
            registry=r,
        )
        self.epoch = Gauge("goalstate_dpm_epoch", "Epoch of this writer.", ["shard"], registry=r)
        self.epoch.labels(shard=0)  # exported, as 0, before there is one

    def sent(self, publication: Publication) -> None:
        scope = publication.envelope.stream.kind.value
        self.published_messages.labels(scope=scope).inc()
        self.published_bytes.labels(scope=scope).inc(len(publication.payload))
        if publication.channel is Channel.SESSION:
            self.session_messages.inc()
