"""The system as processes, each started by the command that a user would type.

A system is a region of the test kit with one publisher and fleets of hosts. Every process ends with
the test process, however that ends (see `goalstate.bus.process`).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

from goalstate.bus.brokers import Broker
from goalstate.bus.process import Child
from goalstate.cli import comparison, inspection
from goalstate.cli.held import Held
from goalstate.cli.northbound import DataPlaneManager
from goalstate.cli.output import Output
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.streams import StreamId
from goalstate.testkit import Agents, Dpm, Region
from goalstate.testkit import until as kit_until
from goalstate.testkit.process import BOUND, command, environment

__all__ = ["BOUND", "Ran", "System", "command", "environment", "run", "until"]


class Ran(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What `--json` printed."""
        (line,) = self.out.splitlines()
        return json.loads(line)


def run(*arguments: object, stdin: bytes = b"") -> Ran:
    """Run a command to its end."""
    done = subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        env=environment(),
        timeout=BOUND,
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def until(condition: Callable[[], object], what: str) -> Any:
    """Wait for a condition, and give what it was; fails, naming it, if it does not come."""
    return kit_until(condition, what)


class System:
    """One region on a broker: its publisher, its fleets, and the intents that were accepted."""

    def __init__(self, broker: Broker, directory: Path) -> None:
        self.broker = broker
        self.directory = directory
        self.kit = Region(broker, directory)
        self.region = self.kit.name
        self.topics = self.kit.topics
        self.agents = Agents(self.kit)
        self.sent: list[intent_pb2.Intent] = []
        self.publisher: Dpm | None = None
        self.fleets: dict[str, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.publisher is not None:
            self.publisher.close()
        self.kit.close()

    # --- processes ---

    def start(self, name: str, *arguments: object, **settings: str) -> tuple[Child, dict[str, Any]]:
        """Start a command that stays, and wait until it says where it serves."""
        process = self.kit.start(name, *arguments, **settings)
        return process.child, process.facts

    @property
    def common(self) -> list[str]:
        return self.kit.common

    @property
    def serve(self) -> list[str]:
        """The command of a publisher of this region."""
        admin = ["--admin-url", self.broker.admin_url] if self.broker.admin_url else []
        return ["dpm", "serve", *self.common, *admin, "--listen", "127.0.0.1:0"]

    @property
    def dpm(self) -> Child | None:
        return self.publisher.process.child if self.publisher is not None else None

    @property
    def listen(self) -> str:
        return self._dpm.address

    def start_dpm(self, **settings: Any) -> None:
        if self.publisher is None:
            self.publisher = Dpm(self.kit, **settings)
            self.publisher.accepted = self.sent
        else:
            self.publisher.restart()

    def stop_dpm(self) -> None:
        self._dpm.stop()

    def kill_dpm(self) -> None:
        self._dpm.kill()

    def start_fleet(self, hosts: int, first: int = 0, **settings: Any) -> None:
        """Hosts that report often, so that who asks a new publisher need not wait for them."""
        fleet = self.agents.start(hosts, first=first, register=False, lease_s=3, **settings)
        self.fleets[f"fleet-{first}"] = fleet.process.child

    # --- the publisher ---

    @property
    def _dpm(self) -> Dpm:
        assert self.publisher is not None
        return self.publisher

    @property
    def client(self) -> DataPlaneManager:
        return self._dpm.client

    def apply(self, intents: Iterable[Intent]) -> api.ApplyReply:
        """Have intents accepted; gives the last answer."""
        return self._dpm.apply(*intents)

    def converged(self, **target: Any) -> api.WaitReply:
        """Wait for a change, a VPC or all; it must converge."""
        vpc, change = target.get("vpc_id", ""), target.get("change", 0)
        return self._dpm.wait(vpc=vpc, change=change)

    def all_live(self) -> None:
        """Wait until the publisher, which may be new, has heard of every host."""
        self._dpm.await_live()

    def check(self) -> comparison.Comparison:
        """Every host holds what follows from the accepted intents, by other code than ours."""
        self.all_live()
        found = comparison.compare(self.client, Output(False), intents=self.sent)
        assert found.differences == []
        assert (found.total, found.unknown) == (0, {})
        return found

    # --- the hosts ---

    def addresses(self) -> dict[str, str]:
        return inspection.addresses(self.client.status(hosts=True).host_list)

    def held(self, host: str, address: str) -> Held:
        """What a host has applied, and what it says that it has not."""
        return inspection.of_host(address, host, Held)

    def topic(self, stream: StreamId) -> str:
        return self.topics.of_stream(stream)
