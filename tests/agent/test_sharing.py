"""Several cores program one data plane: in turn, and none takes away what another one wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from goalstate.agent.actions import Refusal
from goalstate.agent.dataplanes import MemoryDataPlane, ModelledDataPlane, ProgrammingModel
from goalstate.agent.sharing import Share, SharedDataPlane
from goalstate.gs.resources import Kind, Resource
from tests.agent.rig import gone, vpc


def held(share: Share) -> set[str]:
    tables: list[Mapping[str, bytes]] = []
    share.read_back(Kind.VPC, tables.append)
    (table,) = tables
    return set(table)


def program(share: Share, *operations: Resource) -> Any:
    answers: list[object] = []
    share.program(operations, answers.append)
    (answer,) = answers
    return answer


def test_programs_and_readings_take_turns() -> None:
    timers: list[Callable[[], None]] = []
    model = ProgrammingModel(program_ms=1.0, operation_us=0.0, sigma=0.0)
    plane = ModelledDataPlane(model, lambda seconds, call: timers.append(call))
    whole = SharedDataPlane(plane)
    one, two = whole.share(), whole.share()
    done: list[str] = []

    def first(refused: object) -> None:
        done.append("first")
        one.program([vpc(id_="c")], lambda _: done.append("third"))

    one.program([vpc(id_="a")], first)
    two.program([vpc(id_="b")], lambda _: done.append("second"))
    one.read_back(Kind.VPC, lambda table: done.append(" ".join(table)))
    for so_far in (["first"], ["first", "second"], ["first", "second", "a"]):
        assert len(timers) == 1, "one at a time"
        timers.pop()()
        assert done == so_far
    timers.pop()()
    assert done[-1] == "third"
    assert not timers
    assert len(plane.table.tables[Kind.VPC]) == 3


def test_what_is_done_at_once_does_not_hold_up_the_next() -> None:
    share = SharedDataPlane(MemoryDataPlane()).share()
    assert [program(share, vpc(id_=name)) for name in "abc"] == [{}, {}, {}]
    assert held(share) == {"a", "b", "c"}


def test_each_reads_back_its_own_and_the_first_what_is_nobodys() -> None:
    plane = MemoryDataPlane()
    whole = SharedDataPlane(plane)
    one, two = whole.share(), whole.share()
    program(one, vpc(id_="a"))
    program(two, vpc(id_="b"))
    plane.tables[Kind.VPC]["stray"] = b"x"
    assert held(one) == {"a", "stray"}
    assert held(two) == {"b"}
    program(one, gone(vpc(id_="stray")))
    assert plane.tables[Kind.VPC].keys() == {"a", "b"}


def test_none_deletes_what_another_one_put_there() -> None:
    plane = MemoryDataPlane()
    whole = SharedDataPlane(plane)
    one, two = whole.share(), whole.share()
    program(one, vpc(id_="a"))
    program(two, vpc(id_="a"))
    assert program(one, gone(vpc(id_="a")), vpc(id_="b")) == {}
    assert plane.tables[Kind.VPC].keys() == {"a", "b"}
    assert (held(one), held(two)) == ({"b"}, {"a"})
    program(two, gone(vpc(id_="a")))
    assert plane.tables[Kind.VPC].keys() == {"b"}


def test_what_one_deletes_that_another_one_wants_is_there_as_that_one_wants_it() -> None:
    """Shards do not agree on an order: what one is told late was put there by another before."""
    plane = MemoryDataPlane()
    whole = SharedDataPlane(plane)
    one, two = whole.share(), whole.share()
    wanted = vpc(id_="a", name="wanted")
    program(two, wanted)
    program(one, vpc(id_="a", revision=7))
    assert plane.tables[Kind.VPC]["a"] != wanted.payload
    assert program(one, gone(vpc(id_="a", revision=7))) == {}
    assert plane.tables[Kind.VPC] == {"a": wanted.payload}
    assert (held(one), held(two)) == (set(), {"a"})
    program(two, gone(wanted))
    assert not plane.tables[Kind.VPC]


def test_what_is_refused_is_told_at_its_place_and_belongs_to_nobody() -> None:
    timers: list[Callable[[], None]] = []
    model = ProgrammingModel(refuse_ids=("bad",))
    plane = ModelledDataPlane(model, lambda seconds, call: timers.append(call))
    whole = SharedDataPlane(plane)
    one, two = whole.share(), whole.share()
    answers: list[Any] = []
    two.program([vpc(id_="theirs")], lambda _: None)
    one.program([gone(vpc(id_="theirs")), vpc(id_="good"), vpc(id_="bad")], answers.append)
    while timers:
        timers.pop()()
    assert answers == [{2: Refusal("injected failure: the id matches")}]
    two.read_back(Kind.VPC, answers.append)
    one.read_back(Kind.VPC, answers.append)
    while timers:
        timers.pop()()
    assert [set(table) for table in answers[1:]] == [{"theirs"}, {"good"}]
