"""OVSDB: a row for each neighbor and a monitor for each host, as OVN's controllers have them.

It is spoken here without the `ovs` package, whose replica is a Python object for each row and host,
ten million of them, and whose parser is Python where its C part was not built. So a host does less
than it would: it counts the rows in what it reads.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.peers import servers
from bench.peers.base import Arrived, Hosts, Place, Source, Work
from bench.system import MeasurementFailed
from goalstate.bus.process import Child, free_ports
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalStateV2

_DATABASE = "Bench"
#: Columns, and the one whose name tells a row in what is read: each row has it once.
_COLUMNS = {
    "neighbor": "string",
    "vpc": "string",
    "name": "string",
    "mac": "string",
    "host_ip": "string",
    "ips": {"key": "string", "min": 0, "max": "unlimited"},
}
_MARK = b'"neighbor":'
#: The answer to the server's question whether a client is there.
_ALIVE = b'{"id":"echo","result":[],"error":null}'
#: Tables, for as many VPCs; a monitor of a whole table is what the server can share best.
_TABLES = 10


@dataclass(frozen=True)
class Ovsdb:
    port: int
    version: str
    servers: tuple[int, ...]
    name: str = "OVSDB monitors"
    how: str = (
        "a row for each neighbor in a table for the VPC, written in one transaction; a monitor and "
        "a connection for each host, which counts rows in the bytes and parses no JSON; neighbors "
        "only"
    )
    no_late: str | None = None
    publishers: tuple[int, ...] = ()

    def units(self, work: Work) -> int:
        return len(rows([sent.payload for sent in work.state]))

    def source(self, work: Work, hosts: int) -> Source:
        return _Writer(self, work)

    def hosts(self, vpc: str, first: int, number: int, *, late: bool) -> Hosts:
        return _Monitors(self, vpc, range(first, first + number), late)


def start(place: Place) -> Ovsdb:
    package = "openvswitch-common"
    server = servers.find(package, "usr/sbin/ovsdb-server", place.progress)
    tool = servers.find(package, "usr/bin/ovsdb-tool", place.progress)
    folder = place.scratch / "ovsdb"
    folder.mkdir()
    schema, database = folder / "schema.json", folder / "bench.db"
    table = {"columns": {name: {"type": kind} for name, kind in _COLUMNS.items()}, "isRoot": True}
    tables = {f"vpc-{number}".replace("-", "_"): table for number in range(_TABLES)}
    described = {"name": _DATABASE, "version": "1.0.0", "tables": tables}
    schema.write_text(json.dumps(described), "utf-8")
    env = {**server.env, "OVS_RUNDIR": str(folder), "OVS_LOGDIR": str(folder)}
    made = subprocess.run(
        [tool.path, "create", database, schema],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise MeasurementFailed(f"ovsdb-tool made no database: {made.stderr.strip()}")
    (port,) = free_ports(1)
    child = Child(
        [str(server.path), str(database), f"--remote=ptcp:{port}:127.0.0.1", "--no-chdir"],
        what="OVSDB",
        log=place.scratch / "ovsdb.log",
        env=env,
    )
    place.stack.callback(partial(shutil.rmtree, folder, ignore_errors=True))
    place.stack.callback(child.stop)
    child.await_ready(partial(servers.listens, port), place.progress)
    return Ovsdb(port, servers.said(server, "--version"), (child.pid,))


def rows(payloads: Sequence[bytes]) -> list[dict[str, Any]]:
    """The neighbors of these messages."""
    found = []
    for payload in payloads:
        for id_, state in GoalStateV2.FromString(payload).neighbor_states.items():
            one = state.configuration
            found.append(
                {
                    "neighbor": id_,
                    "vpc": one.vpc_id,
                    "name": one.name,
                    "mac": one.mac_address,
                    "host_ip": one.host_ip_address,
                    "ips": ["set", [f"{ip.subnet_id} {ip.ip_address}" for ip in one.fixed_ips]],
                }
            )
    return found


def _table(vpc: str) -> str:
    return vpc.replace("-", "_")


def _request(number: int, method: str, parameters: Sequence[Any]) -> bytes:
    request = {"id": number, "method": method, "params": parameters}
    return json.dumps(request, separators=(",", ":")).encode()


def reading() -> Callable[[bytes], Iterator[dict[str, Any]]]:
    """Takes what is read, gives the messages that it completes; several may come at once."""
    decoder, left = json.JSONDecoder(), ""

    def read(data: bytes) -> Iterator[dict[str, Any]]:
        nonlocal left
        left += data.decode("ascii")
        while left := left.lstrip():
            try:
                message, end = decoder.raw_decode(left)
            except ValueError:
                return  # not whole yet
            left = left[end:]
            yield message

    return read


class _Writer(asyncio.Protocol):
    def __init__(self, peer: Ovsdb, work: Work) -> None:
        self._port = peer.port
        self._state = rows([sent.payload for sent in work.state])
        self._changes = [rows([sent.payload])[0] for sent in work.changes]
        self._numbers = itertools.count(1)
        self._read = reading()
        self._answer: asyncio.Future[dict[str, Any]] | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self._port)

    def data_received(self, data: bytes) -> None:
        for message in self._read(data):
            if message.get("method") == "echo":
                self._transport.write(_ALIVE)
            elif self._answer is not None:
                self._answer.set_result(message)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(MeasurementFailed("OVSDB closed the writer's connection"))

    async def begin(self, vpc: str) -> None: ...

    async def state(self, vpc: str) -> None:
        await self._insert(vpc, self._state)

    async def change(self, vpc: str, number: int) -> None:
        await self._insert(vpc, self._changes[number : number + 1])

    async def _insert(self, vpc: str, some: Sequence[dict[str, Any]]) -> None:
        table = _table(vpc)
        inserts = [{"op": "insert", "table": table, "row": row} for row in some]
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(_request(next(self._numbers), "transact", [_DATABASE, *inserts]))
        message = await self._answer
        failed = message["error"] or [one for one in message["result"] if one and "error" in one]
        if failed:
            raise MeasurementFailed(f"OVSDB refused rows: {failed}")

    async def admit(self, vpc: str, first: int, hosts: int) -> None: ...

    async def close(self) -> None:
        self._transport.close()


class _Monitors:
    def __init__(self, peer: Ovsdb, vpc: str, hosts: range, late: bool) -> None:
        self._port = peer.port
        self._vpc = vpc
        self._hosts = hosts
        self._late = late
        self._monitors: list[_Monitor] = []

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        for host in self._hosts:
            _, monitor = await loop.create_connection(
                partial(_Monitor, host), "127.0.0.1", self._port
            )
            self._monitors.append(monitor)
            # Few may wait to be accepted, the next ones try again after a second: so we wait.
            monitor.transport.write(_request(0, "echo", []))
            await monitor.answered.wait()
            monitor.answered.clear()

    async def follow(self, arrived: Arrived) -> None:
        table = _table(self._vpc)
        select = {"initial": self._late, "insert": True, "delete": True, "modify": True}
        wanted = {table: [{"columns": list(_COLUMNS), "select": select}]}
        request = _request(0, "monitor_cond", [_DATABASE, table, wanted])
        for monitor in self._monitors:
            monitor.ask(request, arrived)
        await asyncio.gather(*(monitor.answered.wait() for monitor in self._monitors))

    async def close(self) -> None:
        for monitor in self._monitors:
            monitor.transport.close()


class _Monitor(asyncio.Protocol):
    """A host's connection."""

    def __init__(self, host: int) -> None:
        self._host = host
        self._end = b""
        self.answered = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes, arrived: Arrived) -> None:
        self._arrived = arrived
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.answered.set()
        if b'"method":"echo"' in data:  # after some seconds of silence
            self.transport.write(_ALIVE)
        # A mark may be cut in two.
        text = self._end + data
        found = text.count(_MARK)
        place = text.rfind(_MARK)
        rest = text if place < 0 else text[place + len(_MARK) :]
        self._end = rest[-len(_MARK) + 1 :]
        if found:
            self._arrived(self._host, found)
