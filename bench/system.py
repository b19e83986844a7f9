"""The system under measurement: a broker, and publishers and fleets as processes of their own.

They are started by the commands that users start them by, on free ports of this machine, and end
with this process, however that ends.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from goalstate.bus import brokers
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
from goalstate.gs.topics import Topics

Progress = Callable[[str], None]

#: Seconds within which all hosts must have what was published.
CONVERGE_S = 300.0
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

    def __init__(self, broker: brokers.Broker, region: str, progress: Progress) -> None:
        """Start the publisher. Raises BrokerFailed with the end of its log."""
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
            admin = ["--admin-url", broker.admin_url] if broker.admin_url else []
            facts = self._serve("dpm", ["dpm", "serve", "--listen", "127.0.0.1:0", *admin])
            self.dpm_pid: int = facts["pid"]
            self.address: str = facts["listen"]
            channel = self._stack.enter_context(
                grpc.insecure_channel(facts["listen"], options=_OPTIONS)
            )
            self.stub: Any = DataPlaneManagerStub(channel)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def fleet(self, hosts: int, *, counting_share: float = 0.0, decoding: str = "shared") -> Fleet:
        """Start so many hosts, from the first; returns when they follow their inboxes."""
        arguments = ["agent", "run", "--hosts", str(hosts), "--inspect", "127.0.0.1:0"]
        arguments += ["--counting-share", str(counting_share), "--decoding", decoding]
        return Fleet(self._stack, self._serve("fleet", arguments))

    def _serve(self, name: str, arguments: list[str]) -> dict[str, Any]:
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
            env={k: v for k, v in os.environ.items() if not k.startswith("GOALSTATE_")},
        )
        self._stack.callback(child.stop)
        child.await_ready(ready.exists, self._progress)
        facts: dict[str, Any] = json.loads(ready.read_text(encoding="utf-8"))
        return facts

    # --- calls ---

    def apply(self, intent: Intent) -> api.ApplyReply:
        """Apply one intent. Raises grpc.RpcError, also when it is refused."""
        request = api.ApplyRequest(intent=intent_codec.to_proto(intent))
        reply: api.ApplyReply = self.stub.Apply(request, timeout=CONVERGE_S)
        return reply

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


class Fleet:
    """A process that plays hosts."""

    def __init__(self, stack: ExitStack, facts: dict[str, Any]) -> None:
        self.pid: int = facts["pid"]
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


__all__ = ["CONVERGE_S", "Brokers", "BusError", "Fleet", "MeasurementFailed", "System"]
