"""The measurement of receiving: every way of sending reaches every reader."""

from __future__ import annotations

from itertools import islice

import pytest

from bench import receive
from bench.receive import _WAYS
from bench.system import Brokers
from goalstate.bus.brokers import Broker
from goalstate.gs.envelope import from_properties
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalStateV2


def test_what_is_sent_is_one_port_after_another_on_one_stream() -> None:
    found = list(islice(receive.messages(), 3))
    envelopes = [from_properties(properties) for _, properties in found]
    assert {envelope.stream for envelope in envelopes} == {envelopes[0].stream}
    sequences = [envelope.mark.sequence for envelope in envelopes]
    assert sequences == list(range(sequences[0], sequences[0] + 3))
    for payload, _ in found:
        assert len(GoalStateV2.FromString(payload).neighbor_states) == 1


def test_all_ways_are_measured(apache_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "QUICK", (4, 2))
    brokers = Brokers(apache_broker.url, apache_broker.admin_url, lambda _: None)
    section = receive.measure(brokers, lambda _: None, quick=True)
    ways = section.data["ways"]
    assert [len(way["last_ms"]) for way in ways] == [2] * len(_WAYS)
    assert all(way["cpu_us"] > 0 for way in ways)
    assert [goal.verdict for goal in section.goals] == ["not at this size"] * 2
