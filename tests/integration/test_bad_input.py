"""Bad input, where a user meets it: a clear error, nothing changed, and everything goes on.

What comes through the commands is refused before it is taken. What somebody puts on a topic while
no publisher holds it, hosts refuse by name or pass over: they keep what they have, and go on with
the publisher's next message.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pulsar
import pytest
from typer.testing import CliRunner

from goalstate.bus.brokers import Broker
from goalstate.cli import inspection
from goalstate.cli.app import app
from goalstate.cli.held import Held
from goalstate.gs import digest as digests
from goalstate.gs import intent_codec
from goalstate.gs.envelope import Envelope, MessageKind, to_properties
from goalstate.gs.intent import FixedIp, Host, Intent, Port, SecurityGroup, Subnet, Vpc
from goalstate.gs.naming import simulated_host
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.resources import Kind
from goalstate.gs.streams import Mark, StreamId, vpc_stream
from goalstate.testkit import ProcessFailed
from tests.integration.processes import BOUND, Ran, System, environment, run, until

HOSTS = 4
NOBODY = "pulsar://127.0.0.1:1"


def invoke(*arguments: object) -> Ran:
    """Run a command within this process."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env=environment())
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


# --- a region, with a VPC for each kind of message that does not belong on its topic ---


def network(number: int, name: str) -> Intent:
    """A VPC with a port on each host."""
    return Intent(
        vpcs=(Vpc(name, cidr="10.0.0.0/16", tunnel_id=number),),
        subnets=(Subnet(f"{name}-subnet", name, cidr="10.0.1.0/24"),),
        security_groups=(SecurityGroup(f"{name}-group", name),),
        ports=tuple(port(name, on) for on in range(HOSTS)),
    )


def port(vpc: str, number: int) -> Port:
    return Port(
        id=f"{vpc}-port-{number}",
        vpc_id=vpc,
        mac_address=f"02:01:00:00:00:{number:02x}",
        host_id=simulated_host(number % HOSTS).id,
        fixed_ips=(FixedIp(f"{vpc}-subnet", f"10.0.1.{number + 10}"),),
    )


class Head(NamedTuple):
    """The end of a VPC's stream, and what is needed to write a message that seems to follow it."""

    vpc: str
    mark: Mark
    digest: int

    def following(self, payload: bytes, **changed: Any) -> tuple[bytes, dict[str, str]]:
        """A message that is next by its envelope."""
        envelope = Envelope(
            schema=102,
            stream=vpc_stream(self.vpc),
            mark=Mark(self.mark.epoch, self.mark.sequence + 1),
            kind=MessageKind.DELTA,
            chunk=1,
            chunks=1,
            change=1000,
            digest=digests.to_hex(self.digest),
            checksum=digests.checksum(payload),
            published_ns=1,
        )
        return payload, to_properties(envelope._replace(**changed))

    def neighbor(self, **changed: Any) -> Any:
        config = resources_pb2.NeighborConfiguration(
            id=f"{self.vpc}-forged",
            vpc_id=self.vpc,
            revision_number=1,
            mac_address="02:66:00:00:00:01",
            host_ip_address="100.64.6.6",
        )
        config.fixed_ips.add(subnet_id=f"{self.vpc}-subnet", ip_address="10.0.1.200")
        for name, value in changed.items():
            setattr(config, name, value)
        return config

    def state(self, config: Any, field: str = "neighbor_states") -> Any:
        message = goalstate_pb2.GoalStateV2(format_version=102)
        entry = getattr(message, field)[config.id]
        entry.operation_type = resources_pb2.CREATE
        entry.configuration.CopyFrom(config)
        return message

    def holding(self, config: Any, kind: Kind, field: str) -> tuple[bytes, dict[str, str]]:
        """A readable message with one resource, whose digest counts that."""
        total = self.digest + digests.item(kind, config.SerializeToString())
        payload = self.state(config, field).SerializeToString()
        return self.following(payload, digest=digests.to_hex(total & digests.MASK))


def wrong_vpc(head: Head) -> tuple[bytes, dict[str, str]]:
    return head.holding(head.neighbor(vpc_id="another"), Kind.NEIGHBOR, "neighbor_states")


def wrong_stream(head: Head) -> tuple[bytes, dict[str, str]]:
    config = resources_pb2.PortConfiguration(
        id=f"{head.vpc}-forged", vpc_id=head.vpc, revision_number=1
    )
    return head.holding(config, Kind.PORT, "port_states")


def malformed(head: Head) -> tuple[bytes, dict[str, str]]:
    return head.following(b"\x08\x66\xff\xff\xff\xff")


