"""By which agents, and by what these hold, the fault simulator judges a wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from goalstate.gs.derivation import Key
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import StreamId, vpc_stream
from goalstate.scale.simulate import checks

OLD, NEW = vpc_stream("v1"), vpc_stream("v2")


def agent(incarnation: int, stopped_ns: int | None) -> Any:
    return SimpleNamespace(incarnation=incarnation, stopped_ns=stopped_ns)


def test_a_wait_is_judged_by_agents_of_its_time_and_by_those_that_were_heard_of() -> None:
    agents = [agent(1, 10), agent(2, 20), agent(3, 30), agent(4, 50), agent(5, None)]
    found = checks.judged({"h1": agents}, 40, {"h1": {2, 5}})
    assert [one.incarnation for one in found["h1"]] == [2, 4, 5]


def port(revision: int) -> Resource:
    return Resource(Kind.NEIGHBOR, "port", revision, b"x")


def holds(
    programmed: Resource | None,
    applied: dict[StreamId, Resource],
    revision: int,
    *,
    deletion: bool = False,
    newest: int,
) -> bool:
    """Is an operation of the newer VPC there, by what is programmed, and applied of each VPC?"""
    streams = {
        id_: SimpleNamespace(
            id=id_,
            applied=lambda kind, id_=id_: {"port": applied[id_]} if id_ in applied else {},
        )
        for id_ in (OLD, NEW)
    }
    held: Any = SimpleNamespace(
        core=SimpleNamespace(streams=streams),
        programmed={} if programmed is None else {(Kind.NEIGHBOR, "port"): programmed},
    )
    records = {Key(Kind.NEIGHBOR, "port"): SimpleNamespace(revision=newest)}
    core: Any = SimpleNamespace(memory=SimpleNamespace(records=records))
    one = checks._Operation("", Kind.NEIGHBOR, "port", revision, deletion)
    return checks._holds(held, NEW, one, core)


@pytest.mark.parametrize("deletion", [False, True])
def test_what_is_there_in_an_older_revision_is_not_as_the_operation_made_it(deletion: bool) -> None:
    assert not holds(port(1), {}, 3, deletion=deletion, newest=3)
    assert not holds(port(1), {NEW: port(1)}, 3, deletion=deletion, newest=3)
    assert holds(port(3), {NEW: port(3)}, 3, deletion=deletion, newest=3)


def test_what_another_vpc_still_has_stands_for_nothing_in_this_one() -> None:
    still = {OLD: port(1)}
    assert holds(port(1), still, 3, deletion=True, newest=3)
    assert holds(port(1), still, 3, newest=4)  # it is gone by now, and may have been skipped
    assert not holds(port(1), still, 3, newest=3)
    assert not holds(None, {}, 3, newest=3)
