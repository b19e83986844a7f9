"""The system as processes, each started by the command that a user would type.

Every process ends with the test process, however that ends (see `goalstate.bus.process`).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from goalstate.bus.brokers import Broker
from goalstate.bus.process import Child
from goalstate.cli import comparison, inspection, northbound
from goalstate.cli.held import Held
from goalstate.cli.northbound import DataPlaneManager
from goalstate.cli.output import Output
from goalstate.gs import intent_codec
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.streams import StreamId
from goalstate.gs.topics import Topics

#: Seconds within which a process must be ready, or a condition come: a bound, not a wait.
BOUND = 60.0
_LOOK = 0.02
_numbers = itertools.count(1)


def environment(**more: str) -> dict[str, str]:
    """Ours, without the settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GOALSTATE")}
    return {**kept, **more}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "goalstate.cli", *map(str, arguments)]


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
    end = time.monotonic() + BOUND
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {BOUND} s: {what}"
        time.sleep(_LOOK)
    return found


class System:
    """One region on a broker: its publisher, its fleets, and the intents that were accepted."""

    def __init__(self, broker: Broker, directory: Path) -> None:
        self.broker = broker
        self.directory = directory
        self.region = f"test-{os.getpid()}-{next(_numbers)}"
        self.topics = Topics(f"persistent://goalstate/{self.region}")
        self.sent: list[intent_pb2.Intent] = []
        self.dpm: Child | None = None
        self.listen = ""
        self.fleets: dict[str, Child] = {}
        self._stack = ExitStack()
        self._client: DataPlaneManager | None = None
        self._connection = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()
        self._stack.close()

    # --- processes ---

    def start(self, name: str, *arguments: object, **settings: str) -> tuple[Child, dict[str, Any]]:
        """Start a command that stays, and wait until it says where it serves."""
        ready = self.directory / f"{name}-{next(_numbers)}.ready"
        child = Child(
            command(*arguments, "--ready-file", ready),
            what=name,
            log=ready.with_suffix(".log"),
            env=environment(**settings),
        )
        self._stack.callback(child.stop)
        child.await_ready(ready.exists, lambda text: None)
        facts: dict[str, Any] = json.loads(ready.read_text("utf-8"))
        return child, facts

    @property
    def common(self) -> list[str]:
        return ["--broker", self.broker.url, "--region", self.region, "--metrics-port", "0"]

    @property
    def serve(self) -> list[str]:
        """The command of a publisher of this region."""
        admin = ["--admin-url", self.broker.admin_url] if self.broker.admin_url else []
        return ["dpm", "serve", *self.common, *admin, "--listen", "127.0.0.1:0"]

    def start_dpm(self, **settings: str) -> None:
        self.dpm, facts = self.start("dpm", *self.serve, **settings)
        self.listen = facts["listen"]
        self._connection.close()
        self._client = self._connection.enter_context(northbound.connect(self.listen))

    def stop_dpm(self) -> None:
        assert self.dpm is not None
        self.dpm.stop()

    def kill_dpm(self) -> None:
        assert self.dpm is not None
        self.dpm.kill()

    def start_fleet(self, hosts: int, first: int = 0) -> None:
        """Hosts that report often, so that who asks a new publisher need not wait for them."""
        name = f"fleet-{first}"
        arguments = ["agent", "run", *self.common, "--inspect", "127.0.0.1:0"]
        arguments += ["--hosts", str(hosts), "--first", str(first), "--group-size", "4"]
        self.fleets[name], _ = self.start(name, *arguments, GOALSTATE_AGENT_LEASE_S="3")

    # --- the publisher ---

    @property
    def client(self) -> DataPlaneManager:
        assert self._client is not None
        return self._client

    def apply(self, intents: Iterable[Intent]) -> api.ApplyReply:
        """Have intents accepted; gives the last answer."""
        messages = [intent_codec.to_proto(intent) for intent in intents]
        for message, reply in zip(messages, self.client.apply(messages), strict=True):
            assert not reply.violations, reply
            self.sent.append(message)
        return reply

    def converged(self, **target: Any) -> api.WaitReply:
        """Wait for a change, a VPC or all; it must converge."""
        request = api.WaitRequest(timeout_s=BOUND, **(target or {"all": True}))
        reply = self.client.wait(request)
        assert reply.converged, reply
        return reply

    def all_live(self) -> None:
        """Wait until the publisher, which may be new, has heard of every host."""

        def live() -> bool:
            status = self.client.status()
            return not status.hosts_never_reported and not status.hosts_expired

        until(live, "every host is live")

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
