"""The commands of docker-compose.yml, run as local processes against a local Apache Pulsar.

What a container engine would do is done here by replacing text, and nothing else is changed:

    in the file                     here
    pulsar:6650, pulsar:8080        the broker of the tests
    dpm:50151, 127.0.0.1:50151      where the publisher says that it listens
    0.0.0.0                         127.0.0.1
    port 50151, 9151, 50152, 9152   0, any free one, where a process listens
    $(hostname):50152               127.0.0.1:0; in the health check, where the agents say
    /slots                          a temporary folder
    /opt/goalstate/health.py        deploy/health.py

Two options are added: --region, as the broker is not for this test alone, and --ready-file, which
tells the ports.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from goalstate.bus.brokers import Broker
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2, agent_pb2_grpc
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2_grpc as api_grpc
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from tests.deploy import composefile
from tests.deploy.composefile import ROOT

SERVICES = composefile.services()
#: Variables that whoever starts the stack may set.
SETTINGS = {"HOSTS": "4"}
CONTAINERS = ("c1", "c2")
#: Seconds until a process must be ready, healthy, converged or gone: a bound, not a wait.
BOUND = 60.0
#: The process itself is asked, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Running:
    """A service's process that has said that it is ready, and where."""

    process: subprocess.Popen[bytes]
    facts: dict[str, Any]
    log: Path

    @property
    def listen(self) -> str:
        return str(self.facts["listen"])

    def metrics(self) -> str:
        with DIRECT.open(f"http://{self.facts['metrics']}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def stop(self) -> int:
        """As `docker compose stop` does; gives the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(BOUND)


def replaced(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


def local_environment(
    service: Mapping[str, Any], replacements: Mapping[str, str]
) -> dict[str, str]:
    """Ours, with `goalstate` and `python` as tested here, and the own of the service on top."""
    given = composefile.variables(service, SETTINGS)
    scripts = str(Path(sys.executable).parent)
    path = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GOALSTATE")}
    own = {name: replaced(value, replacements) for name, value in given.items()}
    return {**kept, **own, "PATH": path}


def wait_ready(process: subprocess.Popen[bytes], file: Path, log: Path) -> dict[str, Any]:
    end = time.monotonic() + BOUND
    while not file.exists():
        assert process.poll() is None, log.read_text("utf-8")
        assert time.monotonic() < end, f"not ready after {BOUND} s:\n{log.read_text('utf-8')}"
        time.sleep(0.02)
    facts: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return facts


@contextmanager
def running(
    name: str, label: str, replacements: Mapping[str, str], region: str, folder: Path
) -> Iterator[Running]:
    """Run a service's command until the end of the block; ended by its process id."""
    service = SERVICES[name]
    ready_file, log = folder / f"{label}.json", folder / f"{label}.log"
    added = [f"--region={region}", f"--ready-file={ready_file}"]
    command = [replaced(part, replacements) for part in composefile.command(service, SETTINGS)]
    if command[0] == "sh":
        command[2] += " " + shlex.join(added)
    else:
        command += added
    environment = local_environment(service, replacements)
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process,
    ):
        try:
            yield Running(process, wait_ready(process, ready_file, log), log)
        finally:
            if process.poll() is None:
                process.kill()


