"""RabbitMQ: a fan-out exchange and a queue for each host, as OpenStack Neutron has them.

The client is Neutron's too (`amqp`). It blocks, so each connection has a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import amqp

from bench.peers import servers
from bench.peers.base import CONNECTIONS, Arrived, Hosts, Place, Source, Work
from bench.peers.dealing import dealt
from bench.system import MeasurementFailed
from goalstate.bus.process import Child, free_ports

_HOME = "usr/lib/rabbitmq/lib"
#: Of one frame; the largest that this server's memory is not spent on at once.
_FRAME = 131_072


@dataclass(frozen=True)
class RabbitMq:
    port: int
    version: str
    servers: tuple[int, ...]
    name: str = "RabbitMQ fan-out"
    how: str = (
        "a fan-out exchange, a transient queue for each host, no acknowledgements, over "
        f"{CONNECTIONS} connections; it has no compression"
    )
    no_late: str | None = "it keeps nothing for who comes late"
    publishers: tuple[int, ...] = ()

    def units(self, work: Work) -> int:
        return len(work.state)

    def source(self, work: Work, hosts: int) -> Source:
        return _Publisher(self, work)

    def hosts(self, vpc: str, first: int, number: int, *, late: bool) -> Hosts:
        return _Consumers(self, vpc, range(first, first + number))

    def connect(self) -> Any:
        connection = amqp.Connection(
            f"127.0.0.1:{self.port}", "guest", "guest", frame_max=_FRAME, heartbeat=0
        )
        connection.connect()
        return connection


def start(place: Place) -> RabbitMq:
    program = servers.find(
        "rabbitmq-server", "usr/lib/rabbitmq/bin/rabbitmq-server", place.progress
    )
    scripts = list((program.root / _HOME).glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    if not scripts:
        raise MeasurementFailed(f"there is no server below {program.root / _HOME}")
    port, between, names = free_ports(3)
    folder = place.scratch / "rabbitmq"
    folder.mkdir()
    (folder / "empty.conf").write_text("", "utf-8")
    (folder / "plugins").write_text("[].\n", "utf-8")
    env = {
        **program.env,
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(names),
        "RABBITMQ_NODENAME": "bench@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(between),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_CONFIG_FILE": str(folder / "empty"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        # The shell that starts it becomes it, so that it ends with our signal.
        "RUNNING_UNDER_SYSTEMD": "1",
    }
    # Erlang's name service goes on for ever if the server has to start it.
    epmd = Child(["epmd"], what="epmd", log=place.scratch / "epmd.log", env=env)
    place.stack.callback(epmd.stop)
    epmd.await_ready(partial(servers.listens, names), place.progress)
    child = Child([str(scripts[0])], what="RabbitMQ", log=place.scratch / "rabbitmq.log", env=env)
    place.stack.callback(child.stop)
    child.await_ready(partial(servers.listens, port), place.progress)
    found = scripts[0].parent.parent.name.removeprefix("rabbitmq_server-")
    return RabbitMq(port, f"RabbitMQ {found}, amqp {version('amqp')}", (child.pid,))


class _Publisher:
    def __init__(self, peer: RabbitMq, work: Work) -> None:
        self._peer = peer
        self._work = work

    async def open(self) -> None:
        self._connection = self._peer.connect()
        self._channel = self._connection.channel()
        self._channel.confirm_select()

    async def begin(self, vpc: str) -> None:
        self._channel.exchange_declare(vpc, "fanout", durable=False, auto_delete=False)

    async def state(self, vpc: str) -> None:
        for sent in self._work.state:
            self._publish(vpc, sent.payload)

    async def change(self, vpc: str, number: int) -> None:
        self._publish(vpc, self._work.changes[number].payload)

    def _publish(self, vpc: str, payload: bytes) -> None:
        self._channel.basic_publish(amqp.Message(payload, delivery_mode=1), vpc)

    async def admit(self, vpc: str, first: int, hosts: int) -> None: ...

    async def close(self) -> None:
        self._connection.close()


class _Consumers:
    def __init__(self, peer: RabbitMq, vpc: str, hosts: range) -> None:
        self._peer = peer
        self._vpc = vpc
        self._hosts = hosts
        self._connections: list[Any] = []
        self._threads: list[threading.Thread] = []

    async def connect(self) -> None:
        self._connections = [self._peer.connect() for _ in dealt(self._hosts)]

    async def follow(self, arrived: Arrived) -> None:
        def follow(connection: Any, hosts: range) -> None:
            channel = connection.channel()
            for host in hosts:
                queue, *_ = channel.queue_declare(exclusive=True, auto_delete=True)
                channel.queue_bind(queue, self._vpc)
                channel.basic_consume(queue, no_ack=True, callback=_taking(arrived, host))

        dealing = list(zip(self._connections, dealt(self._hosts), strict=True))
        await asyncio.gather(*(asyncio.to_thread(follow, *one) for one in dealing))
        for connection, _ in dealing:
            thread = threading.Thread(target=_drain, args=(connection,), daemon=True)
            thread.start()
            self._threads.append(thread)

    async def close(self) -> None:
        for connection in self._connections:
            connection.transport.close()
        for thread in self._threads:
            thread.join()


def _taking(arrived: Arrived, host: int) -> Callable[[Any], None]:
    return lambda message: arrived(host, 1)


def _drain(connection: Any) -> None:
    """Until the connection is closed."""
    with contextlib.suppress(OSError, AttributeError, amqp.exceptions.AMQPError):
        while True:
            connection.drain_events()
