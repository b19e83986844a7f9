"""`decode` and `convert`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from goalstate.bus import admin
from goalstate.bus.brokers import Broker
from goalstate.bus.connect import connect
from goalstate.gs.convert import address, to_v1
from goalstate.gs.envelope import Envelope, MessageKind, to_properties
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalState, GoalStateV2
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2 import Report
from goalstate.gs.pb.goalstate.log.v1.log_pb2 import Record
from goalstate.gs.streams import ORIGIN, Mark, StreamId
from goalstate.gs.topics import Topics
from tests.cli import region
from tests.cli.conftest import Run

TOPICS = Topics("persistent://goalstate/decoded")


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """A multicast message: no host's section."""
    file = tmp_path / "state.v2"
    file.write_bytes(region.vpc_state().SerializeToString(deterministic=True))
    return file


@pytest.fixture
def slice_(tmp_path: Path) -> Path:
    """A message that is for one host."""
    file = tmp_path / "slice.v2"
    state = address(region.vpc_state(), "host-a")
    file.write_bytes(state.SerializeToString(deterministic=True))
    return file


# --- decode files ---


def test_a_message_is_shown_as_a_table_of_its_resources(run: Run, v2: Path) -> None:
    ran = run("decode", v2)
    assert ran.code == 0
    assert "GoalStateV2" in ran.out
    assert "format version 102" in ran.out
    router = next(line for line in ran.out.splitlines() if " router " in line)
    assert router.split() == [
        "info",
        "router",
        "r1",
        "1",
        "subnet_routing_tables=[{subnet_id=front},",
        "{subnet_id=back}]",
        "vpc_id=vpc-1",
    ]
    # What is zero in protobuf is a value for people.
    assert "id=out-tcp direction=egress ethertype=ipv4 protocol=tcp" in ran.out


def test_the_version_is_found_from_the_bytes(run: Run, slice_: Path, tmp_path: Path) -> None:
    state = to_v1(GoalStateV2.FromString(slice_.read_bytes()), "host-a")
    other = tmp_path / "called.v2"
    other.write_bytes(state.SerializeToString())
    documents = run("decode", slice_, other, "--json").documents
    assert [document["type"] for document in documents] == ["GoalStateV2", "GoalState"]
    assert "format version 101" in run("decode", other).out


def test_text_is_protobuf_text_that_can_be_read_back(run: Run, v2: Path) -> None:
    out = run("decode", "--text", v2).out
    assert text_format.Parse(out, GoalStateV2()) == region.vpc_state()


def test_standard_input_is_decoded(run: Run, v2: Path) -> None:
    ran = run("decode", "-", stdin=v2.read_bytes())
    assert "standard input: GoalStateV2" in ran.out


