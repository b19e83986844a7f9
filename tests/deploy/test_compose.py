"""docker-compose.yml and what belongs to it agree with each other and with the code.

Nothing is started here; test_compose_processes.py runs the commands.
"""

from __future__ import annotations

import asyncio
import re
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from goalstate.agent import metrics as agent_metrics
from goalstate.agent.core import HostSettings
from goalstate.agent.dataplanes import MemoryDataPlane
from goalstate.agent.fleet import Fleet, FleetSettings
from goalstate.bus import apache
from goalstate.bus.memory import MemoryBroker, MemoryBus
from goalstate.dpm import metrics as dpm_metrics
from goalstate.gs.topics import Topics
from tests.deploy import composefile
from tests.deploy.composefile import DASHBOARD, ROOT, dashboard, expressions

SERVICES = composefile.services()
PROMETHEUS = ROOT / "deploy/prometheus/prometheus.yml"
PROVISIONING = ROOT / "deploy/grafana/provisioning"
each_service = pytest.mark.parametrize("name", sorted(SERVICES))


async def exported_families() -> set[str]:
    """The names of the metrics that publisher and agents export, counters without `_total`."""
    fleet = Fleet(
        MemoryBus(MemoryBroker(lambda: 0)),
        [],
        FleetSettings(HostSettings(Topics()), report_topic="", clock_id=""),
        lambda host: MemoryDataPlane(),
    )
    registries = (dpm_metrics.Metrics().registry, agent_metrics.registry(fleet))
    return {family.name for registry in registries for family in registry.collect()}


#: Started only where their profile is asked for; they end by themselves.
JOBS = {"load", "load-workers"}


def test_the_stack_is_broker_publisher_agents_and_monitoring() -> None:
    assert set(SERVICES) - JOBS == {"pulsar", "dpm", "agents", "prometheus", "grafana"}
    assert {name for name in SERVICES if SERVICES[name].get("profiles") == ["load"]} == JOBS


def test_a_load_run_has_workers_enough() -> None:
    text = composefile.load()["services"]["load"]["command"]
    assert f"--workers=${{WORKERS:-{SERVICES['load-workers']['scale']}}}" in text


@pytest.mark.parametrize("name", sorted(set(SERVICES) - JOBS))
def test_a_service_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@each_service
def test_a_service_starts_only_when_what_it_needs_is_healthy(name: str) -> None:
    needs = SERVICES[name].get("depends_on", {})
    assert set(needs) <= set(SERVICES)
    assert {need["condition"] for need in needs.values()} <= {"service_healthy"}


@each_service
def test_an_image_is_built_here_or_pinned_to_a_version(name: str) -> None:
    service = SERVICES[name]
    assert "build" in service or re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])


def test_the_image_builds_on_a_pinned_python_and_is_not_run_by_root() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
    assert bases == {"python:3.11-slim-bookworm"}
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]


def test_what_the_image_is_made_of_exists_and_reaches_the_build() -> None:
    let_through = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in let_through


@each_service
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port


def test_no_port_is_published_twice() -> None:
    outside = [port.split(":")[1] for s in SERVICES.values() for port in s.get("ports", [])]
    assert len(outside) == len(set(outside))


def test_the_agents_can_be_scaled() -> None:
    # A published port or a fixed name would be taken by the first container.
    assert not {"ports", "container_name", "hostname"} & set(SERVICES["agents"])


@each_service
def test_what_is_mounted_exists(name: str) -> None:
    declared = composefile.load()["volumes"]
    for volume in SERVICES[name].get("volumes", []):
        source, _, rest = volume.partition(":")
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert rest.endswith(":ro")
        else:
            assert source in declared


def test_the_broker_has_the_version_and_settings_of_the_one_started_without_docker() -> None:
    pulsar = SERVICES["pulsar"]
    assert pulsar["image"].endswith(f":{apache.VERSION}")
    given = pulsar["environment"]
    assert (
        apache.SETTINGS.items()
        <= {name.removeprefix("PULSAR_PREFIX_"): value for name, value in given.items()}.items()
    )


def test_prometheus_asks_each_service_where_it_exports() -> None:
    configuration = yaml.safe_load(PROMETHEUS.read_text("utf-8"))
    asked = {}
    for job in configuration["scrape_configs"]:
        for group in job.get("static_configs", []):
            for target in group["targets"]:
                host, _, port = target.partition(":")
                asked[host] = int(port)
        for names in job.get("dns_sd_configs", []):
            asked |= dict.fromkeys(names["names"], names["port"])
    exported = {"pulsar": 8080}
    for name in ("dpm", "agents"):
        text = " ".join(composefile.command(SERVICES[name], {}))
        (port,) = re.findall(r"--metrics-port=(\d+)", text)
        exported[name] = int(port)
    assert asked == exported


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    used = set(re.findall(r'"uid": "(goalstate-[^"]*)"', DASHBOARD.read_text("utf-8")))
    assert used == {source["uid"]}
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/goalstate.yml").read_text())[
        "providers"
    ]
    mounts = dict(v.split(":")[:2] for v in SERVICES["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home) == Path(provider["options"]["path"]) / DASHBOARD.name


def test_the_dashboard_shows_all_metrics_that_the_code_exports_and_no_others() -> None:
    names = re.findall(r"goalstate_\w+", " ".join(expressions()))
    shown = {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in names}
    assert shown == asyncio.run(exported_families())


def test_panels_of_the_dashboard_do_not_lie_over_each_other() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in panels) == 24
