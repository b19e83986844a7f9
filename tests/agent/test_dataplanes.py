from __future__ import annotations

from collections.abc import Callable
from random import Random
from statistics import median

import pytest

from goalstate.agent.actions import Refusal
from goalstate.agent.dataplanes import (
    L2,
    L3,
    MemoryDataPlane,
    ModelledDataPlane,
    ProgrammingModel,
    neighbor_type,
)
from goalstate.gs.resources import Kind, Resource
from tests.agent.rig import gone, neighbor, port, subnet, vpc


def programmed(*resources: Resource) -> MemoryDataPlane:
    plane = MemoryDataPlane()
    answers: list[object] = []
    plane.program(resources, answers.append)
    assert answers == [{}]
    return plane


def test_a_neighbor_is_l2_in_a_subnet_where_the_host_has_a_port_and_l3_elsewhere() -> None:
    assert neighbor_type("a", {"a", "b"}) == L2
    assert neighbor_type("c", {"a", "b"}) == L3
    assert neighbor_type("c", ()) == L3


def test_the_next_hop_of_an_address_is_its_neighbors_host() -> None:
    plane = programmed(neighbor(1), neighbor(2, subnets=["subnet-2"]), port(3))
    hop = plane.next_hop("vpc-1", "10.0.0.1")
    assert hop is not None
    assert (hop.neighbor_id, hop.host_ip_address, hop.type) == ("port-1", "100.64.0.9", L2)
    other = plane.next_hop("vpc-1", "10.0.0.2")
    assert other is not None
    assert other.type == L3
    assert plane.next_hop("vpc-1", "10.0.0.3") is None
    assert plane.next_hop("vpc-2", "10.0.0.1") is None
    plane.program([gone(neighbor(1))], lambda _: None)
    assert plane.next_hop("vpc-1", "10.0.0.1") is None


def test_an_allowed_address_leads_to_its_port() -> None:
    from goalstate.gs.pb.alcor.schema import resources_pb2  # noqa: PLC0415

    config = resources_pb2.NeighborConfiguration.FromString(neighbor(1).payload)
    config.allow_address_pairs.add(ip_address="10.9.9.9")
    plane = programmed(neighbor(1)._replace(payload=config.SerializeToString()))
    hop = plane.next_hop("vpc-1", "10.9.9.9")
    assert hop is not None
    assert hop.neighbor_id == "port-1"


def test_missing_references_are_named() -> None:
    plane = programmed(neighbor(1), subnet("subnet-2"))
    assert plane.missing_references() == [
        "neighbor/port-1 → subnet/subnet-1",
        "subnet/subnet-2 → vpc/vpc-1",
    ]
    plane.program([vpc(), subnet()], lambda _: None)
    assert plane.missing_references() == []


def test_the_model_gives_the_same_times_for_the_same_seed() -> None:
    model = ProgrammingModel()
    times = [[model.seconds(n, Random(5)) for n in (1, 10, 1000)] for _ in range(2)]
    assert times[0] == times[1]


@pytest.mark.parametrize("operations", [1, 63, 64, 4096])
def test_times_are_around_their_medians(operations: int) -> None:
    model, random = ProgrammingModel(program_ms=1, operation_us=100, sigma=0.5), Random(1)
    typical = median(model.seconds(operations, random) for _ in range(300))
    # The mean of a lognormal with sigma 0.5 is 1.13 times its median.
    assert typical == pytest.approx(0.001 + 1.13 * operations * 1e-4, rel=0.2)


def test_without_spread_times_are_exact() -> None:
    model = ProgrammingModel(program_ms=3, operation_us=10, sigma=0)
    assert model.seconds(100, Random()) == pytest.approx(0.004)


def test_a_share_is_refused_always_the_same_and_never_a_deletion() -> None:
    model = ProgrammingModel(seed=3, refuse_share=0.1)
    resources = [neighbor(n) for n in range(1000)]
    refused = model.refused(resources)
    assert 60 < len(refused) < 140
    assert refused == model.refused(resources)
    assert refused != model._replace(seed=4).refused(resources)
    assert {resources[place].id for place in refused} == {
        resources[999 - place].id for place in model.refused(resources[::-1])
    }
    assert not model.refused([gone(one) for one in resources])
    assert not ProgrammingModel().refused(resources)


def test_ids_can_be_refused_by_pattern() -> None:
    refused = ProgrammingModel(refuse_ids=("port-1?",)).refused([neighbor(1), neighbor(12)])
    assert list(refused) == [1]


def test_a_modelled_data_plane_answers_later_and_says_what_it_refused() -> None:
    timers: list[tuple[float, Callable[[], None]]] = []
    plane = ModelledDataPlane(
        ProgrammingModel(sigma=0, refuse_ids=("port-2",)),
        lambda seconds, then: timers.append((seconds, then)),
        name="host-1",
    )
    answers: list[object] = []
    plane.program([neighbor(1), neighbor(2)], answers.append)
    assert not answers
    assert not plane.table.tables[Kind.NEIGHBOR]
    ((seconds, then),) = timers
    assert seconds == pytest.approx(0.0021)
    then()
    assert answers == [{1: Refusal("injected failure: the id matches")}]
    assert list(plane.table.tables[Kind.NEIGHBOR]) == ["port-1"]
