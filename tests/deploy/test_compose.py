"""docker-compose.yml and what belongs to it agree with each other and with the code.

Nothing is started here; test_compose_processes.py runs the commands.
"""

from __future__ import annotations

import importlib
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from goalstate.bus import apache
from tests.deploy import composefile
from tests.deploy.composefile import ROOT

SERVICES = composefile.services()
DASHBOARD = ROOT / "deploy/grafana/dashboards/goalstate.json"
PROMETHEUS = ROOT / "deploy/prometheus/prometheus.yml"
PROVISIONING = ROOT / "deploy/grafana/provisioning"
each_service = pytest.mark.parametrize("name", sorted(SERVICES))


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return document


def expressions() -> list[str]:
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    return asked + [note["expr"] for note in dashboard()["annotations"]["list"]]


def labels_by_metric() -> dict[str, set[str]]:
    """The names under which Prometheus sees what the processes export, with their labels."""
    found = {}
    for module in ("goalstate.dpm.metrics", "goalstate.agent.metrics"):
        registry = CollectorRegistry()
        importlib.import_module(module).Metrics(registry)
        for collector, names in registry._collector_to_names.items():
            for name in names:
                found[name] = set(collector._labelnames)  # type: ignore[attr-defined]
    return found


def test_the_stack_is_broker_publisher_agents_and_monitoring() -> None:
    assert set(SERVICES) == {"pulsar", "dpm", "agents", "prometheus", "grafana"}


@each_service
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


def test_the_dashboard_shows_only_metrics_and_labels_that_the_code_exports() -> None:
    exported = labels_by_metric()
    implied = {"le", "instance", "job"}
    for expression in expressions():
        metrics = re.findall(r"goalstate_\w+", expression)
        assert metrics, expression
        assert set(metrics) <= set(exported), expression
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        used = {label.strip() for group in grouped for label in group.split(",")}
        used |= set(re.findall(r"(\w+)=", expression))
        assert used <= implied.union(*(exported[metric] for metric in metrics)), expression


def test_the_dashboard_shows_every_metric_that_the_code_exports() -> None:
    shown = " ".join(expressions())
    families = {
        re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in labels_by_metric()
    }
    assert [family for family in sorted(families) if family not in shown] == []


def test_panels_of_the_dashboard_do_not_lie_over_each_other() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in panels) == 24
