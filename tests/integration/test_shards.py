"""Three publishers as processes share a region; one is killed under load; nothing is lost."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from goalstate.bus.brokers import Broker
from goalstate.bus.process import Child
from goalstate.cli import northbound
from goalstate.cli.errors import ExitCode, Undecided, Unreachable
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from tests.integration.processes import BOUND, System, run, until

SHARDS = 6
HOSTS = 12
#: Clients that make changes at the same time, and changes of each; after the first third of one's
#: a publisher is killed.
CLIENTS = 4
CHANGES = 40
NAMES = ("one", "two", "three")


class Publisher:
    def __init__(self, system: System, name: str) -> None:
        self.process: Child
        self.name = name
        self.process, facts = system.start(
            name, *system.serve, "--shards", SHARDS, GOALSTATE_DPM_WRITER=name
        )
        self.address = str(facts["listen"])

    def shards(self) -> list[api.ShardStatus]:
        with northbound.connect(self.address) as client:
            return list(client.status().shards)


@pytest.fixture
def system(embedded_broker: Broker, tmp_path: Path) -> Iterator[System]:
    with System(embedded_broker, tmp_path) as one:
        yield one


def serve(*publishers: Publisher) -> bool:
    """Do these serve all shards, each one of them, about as many each, and do they agree?"""
    try:
        told = [p.shards() for p in publishers]
    except Unreachable:
        return False  # it has too much to do just now
    names = {p.name for p in publishers}
    held = [sum(s.active_writer == p.name for s in told[0]) for p in publishers]
    return max(held) - min(held) <= 1 and all(
        len({shards[n].active_writer for shards in told}) == 1
        and told[0][n].active_writer in names
        and sum(shards[n].role == api.StatusReply.ACTIVE for shards in told) == 1
        for n in range(SHARDS)
    )


def renamed(publishers: list[Publisher], port: intent_pb2.Port, name: str) -> None:
    """Have it accepted by whichever can; to say it again does no harm."""
    port.name = name
    ways = itertools.cycle(publishers)

    def accepted() -> bool:
        try:
            with northbound.connect(next(ways).address) as client:
                (reply,) = client.apply([intent_pb2.Intent(ports=[port])])
            assert not reply.violations, reply
        except (Unreachable, Undecided):
            return False
        return True

    until(accepted, f"{port.id} is {name}")


def load(
    publishers: list[Publisher], ports: Sequence[intent_pb2.Port], word: str, begun: Event
) -> dict[str, str]:
    """Change some ports again and again; gives the name that each was acknowledged to have last."""
    names = {}
    for number in range(CHANGES):
        port = ports[number % len(ports)]
        renamed(publishers, port, f"{word}-{number}")
        names[port.id] = port.name
        if number == CHANGES // 3:
            begun.set()
    return names


def test_three_publishers_share_a_region_and_outlive_one_of_them(
    system: System, tmp_path: Path
) -> None:
    publishers = [Publisher(system, name) for name in NAMES]
    until(lambda: serve(*publishers), "each shard is served by one of them")
    one, two, three = publishers
    system.start(
        "fleet",
        *("agent", "run", *system.common, "--inspect", "127.0.0.1:0", "--shards", SHARDS),
        *("--hosts", HOSTS, "--group-size", 4, "--register", two.address),
        *("--state-dir", tmp_path / "state"),
        GOALSTATE_AGENT_LEASE_S="3",
    )
    region = tmp_path / "region.yaml"
    made = run(
        *("generate", "--hosts", HOSTS, "--group-size", 4, "--vpcs", "2x24,10x12", "--seed", 7),
        *("-o", region),
    )
    assert made.code == 0, made.err
    applied = run("apply", region, "--dpm", three.address, "--wait", "--json")
    assert applied.code == 0, applied.out + applied.err
    for publisher in publishers:
        compared = run("diff", "--dpm", publisher.address, "--json")
        assert compared.code == 0, compared.out + compared.err
        assert compared.document["hosts_compared"] == HOSTS

    with northbound.connect(one.address) as client:
        ports = list(client.intent().ports)
    assert len(ports) == 2 * 24 + 10 * 12
    killed = max(publishers, key=lambda p: sum(s.active_writer == p.name for s in one.shards()))
    left = [p for p in publishers if p is not killed]
    begun = Event()
    with ThreadPoolExecutor(CLIENTS) as clients:
        loads = [
            clients.submit(load, left[n % 2 :] + left[: n % 2], ports[n::CLIENTS], f"by-{n}", begun)
            for n in range(CLIENTS)
        ]
        assert begun.wait(BOUND)
        killed.process.kill()
        wanted = {id_: name for one in loads for id_, name in one.result().items()}
    assert len(wanted) == CLIENTS * min(CHANGES, len(ports) // CLIENTS)
    until(lambda: serve(*left), "the others serve all")

    for publisher in left:
        waited = run("wait", "--all", "--timeout", BOUND, "--dpm", publisher.address)
        assert waited.code == 0, waited.out + waited.err
        compared = run("diff", "--dpm", publisher.address, "--json")
        assert compared.code == 0, compared.out + compared.err
        assert compared.document["differences_total"] == 0
        with northbound.connect(publisher.address) as client:
            names = {port.id: port.name for port in client.intent().ports}
        assert wanted.items() <= names.items(), "what was acknowledged is there"
        status = run("status", "--dpm", publisher.address)
        assert f"served by {killed.name}" not in status.out

    vpc = ports[0].vpc_id
    decoded = run(
        *("decode", "--broker", system.broker.url, "--region", system.region),
        *("--stream", f"vpc/{vpc}", "--shards", SHARDS, "--limit", 1, "--json"),
    )
    assert decoded.code == 0, decoded.err
    assert json.loads(decoded.out)["properties"]["stream"] == f"vpc/{vpc}"
    traced = run("trace", ports[0].id, ports[1].id, "--dpm", left[0].address, "--json")
    assert traced.document["verdict"] in ("delivered", "not_delivered"), traced.out


def test_the_command_line_takes_a_document_apart_and_says_so(
    system: System, tmp_path: Path
) -> None:
    publisher = Publisher(system, "one")
    document = tmp_path / "all.yaml"
    document.write_text(
        "hosts:\n"
        '  - {id: h1, ip_address: 192.0.2.1, mac_address: "02:00:00:00:00:01", group: r}\n'
        "vpcs:\n"
        + "".join(f"  - {{id: v{n}, cidr: 10.{n}.0.0/16, tunnel_id: {n}}}\n" for n in range(1, 9))
    )
    done = run("apply", document, "--dpm", publisher.address)
    assert done.code == 0, done.err
    assert "is over several shards of the region: it becomes" in done.err
    again = run("apply", document, "--dpm", publisher.address, "--json")
    assert again.document["changed_objects"] == 0
    going = tmp_path / "going.yaml"
    going.write_text(
        "deletes:\n  - {kind: HOST, id: h1}\n"
        + "".join(f"  - {{kind: VPC, id: v{n}}}\n" for n in range(1, 9))
    )
    gone = run("apply", going, "--dpm", publisher.address, "--json")
    assert (gone.code, gone.document["changed_objects"]) == (0, 9), gone.out
    with northbound.connect(publisher.address) as client:
        assert not client.intent().ByteSize()


def test_what_is_refused_in_several_shards_is_listed_and_replayed(
    system: System, tmp_path: Path
) -> None:
    one, two = (Publisher(system, name) for name in NAMES[:2])
    until(lambda: serve(one, two), "each shard is served by one of them")
    system.start(
        "fleet",
        *("agent", "run", *system.common, "--inspect", "127.0.0.1:0", "--shards", SHARDS),
        *("--hosts", 4, "--group-size", 4, "--register", one.address, "--data-plane", "modelled"),
        GOALSTATE_AGENT_MODEL__REFUSE_SHARE="0.1",
        GOALSTATE_AGENT_MODEL__SEED="3",
        GOALSTATE_AGENT_PENDING_DEADLINE_S="1",
    )
    region = tmp_path / "region.yaml"
    made = run(
        *("generate", "--hosts", 4, "--group-size", 4, "--vpcs", "6x4", "--seed", 5, "-o", region)
    )
    assert made.code == 0, made.err
    assert run("apply", region, "--dpm", two.address).code == 0

    def exceptions() -> set[tuple[str, str]]:
        with northbound.connect(two.address) as client:
            return {(e.host, e.id) for e in client.status(exceptions=1000).exception_list}

    source = ("--broker", system.broker.url, "--region", system.region, "--dpm", one.address)

    def letters() -> set[tuple[str, str]]:
        told = run("dead-letters", "list", "--outstanding", "--json", *source).document
        return {(letter["host"], letter["id"]) for letter in told["letters"]}

    until(lambda: exceptions() and letters() == exceptions(), "each refusal is a letter")
    assert len({id_ for _, id_ in letters()}) > 1
    early = run("wait", "--all", "--timeout", 0, "--dpm", two.address)
    assert early.code == 3, "what is refused is not applied"

    def taken() -> bool:  # another revision draws another lot
        ran = run("dead-letters", "replay", "--all", "--wait", "--timeout", 1, "--json", *source)
        if ran.code == ExitCode.UNREACHABLE:
            return False  # it has too much to do just now
        assert ran.code in (0, 3), ran.err
        return not json.loads(ran.out)["change"]

    until(taken, "nothing is outstanding")
    waited = run("wait", "--all", "--timeout", BOUND, "--dpm", two.address)
    assert waited.code == 0, waited.out + waited.err
    assert not exceptions()
    compared = run("diff", "--dpm", one.address, "--json")
    assert (compared.code, compared.document["differences_total"]) == (0, 0)
