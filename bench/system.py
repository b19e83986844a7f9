"""The system under measurement: a broker, and publishers and fleets as processes of their own.

They are started by the commands that users start them by, on free ports of this machine, and end
with this process, however that ends.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from prometheus_client.parser import text_string_to_metric_families

from goalstate.bus import brokers
from goalstate.bus.base import Message
from goalstate.bus.connect import connect
from goalstate.bus.errors import BusError
from goalstate.bus.process import Child
from goalstate.gs import intent_codec
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2_grpc import InspectionStub
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2_grpc import (
    DataPlaneManagerStub,
)
from goalstate.gs.streams import Mark, StreamId
from goalstate.gs.topics import Topics

Progress = Callable[[str], None]

#: Seconds within which all hosts must have what was published.
CONVERGE_S = 300.0
#: Seconds for one of several tries, and between two looks at what is waited for.
_TRY_S = 2.0
_LOOK_S = 0.01
_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
)


class MeasurementFailed(Exception):
    """What was to be measured did not come about; the text says what."""


class Brokers:
    """The broker of this run: found or started when it is first asked for."""

    def __init__(self, url: str | None, admin_url: str | None, progress: Progress) -> None:
        self._url = url
        self._admin_url = admin_url
        self._progress = progress
        self._found: brokers.Broker | None = None

    @property
    def started(self) -> brokers.Broker | None:
        return self._found

    def get(self) -> brokers.Broker:
        """Raises BusError; MeasurementFailed if it is no Apache Pulsar."""
        if self._found is None:
            self._found = brokers.find(
                "auto" if self._url else "apache",
                url=self._url,
                admin_url=self._admin_url,
                progress=self._progress,
            )
            if not self._found.url.startswith("pulsar"):
                url = self._found.url
                self.stop()
                raise MeasurementFailed(
                    f"{url} is no Apache Pulsar, beside whose own client this is measured"
                )
        return self._found

    def stop(self) -> None:
        if self._found is not None:
            self._found.stop()
            self._found = None


class System:
    """A region: its publisher, and the fleets that play its hosts. To be used in a `with`."""

    def __init__(
        self, broker: brokers.Broker, region: str, progress: Progress, **settings: object
    ) -> None:
        """Start the publisher with these settings. Raises BrokerFailed with the end of its log."""
        self.broker = broker
        self._progress = progress
        # A broker that was there before may have seen such a region already.
        self.region = f"bench-{os.getpid()}-{region}"
        self.topics = Topics(f"persistent://goalstate/{self.region}")
        self._stack = ExitStack()
        self._directory = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="goalstate-bench-"))
        )
        try:
            self.dpm = self.publisher(**settings)
        except BaseException:
            self._stack.close()
            raise

    @property
    def dpm_pid(self) -> int:
        return self.dpm.pid

    @property
    def address(self) -> str:
        return self.dpm.address

    @property
    def stub(self) -> Any:
        return self.dpm.stub

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def publisher(self, **settings: object) -> Publisher:
        """Start a publisher of the region; returns when it serves, or stands by."""
        admin = ["--admin-url", self.broker.admin_url] if self.broker.admin_url else []
        arguments = ["dpm", "serve", "--listen", "127.0.0.1:0", *admin]
        named = {f"GOALSTATE_DPM_{key.upper()}": str(value) for key, value in settings.items()}
        return Publisher(self._stack, *self._serve("dpm", arguments, named))

    def fleet(
        self,
        hosts: int,
        *,
        first: int = 0,
        counting_share: float = 0.0,
        decoding: str = "shared",
        state: str = "",
    ) -> Fleet:
        """Start so many hosts; returns when they follow their inboxes. `state`: what they hold is
        stored under that name, and where it was, they go on."""
        arguments = ["agent", "run", "--hosts", str(hosts), "--inspect", "127.0.0.1:0"]
        # A session is opened only where a VPC is on one.
        arguments += ["--first", str(first), "--dpm", self.address]
        arguments += ["--counting-share", str(counting_share), "--decoding", decoding]
        if state:
            arguments += ["--state-dir", str(self._directory / state)]
        return Fleet(self._stack, *self._serve("fleet", arguments, {}))

    def _serve(
        self, name: str, arguments: list[str], settings: dict[str, str]
    ) -> tuple[Child, dict[str, Any]]:
        number = len(list(self._directory.glob(f"{name}-*.log")))
        ready = self._directory / f"{name}-{number}.ready"
        common = ["--broker", self.broker.url, "--region", self.region, "--metrics-port", "0"]
        child = Child(
            [
                sys.executable,
                "-m",
                "goalstate.cli",
                *arguments,
                *common,
                "--ready-file",
                str(ready),
            ],
            what=f"the {name}",
            log=self._directory / f"{name}-{number}.log",
            # Settings of the caller's own would make this another measurement.
            env={k: v for k, v in os.environ.items() if not k.startswith("GOALSTATE_")} | settings,
        )
        self._stack.callback(child.stop)
        child.await_ready(ready.exists, self._progress)
        facts: dict[str, Any] = json.loads(ready.read_text(encoding="utf-8"))
        return child, facts

    # --- calls ---

    def apply(self, intent: Intent) -> api.ApplyReply:
        """Apply one intent. Raises grpc.RpcError, also when it is refused."""
        return self.dpm.apply(intent)

    def apply_all(self, intents: Iterable[Intent]) -> list[api.ApplyReply]:
        """Apply intents in order, without waiting for the answer to each."""
        return self.apply_requests(
            api.ApplyRequest(intent=intent_codec.to_proto(intent)) for intent in intents
        )

    def apply_requests(self, requests: Iterable[api.ApplyRequest]) -> list[api.ApplyReply]:
        """The same with messages. Raises MeasurementFailed when one is refused."""
        replies = []
        for reply in self.stub.ApplyStream(iter(requests), timeout=CONVERGE_S):
            if reply.violations:
                first = reply.violations[0]
                raise MeasurementFailed(f"an intent was refused: {first.path}: {first.message}")
            replies.append(reply)
        return replies

    def wait(self, change: int = 0) -> api.WaitReply:
        """Until all hosts concerned have applied a change (0: everything). Raises
        MeasurementFailed."""
        request = api.WaitRequest(quorum=1.0, timeout_s=CONVERGE_S)
        if change:
            request.change = change
        else:
            request.all = True
        reply: api.WaitReply = self.stub.Wait(request, timeout=CONVERGE_S + 10)
        if not reply.converged:
            named = ", ".join(f"{s.host} {s.stream} {s.reason}" for s in reply.stragglers[:5])
            raise MeasurementFailed(
                f"{reply.hosts_applied} of {reply.hosts} hosts converged within {CONVERGE_S:g} s; "
                f"not: {named}"
            )
        return reply


class Publisher:
    """A DPM's process."""

    def __init__(self, stack: ExitStack, child: Child, facts: dict[str, Any]) -> None:
        self.child = child
        self.pid: int = facts["pid"]
        self.address: str = facts["listen"]
        self.metrics: str = facts["metrics"]
        channel = stack.enter_context(grpc.insecure_channel(facts["listen"], options=_OPTIONS))
        self.stub: Any = DataPlaneManagerStub(channel)

    def apply(self, intent: Intent, timeout_s: float = CONVERGE_S) -> api.ApplyReply:
        """Apply one intent. Raises grpc.RpcError, also when it is refused."""
        request = api.ApplyRequest(intent=intent_codec.to_proto(intent))
        reply: api.ApplyReply = self.stub.Apply(request, timeout=timeout_s)
        return reply

    def apply_soon(self, intent: Intent) -> float:
        """Try until it is applied; gives when it was, by the monotonic clock. Raises
        MeasurementFailed."""
        end = time.monotonic() + CONVERGE_S
        while True:
            try:
                self.apply(intent, _TRY_S)
            except grpc.RpcError as error:
                if time.monotonic() > end:
                    raise MeasurementFailed(f"it does not serve: {error}") from error
                time.sleep(_LOOK_S)
            else:
                return time.monotonic()

    def log(self) -> str:
        return self.child.log.read_text(encoding="utf-8", errors="replace")


