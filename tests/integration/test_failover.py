"""Two publishers as processes: one is stopped, wakes up, and is killed; the region is served."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from goalstate.bus.brokers import Broker
from goalstate.bus.process import Child
from goalstate.cli import northbound
from goalstate.cli.errors import Unreachable
from goalstate.gs import intent_codec
from goalstate.gs.intent import Host, Intent
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2_grpc as api_grpc
from tests.integration.processes import System, until

#: Seconds for a call.
_CALL = 10.0


class Publisher:
    """One of the two."""

    def __init__(self, system: System, name: str) -> None:
        self.process: Child
        self.process, facts = system.start(name, *system.serve, GOALSTATE_DPM_WRITER=name)
        self.name = name
        self.address = str(facts["listen"])

    def status(self) -> api.StatusReply:
        with northbound.connect(self.address) as client:
            return client.status()

    def serves(self) -> bool:
        try:
            return self.status().role == api.StatusReply.ACTIVE
        except Unreachable:
            return False

    def stands_by(self) -> bool:
        return self.status().role == api.StatusReply.STANDBY

    def apply(self, number: int) -> int:
        """Make a host known; gives the change. Raises grpc.RpcError."""
        host = Host(f"h{number}", f"192.0.2.{number}", f"02:00:00:00:00:{number:02x}", "r")
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            stub = api_grpc.DataPlaneManagerStub(channel)
            intent = intent_codec.to_proto(Intent(hosts=(host,)))
            return int(stub.Apply(api.ApplyRequest(intent=intent), timeout=_CALL).change)


@pytest.fixture
def system(embedded_broker: Broker, tmp_path: Path) -> Iterator[System]:
    with System(embedded_broker, tmp_path) as one:
        yield one


def test_a_region_is_served_whatever_becomes_of_one_of_two_publishers(system: System) -> None:
    one, two = Publisher(system, "one"), Publisher(system, "two")
    assert one.serves()
    assert two.stands_by()
    assert two.status().active_address == one.address
    assert two.apply(1) == 1, "whichever is asked, the one that serves takes it"

    os.kill(one.process.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    until(two.serves, "the other serves")
    print(f"SIGSTOP: the other served after {time.monotonic() - stopped:.2f} s")
    assert two.status().epoch == 2
    assert two.apply(2) == 2

    os.kill(one.process.pid, signal.SIGCONT)
    try:
        assert one.apply(3) == 3, "it knew by then, and had the other one take it"
    except grpc.RpcError as refused:
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
    until(one.stands_by, "the old one stands by")
    assert one.apply(3) == 3, "who stands by has the other one take it"
    status = one.status()
    assert (status.active_writer, status.active_address) == ("two", two.address)
    assert two.serves()
    assert two.apply(4) == 4

    two.process.kill()
    killed = time.monotonic()
    until(one.serves, "the first serves again")
    print(f"kill -9: the other served after {time.monotonic() - killed:.2f} s")
    status = one.status()
    assert (status.epoch, status.change, status.objects["host"]) == (3, 4, 4)
    assert one.apply(5) == 5