def truncated(head: Head) -> tuple[bytes, dict[str, str]]:
    return head.following(head.state(head.neighbor()).SerializeToString()[:-7])


def corrupted(head: Head) -> tuple[bytes, dict[str, str]]:
    payload = head.state(head.neighbor()).SerializeToString()
    return head.following(payload, checksum="0" * 16)


def empty(head: Head) -> tuple[bytes, dict[str, str]]:
    return head.following(b"")


def unknown_version(head: Head) -> tuple[bytes, dict[str, str]]:
    payload = head.state(head.neighbor())
    payload.format_version = 103
    return head.following(payload.SerializeToString(), schema=103)


def version_1(head: Head) -> tuple[bytes, dict[str, str]]:
    message = goalstate_pb2.GoalState(format_version=101)
    return head.following(message.SerializeToString(), schema=101)


def two_versions(head: Head) -> tuple[bytes, dict[str, str]]:
    return head.following(goalstate_pb2.GoalState(format_version=101).SerializeToString())


def invalid_utf8(head: Head) -> tuple[bytes, dict[str, str]]:
    payload = head.state(head.neighbor(name="namename")).SerializeToString()
    return head.following(payload.replace(b"namename", b"\xff\xfe\xff\xfename"))


def another_id(head: Head) -> tuple[bytes, dict[str, str]]:
    message = head.state(head.neighbor())
    message.neighbor_states[f"{head.vpc}-forged"].configuration.id = "somebody"
    return head.following(message.SerializeToString())


def gap(head: Head) -> tuple[bytes, dict[str, str]]:
    payload = head.state(head.neighbor()).SerializeToString()
    return head.following(payload, mark=Mark(head.mark.epoch, head.mark.sequence + 5))


def no_envelope(head: Head) -> tuple[bytes, dict[str, str]]:
    return head.state(head.neighbor()).SerializeToString(), {}


def bad_envelope(head: Head) -> tuple[bytes, dict[str, str]]:
    payload, properties = head.following(head.state(head.neighbor()).SerializeToString())
    return payload, {**properties, "epoch": "soon"}


def another_stream(head: Head) -> tuple[bytes, dict[str, str]]:
    payload = head.state(head.neighbor()).SerializeToString()
    return head.following(payload, stream=vpc_stream("another"))


def earlier_writer(head: Head) -> tuple[bytes, dict[str, str]]:
    payload = head.state(head.neighbor()).SerializeToString()
    return head.following(payload, mark=Mark(head.mark.epoch - 1, 99))


def repeated(head: Head) -> tuple[bytes, dict[str, str]]:
    payload = head.state(head.neighbor()).SerializeToString()
    return head.following(payload, mark=head.mark)


Forge = Callable[[Head], tuple[bytes, dict[str, str]]]
#: What is put on a VPC's topic, and what hosts say of it.
REFUSED: dict[Forge, str] = {
    malformed: "UNREADABLE: these bytes are no GoalStateV2",
    truncated: "UNREADABLE: these bytes are no GoalStateV2",
    corrupted: "CHECKSUM: the bytes are not what the publisher sent",
    empty: "UNREADABLE: the message does not begin with a format version",
    unknown_version: "UNREADABLE: the message has format version 103, and only 101 and 102",
    version_1: "UNREADABLE: .*format version 101",
    two_versions: "UNREADABLE: the envelope says format version 102, but the message 101",
    wrong_vpc: "WRONG_VPC: it belongs to VPC 'another'",
    wrong_stream: "WRONG_STREAM: it has no place on vpc/wrong_stream",
    invalid_utf8: "MALFORMED: .*NEIGHBOR",
    another_id: "MALFORMED: it holds the configuration of 'somebody'",
    gap: "GAP: after .* came",
}
#: What hosts pass over.
IGNORED: list[Forge] = [no_envelope, bad_envelope, another_stream, earlier_writer, repeated]
ALL: list[Forge] = [*REFUSED, *IGNORED]


