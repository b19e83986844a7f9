"""A region of a test's own on a broker: its topics, and the processes that run in it."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from goalstate.bus import admin
from goalstate.bus.brokers import Broker
from goalstate.bus.errors import BusError
from goalstate.cli import northbound
from goalstate.cli.errors import CommandError
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.streams import StreamId
from goalstate.gs.topics import Topics
from goalstate.testkit.connection import Connection
from goalstate.testkit.errors import KitError, NotAnswered, hide
from goalstate.testkit.process import BOUND, Process, command, environment, until, with_logs

__tracebackhide__ = hide

TENANT = "goalstate"

T = TypeVar("T")


class Region:
    """A namespace that nobody used before. As a context manager it ends all that is in it."""

    def __init__(
        self, broker: Broker, directory: Path, *, name: str = "", bound: float = BOUND
    ) -> None:
        """`directory` gets the logs. `bound`: seconds for a condition, where nothing else is said.

        Raises BusError where the broker has an admin API and does not make the namespace.
        """
        self.broker = broker
        self.directory = directory
        self.name = name or f"testkit-{secrets.token_hex(4)}"
        self.bound = bound
        self.topics = Topics(f"persistent://{TENANT}/{self.name}")
        #: All that were started, also those that have ended.
        self.processes: list[Process] = []
        #: Addresses of the DPMs that were started.
        self.dpms: list[str] = []
        self._names = itertools.count(1)
        self._connection: Connection | None = None
        if broker.admin_url:
            asyncio.run(admin.ensure_namespace(broker.admin_url, TENANT, self.name))

    def __enter__(self) -> Region:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, those that were started last first, and forget the topics."""
        with ExitStack() as stack:  # whatever one of these does, the others are done
            stack.callback(self._forget_topics)
            for process in self.processes:
                stack.callback(process.stop)
            if self._connection is not None:
                stack.callback(self._connection.close)
                self._connection = None

    def _forget_topics(self) -> None:
        if self.broker.kind != "url" or not self.broker.admin_url:
            return  # such a broker goes with the tests, or offers no way
        try:
            admin.delete_namespace(self.broker.admin_url, TENANT, self.name)
        except BusError as error:
            print(f"the topics of region {self.name} stay: {error}")

    @property
    def connection(self) -> Connection:
        """To the broker; made at its first use. Raises BusError."""
        if self._connection is None:
            self._connection = Connection(self.broker.url)
        return self._connection

    @property
    def common(self) -> list[str]:
        """Arguments that our commands have alike."""
        return ["--broker", self.broker.url, "--region", self.name, "--metrics-port", "0"]

    def start(self, name: str, *arguments: object, **settings: str) -> Process:
        """Start a `goalstate` command that has `--ready-file`; `settings` are of its environment.

        Raises ProcessFailed.
        """
        name = self._name(name)
        ready = self.directory / f"{name}.ready"
        return self._add(
            Process(
                name,
                command(*arguments, "--ready-file", ready),
                self.directory,
                env=environment(**settings),
                ready=ready,
            )
        )

    def spawn(
        self,
        name: str,
        arguments: Sequence[object],
        *,
        ready: Callable[[], bool] | Path | None = None,
        **settings: str,
    ) -> Process:
        """Start any command, an agent of somebody else for example.

        `ready`: what is true, or the file that is there, once it serves; None: at once. `settings`
        are of its environment. Raises ProcessFailed.
        """
        words = [str(argument) for argument in arguments]
        env = environment(**settings)
        return self._add(Process(self._name(name), words, self.directory, env=env, ready=ready))

    def _name(self, name: str) -> str:
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}-{next(self._names)}"

    def _add(self, process: Process) -> Process:
        self.processes.append(process)
        return process

    def serving_dpm(self) -> str:
        """Address of the DPM that serves the region. Raises NotAnswered."""
        why = "none was started" if not self.dpms else ""
        for address in self.dpms:
            try:
                with northbound.connect(address) as client:
                    if client.status().role == api.StatusReply.ACTIVE:
                        return address
                why = why or f"the one at {address} stands by"
            except CommandError as error:
                why = why or error.message
        raise NotAnswered(with_logs(f"no DPM serves the region: {why}", self.told()))

    def topic(self, stream: str) -> str:
        """The topic of a stream that is named vpc/ID, sg/ID or inbox/GROUP. Raises KitError."""
        return self.topics.of_stream(stream_id(stream))

    def told(self) -> str:
        """Which processes run, and the ends of their logs: for failures."""
        told = [self.broker_told(), *(process.told() for process in self.processes)]
        return "\n".join(filter(None, told))

    def broker_told(self) -> str:
        """What is wrong with the broker; empty: nothing that we know of."""
        return f"the broker at {self.broker.url} has ended" if self.broker.ended else ""

    def until(self, condition: Callable[[], T], what: str, *, within: float | None = None) -> T:
        """Wait for a condition, and give what it was.

        Raises ConditionNotMet, which names it, and has the ends of the logs.
        """
        return until(condition, what, within=self.within(within), told=self.told)

    def within(self, seconds: float | None) -> float:
        """A bound that was given, or the region's."""
        return self.bound if seconds is None else seconds


def stream_id(stream: str) -> StreamId:
    """Raises KitError for what names none."""
    try:
        return StreamId.parse(stream)
    except ValueError as error:
        reason = str(error)
    raise KitError(reason)