def test_an_inbox_message_shows_each_hosts_section(run: Run, tmp_path: Path) -> None:
    state = region.inbox_state("host-a")
    state.host_resources["host-a"].digest = b"\xab" * 16
    file = tmp_path / "inbox"
    file.write_bytes(state.SerializeToString())
    out = run("decode", file).out
    assert f"host host-a: 0 resources, digest {'ab' * 16}" in out
    assert "subscribe vpc/vpc-1" in out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "does not begin with a format version"),
        (b"\x08\x63", "format version 99"),
        (b"\x08\x66\x12\xff", "no GoalStateV2"),
        (b"\xff\xff\xff", "message"),
        (b"\x08\x66\x1a\x08\x0a\x02\xff\xfe\x12\x02\x12\x00", "no GoalStateV2"),
    ],
)
def test_what_cannot_be_read_is_told_and_the_next_is_read_all_the_same(
    run: Run, v2: Path, tmp_path: Path, content: bytes, told: str
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(content)
    ran = run("decode", bad, v2)
    assert ran.code == 2
    assert told in ran.out
    assert "GoalStateV2, " in ran.out
    first, second = run("decode", bad, v2, "--json").documents
    assert told in first["error"]
    assert second["type"] == "GoalStateV2"


def test_decode_takes_one_source_only(run: Run, v2: Path) -> None:
    for arguments in ((), (v2, "--topic", "t"), ("--topic", "t", "--stream", "vpc/v")):
        assert run("decode", *arguments).code == 2


def test_a_missing_file_is_told(run: Run, tmp_path: Path) -> None:
    ran = run("decode", tmp_path / "none")
    assert ran.code == 2
    assert "No such file" in ran.err


# --- decode topics ---


def send(broker: Broker, topic: str, messages: list[tuple[bytes, dict[str, str]]]) -> None:
    async def sending() -> None:
        bus = await connect(broker.url)
        producer = await bus.open_producer(topic)
        for payload, properties in messages:
            await producer.send(payload, key="k", properties=properties)
        await bus.close()

    asyncio.run(sending())


def envelope(sequence: int) -> dict[str, str]:
    return to_properties(
        Envelope(
            schema=102,
            stream=StreamId.parse("vpc/decoded"),
            mark=Mark(3, sequence),
            kind=MessageKind.DELTA,
            chunk=1,
            chunks=1,
            change=sequence,
            digest="0" * 32,
            checksum="0",
            published_ns=1,
            after=ORIGIN if sequence == 1 else None,
        )
    )


def test_a_stream_is_read_with_its_envelopes(run: Run, embedded_broker: Broker) -> None:
    state = region.vpc_state().SerializeToString()
    messages = [(state, envelope(1)), (b"\x08\x65", envelope(2)), (state, envelope(3))]
    send(embedded_broker, TOPICS.of_stream(StreamId.parse("vpc/decoded")), messages)
    from_stream = ("decode", "--stream", "vpc/decoded", "--region", "decoded")
    ran = run(*from_stream, "--broker", embedded_broker.url, "--json")
    assert ran.code == 2, ran
    first, second, third = ran.documents
    assert first["properties"] == envelope(1)
    assert first["key"] == "k"
    assert third["message"]["vpc_states"]["vpc-1"]["configuration"]["tunnel_id"] == 77
    # The envelope says 102, the bytes 101.
    assert "102" in second["error"]
    assert "101" in second["error"]
    ran = run(*from_stream, "--broker", embedded_broker.url, "--limit", "1")
    assert ran.code == 0
    assert "seq = 1" in ran.out
    assert "seq = 2" not in ran.out


def test_reports_and_the_intent_log_are_decoded_as_what_they_are(
    run: Run, embedded_broker: Broker
) -> None:
    record, report = Record(), Report(clock_id="c")
    record.incarnation.writer = "dpm-9"
    report.hosts.add(host="h1")
    send(embedded_broker, TOPICS.intent_log, [(record.SerializeToString(), {})])
    send(embedded_broker, TOPICS.reports(2), [(report.SerializeToString(), {}), (b"\xff", {})])
    more = ("--broker", embedded_broker.url, "--region", "decoded")
    assert 'writer: "dpm-9"' in run("decode", "--topic", TOPICS.intent_log, *more).out
    ran = run("decode", "--topic", TOPICS.reports(2), *more, "--json")
    assert ran.code == 2
    first, second = ran.documents
    assert first["message"]["hosts"] == [{"host": "h1"}]
    assert "no Report" in second["error"]


def test_an_empty_topic_is_the_users_mistake(run: Run, embedded_broker: Broker) -> None:
    ran = run("decode", "--topic", f"{TOPICS.prefix}/none", "--broker", embedded_broker.url)
    assert ran.code == 2
    assert "holds no messages" in ran.err
    assert "`goalstate status` shows the streams" in ran.err


def test_a_topic_that_pulsar_does_not_have_is_told_and_not_made(
    run: Run, apache_broker: Broker
) -> None:
    admin_url = apache_broker.admin_url
    asyncio.run(admin.ensure_namespace(admin_url, "goalstate", "decoded"))
    topic = TOPICS.of_stream(StreamId.parse("vpc/odd%name"))
    send(apache_broker, topic, [(region.vpc_state().SerializeToString(), {})])
    source = ("--broker", apache_broker.url, "--admin-url", admin_url, "--region", "decoded")
    assert run("decode", "--stream", "vpc/odd%name", *source).code == 0
    for where in (("--stream", "vpc/none"), ("--topic", "persistent://goalstate/none/x")):
        ran = run("decode", *where, *source)
        assert ran.code == 2
        assert "there is no topic" in ran.err
    assert admin.topics(admin_url, "goalstate", "decoded") == [topic]

    admin.delete_namespace(admin_url, "goalstate", "decoded")
    assert admin.topics(admin_url, "goalstate", "decoded") == []
    admin.delete_namespace(admin_url, "goalstate", "decoded")


def test_an_admin_api_that_does_not_answer_is_told(run: Run, embedded_broker: Broker) -> None:
    source = ("--broker", embedded_broker.url, "--admin-url", "http://127.0.0.1:1")
    ran = run("decode", "--stream", "vpc/v", *source)
    assert ran.code == 2
    assert "--admin-url" in ran.err


def test_a_topic_needs_a_broker_that_answers(run: Run) -> None:
    ran = run("decode", "--stream", "vpc/v")
    assert ran.code == 2
    assert "GOALSTATE_BROKER_URL" in ran.err
    ran = run("decode", "--stream", "vpc/v", "--broker", "embedded://127.0.0.1:1")
    assert ran.code == 4
    assert "no broker answers at embedded://127.0.0.1:1: " in ran.err
    assert "nobody" not in ran.err
    assert "goalstate broker start" in ran.err
    ran = run("decode", "--stream", "vpc/v", "--broker", "http://x")
    assert ran.code == 2
    ran = run("decode", "--stream", "vpc", "--broker", "embedded://127.0.0.1:1")
    assert ran.code == 2
    assert "vpc/ID" in ran.err


# --- convert ---


def read(file: Path, type_: Any) -> Any:
    return type_.FromString(file.read_bytes())


def test_v2_to_v1_and_back_loses_nothing(run: Run, slice_: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("convert", slice_, "--to", "v1", "-o", one).code == 0
    assert read(one, GoalState).format_version == 101
    assert run("convert", one, "--to", "v2", "-o", two).code == 0
    assert read(two, GoalStateV2) == read(slice_, GoalStateV2)


def test_a_multicast_message_becomes_v1_as_the_given_host_reads_it(
    run: Run, v2: Path, tmp_path: Path
) -> None:
    ran = run("convert", v2, "--to", "v1", "-o", tmp_path / "one")
    assert ran.code == 2
    assert "--host" in ran.err
    assert run("convert", v2, "--to", "v1", "--host", "h", "-o", tmp_path / "one").code == 0
    state = read(tmp_path / "one", GoalState)
    assert state.host_id == "h"
    assert len(state.neighbor_states) == 3


def test_binary_goes_through_standard_output(run: Run, slice_: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"")
    run("convert", slice_, "--to", "v1", "-o", tmp_path / "one")
    assert run("convert", "-", "--to", "v1", stdin=slice_.read_bytes()).code == 0


def test_json_is_taken_and_given_on_either_side(run: Run, slice_: Path, tmp_path: Path) -> None:
    as_json = tmp_path / "one.json"
    ran = run("convert", slice_, "--to", "v1", "--json")
    as_json.write_text(ran.out)
    assert ran.document["format_version"] == 101
    assert run("convert", as_json, "--to", "v2", "-o", tmp_path / "two").code == 0
    assert read(tmp_path / "two", GoalStateV2) == read(slice_, GoalStateV2)
    assert run("convert", as_json, "--to", "v1", "--json", "-o", tmp_path / "same").code == 0
    assert json.loads((tmp_path / "same").read_text()) == ran.document


def test_the_form_can_change_without_the_format(run: Run, v2: Path) -> None:
    document = run("convert", v2, "--to", "v2", "--json").document
    assert document["vpc_states"]["vpc-1"]["configuration"]["tunnel_id"] == 77


@pytest.mark.parametrize(
    ("content", "arguments", "told"),
    [
        (b"\x08\x63", ("--to", "v1"), "format version 99"),
        (b'{"format_version": 7}', ("--to", "v1"), "format_version is 7"),
        (b'{"vpc_states": {}}', ("--to", "v1"), "format_version is None"),
        (b'{"format_version": 101, "x": 1}', ("--to", "v2"), "no GoalState in JSON"),
        (b"{ not json", ("--to", "v1"), "begins as JSON and is none"),
        (b"\x08\x65", ("--to", "v2"), "does not say which host"),
        (b"\x08\x65", ("--to", "v3"), "v1 or --to v2"),
    ],
)
def test_what_cannot_be_converted_is_told_and_nothing_written(
    run: Run, tmp_path: Path, content: bytes, arguments: tuple[str, ...], told: str
) -> None:
    file = tmp_path / "in"
    file.write_bytes(content)
    ran = run("convert", file, *arguments, "-o", tmp_path / "out")
    assert ran.code == 2
    assert told in ran.err
    assert not (tmp_path / "out").exists()


def test_a_host_that_the_message_is_not_for_is_told(run: Run, slice_: Path) -> None:
    ran = run("convert", slice_, "--to", "v1", "--host", "other")
    assert ran.code == 2
    assert "host-a" in ran.err


def test_a_dangling_reference_is_told(run: Run, tmp_path: Path) -> None:
    state = region.vpc_state()
    state.vpc_states["vpc-1"].configuration.id = "another"
    file = tmp_path / "in"
    file.write_bytes(state.SerializeToString())
    ran = run("convert", file, "--to", "v1", "--host", "h")
    assert ran.code == 2
    assert "another" in ran.err
