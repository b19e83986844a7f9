"""Reads docker-compose.yml as Docker does, as far as this file needs it, and the dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/goalstate.json"

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+):-(?P<default>[^}]*)\}|(?P<other>.))")


def load() -> dict[str, Any]:
    """The file as it is, variables not yet filled in."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
    return document


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load()["services"]
    return found


def filled_in(text: str, environment: Mapping[str, str]) -> str:
    """Text with `${NAME:-default}` replaced, and `$$` by `$`. Raises ValueError for other forms."""

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if match["name"]:
            return environment.get(match["name"]) or str(match["default"])
        raise ValueError(f"{text!r}: {match[0]!r} is not used in this file")

    return _VARIABLE.sub(value, text)


def entrypoint(service: Mapping[str, Any]) -> list[str]:
    """What a container of the service starts: its own entry point, or that of our image."""
    if "entrypoint" in service:
        own: list[str] = service["entrypoint"]
        return own
    (line,) = re.findall(r"^ENTRYPOINT (.*)$", (ROOT / "Dockerfile").read_text("utf-8"), re.M)
    of_image: list[str] = json.loads(line)
    return of_image


def command(service: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """The whole command of a container, variables filled in."""
    parts = entrypoint(service) + service["command"]
    return [filled_in(part, environment) for part in parts]


def variables(service: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment that the file gives to a container."""
    given: dict[str, str] = service.get("environment", {})
    return {name: filled_in(value, environment) for name, value in given.items()}


def health_command(service: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    kind, *parts = service["healthcheck"]["test"]
    filled = [filled_in(part, environment) for part in parts]
    return ["sh", "-c", *filled] if kind == "CMD-SHELL" else filled


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return document


def expressions() -> list[str]:
    """All that the dashboard asks Prometheus."""
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    return asked + [note["expr"] for note in dashboard()["annotations"]["list"]]