class Fleet:
    """A process that plays hosts."""

    def __init__(self, stack: ExitStack, child: Child, facts: dict[str, Any]) -> None:
        self.child = child
        self.pid: int = facts["pid"]
        self._metrics: str = facts["metrics"]
        self.counting: int = facts["counting_hosts"]
        self.decoding: int = facts["decoding_hosts"]
        channel = stack.enter_context(grpc.insecure_channel(facts["listen"], options=_OPTIONS))
        self._stub = InspectionStub(channel)

    def positions(self) -> Iterator[tuple[str, agent_pb2.StreamReport]]:
        """How far each host has applied each of its streams, and when it got there."""
        reply = self._stub.ListHosts(agent_pb2.ListHostsRequest(), timeout=60)
        for host in reply.hosts:
            for position in host.streams:
                yield host.host, position

    def applied_ns(self, stream: StreamId, to: Mark, hosts: int) -> list[int]:
        """When each of so many hosts had applied a stream up to a mark, once all have; ns since the
        epoch. Raises MeasurementFailed."""
        end = time.monotonic() + CONVERGE_S
        while True:
            found = [
                at.applied_unix_ns
                for _, at in self.positions()
                if at.stream == str(stream) and Mark(at.epoch, at.sequence) >= to
            ]
            if len(found) >= hosts:
                return found
            if time.monotonic() > end:
                raise MeasurementFailed(f"{len(found)} of {hosts} hosts are at {to} of {stream}")
            time.sleep(_LOOK_S)

    def counted(self, name: str, **labels: str) -> float:
        """One of the process's counters, without prefix and `_total`."""
        return metric(self._metrics, f"goalstate_agent_{name}_total", **labels)


def metric(address: str, name: str, **labels: str) -> float:
    """What a process says of itself at this HOST:PORT. Raises MeasurementFailed."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    raise MeasurementFailed(f"{address} has no metric {name} {labels}")


async def newest(url: str, topic: str) -> Message:
    """The newest message of a topic. Raises MeasurementFailed if it has none."""
    bus = await connect(url)
    try:
        message = await bus.last(topic)
    finally:
        await bus.close()
    if message is None:
        raise MeasurementFailed(f"{topic} is empty")
    return message


__all__ = [
    "CONVERGE_S",
    "Brokers",
    "BusError",
    "Fleet",
    "MeasurementFailed",
    "Publisher",
    "System",
    "metric",
    "newest",
]
