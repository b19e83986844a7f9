"""What the kit says of a stream that does not keep the laws."""

from __future__ import annotations

from typing import Any

import pytest

from goalstate.gs import digest as digests
from goalstate.gs import packing
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.packing import Addressed
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import ORIGIN, Mark, StreamId
from goalstate.testkit.laws import Log

Message = tuple[Envelope, bytes]


def vpc(revision: int, id_: str = "v") -> Resource:
    config = resources_pb2.VpcConfiguration(id=id_, revision_number=revision)
    return Resource(Kind.VPC, id_, revision, config.SerializeToString())


def message(mark: Mark, *resources: Resource, **changed: Any) -> Message:
    """A message after which these resources are there, and nothing else."""
    payload = packing.encode([Addressed("", one) for one in resources])
    envelope = Envelope(
        schema=102,
        stream=StreamId.parse("vpc/v"),
        mark=mark,
        kind=MessageKind.DELTA,
        chunk=1,
        chunks=1,
        change=1,
        digest=digests.to_hex(digests.of(resources)),
        checksum=digests.checksum(payload),
        published_ns=1,
    )
    return envelope._replace(**changed), payload


def faults(*messages: Message) -> list[str]:
    """What is said of the last message; nothing is said of those before it."""
    log = Log()
    for envelope, payload in messages[:-1]:
        assert list(log.read(envelope, payload)) == []
    return list(log.read(*messages[-1]))


FIRST = message(Mark(1, 1), vpc(1))
LAWFUL: list[list[Message]] = [
    [message(Mark(3, 1), vpc(1), after=ORIGIN)],
    [FIRST, message(Mark(1, 2), vpc(2))],
    [FIRST, FIRST],
    [FIRST, message(Mark(4, 1), vpc(2), after=Mark(1, 1))],
    [FIRST, message(Mark(1, 1), kind=MessageKind.IN_SYNC)],
    [FIRST, message(Mark(1, 2), Resource(Kind.VPC, "v", 2, b""))],
    [message(Mark(1, 1), vpc(1), chunks=2), message(Mark(1, 2), vpc(2), chunk=2, chunks=2)],
]


@pytest.mark.parametrize("messages", LAWFUL)
def test_nothing_is_said_of_what_is_lawful(messages: list[Message]) -> None:
    assert faults(*messages) == []


UNLAWFUL: dict[str, list[Message]] = {
    "its mark is 1/3, after 1/1": [FIRST, message(Mark(1, 3), vpc(2))],
    "it begins epoch 1 with sequence 2 after nothing": [message(Mark(1, 2), vpc(1))],
    "its epoch is 1, after 2": [
        message(Mark(2, 1), vpc(1)),
        message(Mark(1, 2), vpc(2)),
    ],
    "it begins epoch 2 with sequence 1 after nothing, and not with sequence 1 after 1/1": [
        FIRST,
        message(Mark(2, 1), vpc(2)),
    ],
    "it is chunk 1 of 1, and 2 was to come": [
        message(Mark(1, 1), vpc(1), chunks=2),
        message(Mark(1, 2), vpc(2)),
    ],
    "vpc/v has revision 1, and had 1 before": [FIRST, message(Mark(1, 2), vpc(1))],
    "its digest is 00000000000000000000000000000000": [
        message(Mark(1, 1), vpc(1), digest="0" * 32)
    ],
}


@pytest.mark.parametrize("law", UNLAWFUL)
def test_a_broken_law_is_named(law: str) -> None:
    [said] = faults(*UNLAWFUL[law])
    assert said.startswith(law)


def test_what_is_listed_under_another_id_is_named() -> None:
    envelope, _ = FIRST
    state = goalstate_pb2.GoalStateV2(format_version=102)
    state.vpc_states["v"].configuration.id = "w"
    said = list(Log().read(envelope, state.SerializeToString()))
    assert "vpc/v holds the configuration of 'w'" in said


def test_on_an_inbox_each_host_is_told_its_own_digest() -> None:
    port = resources_pb2.PortConfiguration(id="p", revision_number=1)
    resource = Resource(Kind.PORT, "p", 1, port.SerializeToString())
    envelope = message(Mark(1, 1), resource)[0]._replace(stream=StreamId.parse("inbox/rack"))
    right = packing.encode([Addressed("h", resource)], {"h": digests.of([resource])})
    assert list(Log().read(envelope, right)) == []
    [said] = Log().read(envelope, packing.encode([Addressed("h", resource)], {"h": 7}))
    assert said.startswith("the digest for host h is 0000")
    broken = list(Log().read(envelope, packing.encode([Addressed("", resource)])))
    assert broken == ["port/p is of no host"]
