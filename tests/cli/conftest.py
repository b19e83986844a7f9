"""What every test of a command needs: the command, a publisher, an agent process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from goalstate.cli import rpc
from goalstate.cli.app import app
from tests.cli.servers import Agent, Publisher, serving_agent, serving_publisher


class Ran(NamedTuple):
    """How a command ended, and what it printed where."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The only line of stdout, as JSON."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Ran]
_command = cache(get_command)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command; a publisher's address is given where there is one."""
    for name in ("GOALSTATE_DPM", "GOALSTATE_BROKER_URL", "GOALSTATE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rpc, "CONNECT_S", 0.3)
    # Putting the command together takes typer longer than most commands.
    monkeypatch.setattr("typer.testing._get_command", _command)

    def run(*arguments: object, stdin: bytes | str | None = None) -> Ran:
        result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def publisher(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """A publisher that the command finds; it accepts everything."""
    servicer = Publisher()
    with serving_publisher(servicer) as address:
        monkeypatch.setenv("GOALSTATE_DPM", address)
        yield servicer


@pytest.fixture
def agent(publisher: Publisher) -> Iterator[Agent]:
    """An agent process that plays all hosts, of which each holds what it must."""
    servicer = Agent()
    with serving_agent(servicer):
        publisher.play(servicer)
        yield servicer
