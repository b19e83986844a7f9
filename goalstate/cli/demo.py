"""`goalstate demo`: the whole system at work on this machine, and an independent look at it.

Broker, publisher and a fleet of hosts run as processes of their own. What the hosts hold at the end
is compared with what the oracle computes from the intent that was sent, by code that shares nothing
with the publisher's derivation. No process outlives the command, however it ends; on a broker that
was there before, the region's topics are deleted at the end where that can be done, else named.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from goalstate.bus import admin, brokers
from goalstate.bus.errors import BrokerFailed, BusError
from goalstate.bus.process import Child
from goalstate.cli import comparison, northbound
from goalstate.cli.convergence import describe, document, request, waited
from goalstate.cli.errors import CommandError, ExitCode, InputError, Undecided
from goalstate.cli.output import Output
from goalstate.gs import intent_codec
from goalstate.gs.intent import Intent, Port, SecurityGroup
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2 import WaitReply
from goalstate.scale import generate
from goalstate.scale.generate import Region

#: Seconds within which a step must converge.
STEP_S = 120.0
#: Of every region's topics.
TENANT = "goalstate"
_KINDS = ("auto", "apache", "docker", "embedded")


def demo(*, broker: str, hosts: int, vpcs: str, seed: int, keep: bool, out: Output) -> ExitCode:
    """Run it. Raises CommandError, BrokerNotFound, BrokerFailed, BrokerUnreachable."""
    try:
        region = Region(hosts=hosts, vpcs=generate.parse_mix(vpcs), seed=seed)
    except ValueError as error:
        raise InputError(
            str(error), "write the mix as 5x1000,45x100 and give fewer ports"
        ) from None
    if broker not in _KINDS and "://" not in broker:
        raise InputError(
            f"{broker!r} is no broker", f"give {', '.join(_KINDS)}, or the URL of a running one"
        )
    started = time.monotonic()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="goalstate-demo-")))
        run = _Demo(region, directory, out, stack)
        run.start(broker)
        run.build()
        run.change()
        found = run.check()
        seconds = time.monotonic() - started
        out.text()
        out.text(f"done in {seconds:.1f} s", style="bold")
        run.results["seconds"] = round(seconds, 3)
        out.result(run.results)
        if keep:
            out.note(f"DPM at {run.dpm}, {run.broker_url}: running until Ctrl-C")
            _until_interrupted()
    return found.exit_code


class _Demo:
    def __init__(self, region: Region, directory: Path, out: Output, stack: ExitStack) -> None:
        self.results: dict[str, Any] = {"steps": []}
        self.dpm = ""
        self.broker_url = ""
        self._region = region
        self._directory = directory
        self._out = out
        self._stack = stack
        #: Every intent that was accepted, as it was sent: what the oracle works from.
        self._sent: list[intent_pb2.Intent] = []

    # --- processes ---

    def start(self, broker_kind: str) -> None:
        out = self._out
        with self._step("broker"):
            url = broker_kind if "://" in broker_kind else None
            kind = "auto" if url else broker_kind
            broker = brokers.find(kind, url=url, progress=out.note)  # type: ignore[arg-type]
            self._stack.callback(broker.stop)
            self.broker_url = broker.url
        out.text(f"broker: {broker.describe()}")
        # A region of its own: a broker that was there before may hold others.
        region_name = f"demo-{os.getpid()}-{int(time.time())}"
        self.results["region"] = region_name
        if broker.kind == "url":
            if broker.url.startswith("pulsar") and not broker.admin_url:
                raise InputError(
                    f"the demo needs a region of its own at {broker.url}, and has no admin REST "
                    "API to make it with",
                    f"give its URL in {brokers.ADMIN_VARIABLE}",
                )
            # Before the processes are started: so that it comes after they were stopped.
            self._stack.callback(_clean_up, broker, region_name, out)
        common = ["--broker", broker.url, "--region", region_name, "--metrics-port", "0"]
        with self._step("DPM and fleet"):
            serve = ["dpm", "serve", *common, "--listen", "127.0.0.1:0"]
            if broker.admin_url:
                serve += ["--admin-url", broker.admin_url]
            facts = self._serve("dpm", serve)
            self.dpm = facts["listen"]
            self._client = self._stack.enter_context(northbound.connect(self.dpm))
            self._apply(list(self._region.host_intents()))
            run = ["agent", "run", *common, "--inspect", "127.0.0.1:0"]
            run += ["--hosts", str(self._region.hosts)]
            fleet = self._serve("fleet", run)
        out.text(f"DPM: process {facts['pid']} at {self.dpm}")
        reads = "read once" if fleet["decoding"] == "shared" else "read by each"
        out.text(
            f"fleet: {fleet['decoding_hosts']} decoding and {fleet['counting_hosts']} counting "
            "hosts in one process, each with its own readers and state; what several hosts get is "
            f"{reads}"
        )

    def _serve(self, name: str, arguments: list[str]) -> dict[str, Any]:
        """Start one of our commands, and wait until it says where it serves."""
        ready = self._directory / f"{name}.ready"
        child = Child(
            [sys.executable, "-m", "goalstate.cli", *arguments, "--ready-file", str(ready)],
            what=f"the {name}",
            log=self._directory / f"{name}.log",
            env=os.environ,
        )
        self._stack.callback(child.stop)
        try:
            child.await_ready(ready.exists, self._out.note)
        except BrokerFailed as error:
            raise CommandError(str(error), "") from error
        facts: dict[str, Any] = json.loads(ready.read_text(encoding="utf-8"))
        return facts

    # --- steps ---

    def build(self) -> None:
        region = self._region
        intents = [i for n in range(1, len(region.vpcs) + 1) for i in region.vpc_intents(n)]
        self._run(
            f"{sum(region.vpcs)} ports in {len(region.vpcs)} VPCs created", intents, everything=True
        )

    def change(self) -> None:
        """Three changes, of which each matters to other hosts."""
        port, target = self._mover()
        vpc = port.vpc_id
        if target:
            self._run(
                f"VM moved: {port.id} from {port.host_id} to {target}",
                [generate.move_port(port, target)],
            )
        else:
            self._out.text()
            self._out.text("no VM moved: there is one host only", style="bold")
        group = self._group_with_rules()
        rule = group.rules[0].id
        self._run(
            f"security revoked: {group.id} loses rule {rule}", [generate.revoke_rule(group, rule)]
        )
        self._run(f"VPC deleted: {vpc}, with all in it", [generate.delete_vpc(vpc)])

    def _mover(self) -> tuple[Port, str]:
        """A port of the first VPC, and a host that it is not on, "" if there is none."""
        port = self._region.port(1, 0)
        others = (self._region.host(index).id for index in range(self._region.hosts))
        return port, next((host for host in others if host != port.host_id), "")

    def _group_with_rules(self) -> SecurityGroup:
        first, *_ = self._region.vpc_intents(min(2, len(self._region.vpcs)))
        return next(group for group in first.security_groups if group.rules)

    def _run(self, title: str, intents: list[Intent], *, everything: bool = False) -> None:
        """Apply intents, wait for the hosts concerned, and say how long it took."""
        out = self._out
        begun = time.monotonic()
        with self._step(title):
            changes = self._apply(intents)
            accepted_s = time.monotonic() - begun
            wanted = request(
                change=0 if everything else changes[-1], everything=everything, timeout_s=STEP_S
            )
            reply = waited(self._client, wanted, out)
        if not reply.converged:
            describe(reply, out)
            raise Undecided(f"{title}: not converged within {STEP_S:g} s", "")
        total_s = time.monotonic() - begun
        self.results["steps"].append(
            {
                "step": title,
                "accepted_s": round(accepted_s, 4),
                "converged_s": round(total_s, 4),
                **document(reply),
            }
        )
        out.text()
        out.text(title, style="bold")
        out.text(f"  accepted and durable after {accepted_s * 1e3:.0f} ms")
        out.text(f"  {_timing(reply, total_s, everything)}")

    def _apply(self, intents: list[Intent]) -> list[int]:
        messages = [intent_codec.to_proto(intent) for intent in intents]
        changes = []
        for message, reply in zip(messages, self._client.apply(messages), strict=True):
            if reply.violations:
                first = reply.violations[0]
                raise CommandError(f"the DPM refused the demo: {first.path}: {first.message}", "")
            self._sent.append(message)
            changes.append(reply.change)
        return changes

    def check(self) -> comparison.Comparison:
        out = self._out
        with self._step("comparison"):
            found = comparison.compare(self._client, out, intents=self._sent)
        self.results["check"] = comparison.document(found)
        out.text()
        out.text("independent check of every host against the intent", style="bold")
        out.text(f"  {found.resources} resources held by {len(found.compared)} hosts compared")
        comparison.describe(found, out)
        return found

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """A failure within says in which step it was."""
        try:
            yield
        except CommandError as error:
            raise type(error)(
                f"{what}: {error.message}", error.next_step, detail=error.detail
            ) from error


def _timing(reply: WaitReply, total_s: float, everything: bool) -> str:
    latency = reply.latency
    if everything or not latency.count:
        return f"applied on all {reply.hosts} hosts concerned after {total_s:.2f} s"
    revocation = reply.revocation_latency
    also = f"; what it revokes after {revocation.max_ms:.1f} ms" if revocation.count else ""
    return (
        f"applied on all {reply.hosts} hosts concerned: p50 {latency.p50_ms:.1f} ms, "
        f"p99 {latency.p99_ms:.1f} ms, last host {latency.max_ms:.1f} ms{also}"
    )


def _clean_up(broker: brokers.Broker, region: str, out: Output) -> None:
    """Delete the region's topics from a broker that stays."""
    why = "it has no admin REST API to delete them with"
    if broker.admin_url:
        try:
            admin.delete_namespace(broker.admin_url, TENANT, region)
        except BusError as error:
            why = str(error)
        else:
            return
    out.note(f"the topics of {TENANT}/{region} stay at {broker.url}: {why}")


def _until_interrupted() -> None:
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