def healthy(name: str, replacements: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    service = SERVICES[name]
    command = [replaced(p, replacements) for p in composefile.health_command(service, SETTINGS)]
    return subprocess.run(
        command,
        env=local_environment(service, replacements),
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )


@dataclass
class Stack:
    dpm: Running
    agents: dict[str, Running]
    region: str


@pytest.fixture(scope="module")
def stack(apache_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("compose")
    region = f"compose-{uuid.uuid4().hex[:12]}"
    base = {
        "pulsar://pulsar:6650": apache_broker.url,
        "http://pulsar:8080": apache_broker.admin_url,
        "0.0.0.0:50151": "127.0.0.1:0",
        "0.0.0.0": "127.0.0.1",
        "--metrics-port=9151": "--metrics-port=0",
        "--metrics-port=9152": "--metrics-port=0",
        "$(hostname):50152": "127.0.0.1:0",
        "/slots": str(folder / "slots"),
    }
    (folder / "slots").mkdir()
    with ExitStack() as all_of_them:
        dpm = all_of_them.enter_context(running("dpm", "dpm", base, region, folder))
        agents = {}
        for container in CONTAINERS:
            local = base | {"dpm:50151": dpm.listen}
            agents[container] = all_of_them.enter_context(
                running("agents", container, local, region, folder)
            )
        yield Stack(dpm, agents, region)


def health_replacements(stack: Stack, container: str) -> dict[str, str]:
    return {
        "127.0.0.1:50151": stack.dpm.listen,
        "$(hostname):50152": stack.agents[container].listen,
        "/opt/goalstate/health.py": str(ROOT / "deploy" / "health.py"),
    }


def northbound(stack: Stack) -> tuple[grpc.Channel, api_grpc.DataPlaneManagerStub]:
    channel = grpc.insecure_channel(stack.dpm.listen, options=[("grpc.enable_http_proxy", 0)])
    return channel, api_grpc.DataPlaneManagerStub(channel)


def small_intent(hosts: list[str]) -> intent_pb2.Intent:
    """One VPC with one port on each host."""
    intent = intent_pb2.Intent()
    intent.vpcs.add(id="vpc-1", cidr="10.0.0.0/16", tunnel_id=7)
    intent.subnets.add(
        id="subnet-1",
        vpc_id="vpc-1",
        cidr="10.0.1.0/24",
        gateway_ip="10.0.1.1",
        gateway_mac="02:00:00:00:01:01",
    )
    for number, host in enumerate(hosts, start=10):
        port = intent.ports.add(
            id=f"port-{number}",
            vpc_id="vpc-1",
            mac_address=f"02:00:00:00:02:{number:02x}",
            host_id=host,
        )
        port.fixed_ips.add(subnet_id="subnet-1", ip_address=f"10.0.1.{number}")
    return intent


def test_publisher_and_agents_are_healthy_by_their_health_checks(stack: Stack) -> None:
    for container in CONTAINERS:
        places = health_replacements(stack, container)
        for name in ("dpm", "agents"):
            done = healthy(name, places)
            assert done.returncode == 0, done.stderr


def test_a_health_check_fails_where_nobody_serves(stack: Stack) -> None:
    places = health_replacements(stack, "c1") | {"127.0.0.1:50151": "127.0.0.1:1"}
    done = healthy("dpm", places)
    assert done.returncode == 1
    assert "127.0.0.1:1 is not serving: UNAVAILABLE" in done.stderr


def test_each_container_of_agents_has_hosts_of_its_own(stack: Stack) -> None:
    channel, dpm = northbound(stack)
    with channel:
        status = dpm.GetStatus(api.StatusRequest(hosts=True), timeout=BOUND)
    number = int(SETTINGS["HOSTS"]) * len(CONTAINERS)
    assert sorted(host.host for host in status.host_list) == [
        f"host-{index:06d}" for index in range(number)
    ]


def test_an_intent_reaches_the_hosts_of_all_containers(stack: Stack) -> None:
    channel, dpm = northbound(stack)
    with channel:
        status = dpm.GetStatus(api.StatusRequest(hosts=True), timeout=BOUND)
        hosts = sorted(host.host for host in status.host_list)
        reply = dpm.Apply(api.ApplyRequest(intent=small_intent(hosts)), timeout=BOUND)
        waited = dpm.Wait(api.WaitRequest(change=reply.change, timeout_s=BOUND), timeout=BOUND + 10)
    assert waited.converged, waited
    assert waited.hosts_applied == len(hosts)
    applied: dict[str, set[str]] = {}
    for agents in stack.agents.values():
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(agents.listen, options=options) as place:
            inspection = agent_pb2_grpc.InspectionStub(place)
            request = agent_pb2.GetAppliedRequest(stream="vpc/vpc-1")
            for piece in inspection.GetApplied(request, timeout=BOUND):
                applied.setdefault(piece.host, set()).update(piece.state.neighbor_states)
    everybody = {port.id for port in small_intent(hosts).ports}
    assert applied == dict.fromkeys(hosts, everybody)


def test_the_dashboard_asks_for_labels_that_are_exported_where_the_file_says(stack: Stack) -> None:
    labels: dict[str, set[str]] = {}
    for each in (stack.dpm, *stack.agents.values()):
        for family in text_string_to_metric_families(each.metrics()):
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
    added_by_prometheus = {"instance", "job"}
    for expression in composefile.expressions():
        metrics = re.findall(r"goalstate_\w+", expression)
        grouped = ", ".join(re.findall(r"by \(([^)]*)\)", expression)).split(", ")
        used = {*filter(None, grouped), *re.findall(r"(\w+)=", expression)}
        known = added_by_prometheus.union(*(labels[metric] for metric in metrics))
        assert used <= known, expression


def test_a_stop_is_orderly(stack: Stack) -> None:
    # The last one of the module: it ends what the fixture started, agents first as Compose does.
    for each in (*stack.agents.values(), stack.dpm):
        assert each.stop() == 0, each.log.read_text("utf-8")