@pytest.fixture(scope="module")
def system(apache_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(apache_broker, tmp_path_factory.mktemp("region")) as one:
        one.start_dpm()
        hosts = [simulated_host(n, group_size=4) for n in range(HOSTS)]
        one.apply([Intent(hosts=tuple(Host(h.id, h[2], h[3], h.group) for h in hosts))])
        one.start_fleet(HOSTS)
        one.apply(network(n, forge.__name__) for n, forge in enumerate(ALL, 1))
        one.converged()
        yield one


# --- through the commands ---

#: Content of a file, and what `apply` says to it: with exit code 2, before anybody is asked.
NO_INTENT: dict[str, tuple[str, bytes, str]] = {
    "malformed protobuf": ("x.pb", b"\x0a\xff\xff\xff\xff", "neither text nor a serialized Intent"),
    "invalid UTF-8 in protobuf": ("x.pb", b"\x0a\x04\x0a\x02\xff\xfe", "nor a serialized Intent"),
    "another message": ("x.pb", b"\xfa\x01\x02\x08\x01", "a serialized message, and not an Intent"),
    "invalid UTF-8": ("x.yaml", b"vpcs:\n- {id: a, name: \xc3\x28}\n", r"x\.yaml:2: .*not UTF-8"),
    "no YAML": ("x.yaml", b"vpcs:\n- {id: a\n", r"x\.yaml:\d+"),
    "YAML that is no intent": (
        "x.yaml",
        b"services:\n  web:\n    image: x\n",
        r"x\.yaml:1.*services",
    ),
    "an unknown field": ("x.yaml", b"vpcs:\n- id: a\n  cidrs: []\n", r"x\.yaml:3.*cidrs"),
    "a wrong type": ("x.yaml", b"vpcs:\n- {id: a, tunnel_id: many}\n", r"x\.yaml:2.*tunnel_id"),
    "a key given twice": ("x.yaml", b"vpcs:\n- {id: a, id: b}\n", r"x\.yaml:2.*id"),
    "nothing": ("x.yaml", b"# nothing\n", r"there is no intent in it"),
    "oversize": ("x.pb", b"", "bytes, and an intent may have"),
}
#: Intents that are none together, and the violation that is named.
WRONG: dict[str, tuple[Intent, str, str]] = {
    "a duplicate id": (
        Intent(ports=(port("gap", 9), port("gap", 9))),
        "ports[1].id",
        "DUPLICATE_ID",
    ),
    "another VPC's subnet": (
        Intent(ports=(port("gap", 9)._replace(vpc_id="empty"),)),
        "ports[0].fixed_ips[0].subnet_id",
        "WRONG_VPC",
    ),
    "an object too large for a message": (
        Intent(ports=(port("gap", 9)._replace(name="x" * 3_000_000),)),
        "ports[0]",
        "TOO_LARGE",
    ),
}


@pytest.fixture
def unchanged(system: System) -> Iterator[System]:
    """Nothing is accepted, published or held otherwise after the test than before."""
    before = system.client.status()
    yield system
    after = system.client.status()
    assert (after.change, after.epoch, after.objects) == (
        before.change,
        before.epoch,
        before.objects,
    )
    assert {(s.stream, s.sequence) for s in after.streams} == {
        (s.stream, s.sequence) for s in before.streams
    }


@pytest.mark.parametrize("what", NO_INTENT)
def test_a_file_that_holds_no_intent_is_refused(
    what: str, unchanged: System, tmp_path: Path
) -> None:
    name, content, words = NO_INTENT[what]
    if what == "oversize":
        large = Intent(ports=(port("gap", 9)._replace(name="x" * (64 << 20)),))
        content = intent_codec.to_proto(large).SerializeToString()
    file = tmp_path / name
    file.write_bytes(content)
    ran = invoke("apply", file, "--dpm", unchanged.listen)
    assert ran.code == 2, ran
    assert re.search(words, ran.err.replace("\n", " ")), ran
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("what", WRONG)
def test_an_intent_that_cannot_stand_is_refused_by_field(
    what: str, unchanged: System, tmp_path: Path
) -> None:
    intent, path, reason = WRONG[what]
    file = tmp_path / "intent.pb"
    # Something good beside it is not taken either.
    good = intent._replace(vpcs=(Vpc("good", cidr="10.9.0.0/16", tunnel_id=999),))
    file.write_bytes(intent_codec.to_proto(good).SerializeToString())
    ran = invoke("apply", file, "--dpm", unchanged.listen, "--json")
    assert ran.code == 1, ran
    [refusal] = ran.document["refusals"]
    assert {(v["path"], v["reason"]) for v in refusal["violations"]} >= {(path, reason)}


@pytest.mark.parametrize(
    "payload", [b"\xff\xff\xff", b"\x0a\x06\x12\x04\x0a\x02\xff\xfe"], ids=["garbage", "UTF-8"]
)
def test_bytes_that_are_no_request_are_refused_by_the_service(
    payload: bytes, unchanged: System
) -> None:
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(unchanged.listen, options=options) as channel:
        call = channel.unary_unary("/goalstate.northbound.v1.DataPlaneManager/Apply")
        with pytest.raises(grpc.RpcError) as caught:
            call(payload, timeout=BOUND)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "these bytes are no request" in error.details()


def test_nobody_answers_where_no_publisher_is(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("vpcs:\n- {id: a, cidr: 10.0.0.0/8, tunnel_id: 1}\n")
    ran = invoke("apply", file, "--dpm", "127.0.0.1:1")
    assert ran.code == 4
    assert "no DPM answers at 127.0.0.1:1" in ran.err


@pytest.mark.parametrize("which", ["dpm", "agent"])
def test_an_unreachable_broker_is_said(which: str) -> None:
    serve = {
        "dpm": ["dpm", "serve", "--listen", "127.0.0.1:0"],
        "agent": ["agent", "run", "--hosts", "1", "--inspect", "127.0.0.1:0"],
    }[which]
    ran = run(*serve, "--metrics-port", "0", "--broker", NOBODY)
    assert ran.code == 4, ran
    assert f"no broker answers at {NOBODY}" in ran.err.replace("\n", " ")
    assert "goalstate broker start" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("which", ["dpm", "dpm metrics", "agent"])
def test_a_busy_port_is_said_and_nothing_else_is_disturbed(which: str, unchanged: System) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        address = f"127.0.0.1:{number}"
        common = ["--broker", unchanged.broker.url, "--region", unchanged.region]
        ran = run(
            *{
                "dpm": ["dpm", "serve", *common, "--listen", address, "--metrics-port", 0],
                "dpm metrics": [*unchanged.serve, "--metrics-port", number],
                "agent": ["agent", "run", *common, "--inspect", address, "--metrics-port", 0],
            }[which]
        )
    assert ran.code == 4, ran
    assert address in ran.err
    assert "give another" in ran.err.replace("\n", " ")
    assert "Traceback" not in ran.err


# --- on the topics ---


class Stranger:
    """Somebody with the plain Pulsar client."""

    def __init__(self, broker: Broker, log: Path) -> None:
        logger = pulsar.FileLogger(pulsar.LoggerLevel.Error, str(log))
        self._client = pulsar.Client(broker.url, logger=logger)

    def send(self, topic: str, payload: bytes, properties: dict[str, str]) -> None:
        producer = self._client.create_producer(topic)
        producer.send(payload, properties)
        producer.close()

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def stranger(apache_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    one = Stranger(apache_broker, tmp_path_factory.mktemp("client") / "log")
    yield one
    one.close()


Tables = dict[str, dict[str, bytes]]


class Said(NamedTuple):
    """What the hosts hold, and what they say that they could not apply."""

    #: Host → kind/id → configuration.
    held: Tables
    #: Stream → host → reasons.
    reasons: dict[str, dict[str, list[str]]]


class _Table(Held):
    """What a host has applied, as bytes."""

    @property
    def table(self) -> dict[str, bytes]:
        return {
            f"{kind.name}/{config.id}": config.SerializeToString(deterministic=True)
            for kind in Kind
            if kind is not Kind.SUBSCRIPTION
            for config in self.all(kind)
        }


def said(addresses: dict[str, str]) -> Said:
    held: Tables = {}
    reasons: dict[str, dict[str, list[str]]] = {}
    for answer in inspection.applied(addresses, _Table):
        assert answer.error is None
        for host, state in answer.held.items():
            held[host] = state.table
            for one in state.summary.exceptions:
                reasons.setdefault(one.stream, {}).setdefault(host, []).append(one.reason)
    return Said(held, reasons)


class Disturbed(NamedTuple):
    before: Said
    #: While the publisher is away and the messages are on the topics.
    during: Said
    #: When the publisher is back, and has changed something in each VPC.
    after: Said


@pytest.fixture(scope="module")
def disturbed(system: System, stranger: Stranger) -> Disturbed:
    """All messages that do not belong there, each on the topic of its own VPC."""
    # An earlier writer is one of epoch 1.
    system.stop_dpm()
    system.start_dpm()
    system.apply(Intent(ports=(port(forge.__name__, HOSTS),)) for forge in ALL)
    system.converged()
    addresses = system.addresses()
    assert len(addresses) == HOSTS
    heads = {
        s.stream: Head(StreamId.parse(s.stream).id, Mark(s.epoch, s.sequence), int(s.digest, 16))
        for s in system.client.status().streams
    }
    before = said(addresses)
    assert before.reasons == {}
    # While a publisher serves, nobody else can write to its topics.
    system.stop_dpm()
    for forge in ALL:
        stream = vpc_stream(forge.__name__)
        stranger.send(system.topic(stream), *forge(heads[str(stream)]))
    wanted = {f"vpc/{forge.__name__}" for forge in REFUSED}

    def all_told() -> Said | None:
        now = said(addresses)
        complete = all(len(now.reasons.get(stream, ())) == HOSTS for stream in wanted)
        return now if complete else None

    during = until(all_told, "every host has refused every message that it must refuse")
    system.start_dpm()
    system.apply(Intent(ports=(port(forge.__name__, HOSTS + 1),)) for forge in ALL)
    system.converged()
    return Disturbed(before, during, said(addresses))


@pytest.mark.parametrize("forge", REFUSED, ids=lambda forge: forge.__name__)
def test_what_does_not_belong_on_a_topic_is_refused_by_every_host_with_the_reason(
    forge: Forge, disturbed: Disturbed
) -> None:
    reasons = disturbed.during.reasons[f"vpc/{forge.__name__}"]
    assert len(reasons) == HOSTS
    for told in reasons.values():
        assert len(told) == 1
        assert re.match(REFUSED[forge], told[0]), told


@pytest.mark.parametrize("forge", IGNORED, ids=lambda forge: forge.__name__)
def test_what_is_no_message_of_the_stream_is_passed_over(
    forge: Forge, disturbed: Disturbed
) -> None:
    assert f"vpc/{forge.__name__}" not in disturbed.during.reasons


def of_vpc(tables: Tables, vpc: str) -> Tables:
    return {
        host: {
            name: config for name, config in table.items() if name.partition("/")[2].startswith(vpc)
        }
        for host, table in tables.items()
    }


@pytest.mark.parametrize("forge", ALL, ids=lambda forge: forge.__name__)
def test_hosts_keep_what_they_have_and_go_on_with_the_next_good_message(
    forge: Forge, disturbed: Disturbed
) -> None:
    name = forge.__name__
    before, during, after = (of_vpc(one.held, name) for one in disturbed)
    assert during == before
    news = {f"{kind}/{name}-port-{HOSTS + 1}" for kind in ("PORT", "NEIGHBOR")}
    for host, table in after.items():
        assert table.items() >= before[host].items()
        assert table.keys() - before[host].keys() <= news
        assert f"NEIGHBOR/{name}-port-{HOSTS + 1}" in table
    assert f"vpc/{name}" not in disturbed.after.reasons


def test_nothing_of_it_is_left_when_the_publisher_is_back(
    disturbed: Disturbed, system: System
) -> None:
    assert disturbed.after.reasons == {}
    assert len(system.check().compared) == HOSTS


def test_nobody_else_can_write_to_a_topic_that_a_publisher_holds(
    disturbed: Disturbed, system: System, stranger: Stranger
) -> None:
    topic = system.topic(vpc_stream("gap"))
    with pytest.raises(pulsar.ProducerBusy):
        stranger.send(topic, b"hello", {})


def test_a_message_that_is_too_large_does_not_get_onto_a_topic(
    system: System, stranger: Stranger
) -> None:
    with pytest.raises(pulsar.MessageTooBig):
        stranger.send(f"{system.topics.prefix}/large", bytes(6 << 20), {})


def test_a_log_that_somebody_wrote_to_is_not_served(
    apache_broker: Broker, stranger: Stranger, tmp_path: Path
) -> None:
    with System(apache_broker, tmp_path) as one:
        one.start_dpm()
        one.apply([network(1, "v")._replace(ports=())])
        one.stop_dpm()
        stranger.send(one.topics.intent_log, b"hello", {})
        with pytest.raises(ProcessFailed, match=r"message \d+ of the intent log .*has no property"):
            one.start_dpm()
        ran = run(*one.serve)
        assert "the DPM cannot go on: message" in ran.err.replace("\n", " ")
        assert "Traceback" not in ran.err
        assert ran.code not in (0, 1, 2)


def test_reports_that_are_none_do_not_disturb_the_publisher(
    disturbed: Disturbed, system: System, stranger: Stranger
) -> None:
    for shard in range(system.topics.report_shards):
        stranger.send(system.topics.reports(shard), b"\xff\xff hello", {})
    reply: api.ApplyReply = system.apply([Intent(ports=(port("gap", HOSTS + 2),))])
    system.converged(change=reply.change)
    assert system.dpm is not None
    until(
        lambda: "unreadable report" in system.dpm.log.read_text("utf-8") if system.dpm else False,
        "the publisher says so",
    )
