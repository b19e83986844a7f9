"""The system that a run is put on: a broker, and a DPM that the run starts or that is there."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import psutil
from prometheus_client.parser import text_string_to_metric_families

from goalstate.bus import brokers
from goalstate.bus.process import Child
from goalstate.gs import intent_codec
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2_grpc import (
    DataPlaneManagerStub,
)
from goalstate.scale.load.control import Usage
from goalstate.scale.load.dpm_target import OPTIONS
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.workload import Layout

Note = Callable[[str], None]

#: Seconds for one question that waits, and for the whole region to be built.
_ASK_S = 5.0
#: The processes themselves are asked, whatever proxy the environment names.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
BUILD_S = 1800.0


class System:
    """To be used in a `with`. Blocks."""

    def __init__(
        self,
        directory: Path,
        note: Note,
        *,
        broker: str,
        layout: Layout,
        region: str,
        dpm: str = "",
        listen: str = "127.0.0.1:0",
    ) -> None:
        """`dpm`: the address of one that runs, which serves `region`; else one is started, that
        listens at `listen`. Raises BrokerNotFound, BrokerFailed."""
        self.region = region
        self._directory = directory
        self._note = note
        self._children: list[Child] = []
        known = "://" in broker
        self.broker = brokers.find(
            "auto" if known else broker,  # type: ignore[arg-type]
            url=broker if known else None,
            progress=note,
        )
        try:
            self.dpm_pid = 0
            self._dpm_metrics = ""
            self.dpm = dpm or self._start_dpm(layout, listen)
            #: The same, for processes on other machines.
            self.dpm_elsewhere = self.dpm.replace("0.0.0.0:", f"{socket.gethostname()}:")
            self._channel = grpc.insecure_channel(self.dpm, options=OPTIONS)
            self._stub: Any = DataPlaneManagerStub(self._channel)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()
        self.stop()

    def stop(self) -> None:
        for child in reversed(self._children):
            child.stop()
        self.broker.stop()

    def _start_dpm(self, layout: Layout, listen: str) -> str:
        arguments = ["dpm", "serve", "--listen", listen, "--broker", self.broker.url]
        arguments += ["--region", self.region, "--metrics-port", "0"]
        if self.broker.admin_url:
            arguments += ["--admin-url", self.broker.admin_url]
        settings = {
            "channel": "pulsar" if layout.channel == "pulsar" else "auto",
            "security_groups": layout.security_groups,
            "compression": layout.compression,
            "report_shards": layout.report_shards,
            "shards": layout.shards,
            "group_interval_s": layout.group_interval_s,
        }
        facts = self.serve(
            "dpm", arguments, {f"GOALSTATE_DPM_{k.upper()}": v for k, v in settings.items()}
        )
        self.dpm_pid = facts["pid"]
        self._dpm_metrics = f"http://{facts['metrics']}/metrics"
        address: str = facts["listen"]
        return address

    def serve(
        self, name: str, arguments: list[str], settings: Mapping[str, object], *, ready: bool = True
    ) -> dict[str, Any]:
        """Start one of our commands; with `ready`, wait until it says where it serves, and give
        that. Raises BrokerFailed with the end of its log."""
        place = self._directory / f"{name}.ready"
        command = [sys.executable, "-m", "goalstate.cli", *arguments]
        if ready:
            command += ["--ready-file", str(place)]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("GOALSTATE_")}
        child = Child(
            command,
            what=f"the {name}",
            log=self._directory / f"{name}.log",
            env=kept | {key: str(value) for key, value in settings.items()},
        )
        self._children.append(child)
        if not ready:
            return {}
        child.await_ready(place.exists, self._note)
        facts: dict[str, Any] = json.loads(place.read_text("utf-8"))
        return facts

    def ended(self) -> str:
        """Which of the processes that were started is gone; empty: none."""
        for child in self._children:
            if not child.alive:
                return f"a process ended: see {child.log}"
        return "the broker ended" if self.broker.ended else ""

    # --- calls ---

    def check_empty(self) -> None:
        """Raises LoadError where the region has something in it already."""
        status = self._stub.GetStatus(api.StatusRequest(), timeout=_ASK_S)
        there = ", ".join(f"{count} {kind}" for kind, count in status.objects.items() if count)
        if there:
            raise LoadError(
                f"region {self.region} at {self.dpm} has {there}: load needs a region of its own"
            )

    def build(self, intents: Iterable[Intent]) -> None:
        """Raises LoadError, grpc.RpcError."""
        requests = (api.ApplyRequest(intent=intent_codec.to_proto(intent)) for intent in intents)
        for reply in self._stub.ApplyStream(requests, timeout=BUILD_S):
            if reply.violations:
                first = reply.violations[0]
                raise LoadError(f"the region cannot be made: {first.path}: {first.message}")

    def converged(self, within_s: float) -> str:
        """Wait until all hosts that there are have everything; hosts that never reported are not
        there yet. Gives what is missing at the end, empty: nothing. Raises grpc.RpcError."""
        end = time.monotonic() + within_s
        while True:
            request = api.WaitRequest(
                all=True, quorum=1.0, timeout_s=_ASK_S, max_stragglers=100_000
            )
            reply = self._stub.Wait(request, timeout=_ASK_S + 30)
            behind = [s for s in reply.stragglers if s.why != api.Straggler.NEVER_REPORTED]
            if reply.converged or not behind:
                return ""
            if time.monotonic() > end:
                named = ", ".join(f"{s.host} {s.stream} {s.reason}" for s in behind[:5])
                return f"{len(behind)} hosts are behind: {named}"

    def concerned(self, change: int) -> int:
        """How many hosts a change concerns. Raises grpc.RpcError."""
        request = api.WaitRequest(change=change, quorum=1.0, timeout_s=0)
        reply: api.WaitReply = self._stub.Wait(request, timeout=_ASK_S)
        return reply.hosts

    # --- what it uses ---

    def traffic(self) -> dict[str, int]:
        """Bytes so far, as far as somebody counts them: payloads that the DPM published, and what
        went in and out of the broker on the region's topics, as it is on them (compressed)."""
        found = {}
        if self._dpm_metrics:
            found["published by the DPM"] = _total(
                self._dpm_metrics, "goalstate_dpm_published_bytes_total"
            )
        if self.broker.admin_url:
            url = f"{self.broker.admin_url}/metrics/"
            namespace = f"goalstate/{self.region}"
            for way, name in (
                ("into the broker", "pulsar_in_bytes_total"),
                ("out of the broker", "pulsar_out_bytes_total"),
            ):
                found[way] = _total(url, name, namespace=namespace)
        return found

    def used(self) -> dict[str, Usage]:
        """What the processes that were started have used so far, by what they are."""
        found = {}
        for name, pids in (("dpm", (self.dpm_pid,)), ("broker", self.broker.pids)):
            for pid in filter(None, pids):
                try:
                    found[name] = used(psutil.Process(pid))
                except psutil.Error:
                    continue
        return found


def used(process: psutil.Process) -> Usage:
    with process.oneshot():
        times, memory = process.cpu_times(), process.memory_info()
    return Usage(times.user + times.system, memory.rss)


def _total(url: str, name: str, **labels: str) -> int:
    """The sum of a metric's samples that have these labels; 0 where nobody answers."""
    try:
        with _OPENER.open(url, timeout=_ASK_S) as answer:
            lines = [line for line in answer.read().decode().splitlines() if name in line]
    except OSError:
        return 0
    # Only these lines: there are thousands of others.
    return round(
        sum(
            sample.value
            for family in text_string_to_metric_families("\n".join(lines) + "\n")
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
    )


def loopback_bytes() -> int:
    """That went over this machine's loopback device so far; 0 where it is not known."""
    devices = psutil.net_io_counters(pernic=True)
    return devices["lo"].bytes_sent if "lo" in devices else 0
