"""The page of a result: everything is on it, nothing is fetched, and words stay words."""

from __future__ import annotations

import json

import pytest

from goalstate.scale.load import figures, page
from goalstate.scale.load.results import PhaseResult, Result
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.thresholds import Verdict
from tests.scale.load import made_results
from tests.scale.load.pages import Page

HOSTILE = "</script><img src=https://evil.example/x onerror=alert(1)>&\"'<a href='//e'>"
PLOTS = {"latency", "tail", "path", "cpu", "memory", "outcomes-by-phase"}


def test_a_page_is_well_formed_and_has_every_section_and_plot() -> None:
    read = Page(page.render(made_results.result()))
    sections = [
        *("verdicts", "stages", "time", "distribution", "steps", "resources", "outcomes"),
        *("hosts", "clocks", "losses", "workload"),
    ]
    assert [id_ for id_ in read.ids if id_ in sections] == sections
    assert set(read.plots) == PLOTS
    assert set(read.ids) >= PLOTS
    assert len(read.ids) == len(set(read.ids))
    for word in ("PASSED", "host-1", "9.50", "create-ports", "± 0.250", "2 cores", "run-1"):
        assert word in read.text


def test_a_page_fetches_nothing_and_has_plotly_once() -> None:
    text = page.render(made_results.result())
    read = Page(text)
    assert read.addresses
    assert all(address.startswith("#") for address in read.addresses)
    assert not {"link", "img", "iframe", "object", "embed"} & set(read.tags)
    assert "default-src 'none'" in text
    assert text.count("* plotly.js v") == 1


def test_links_of_a_page_lead_to_its_sections() -> None:
    read = Page(page.render(made_results.result()))
    assert {address.removeprefix("#") for address in read.addresses} <= set(read.ids)


def hostile() -> Result:
    made = made_results.result(
        run=HOSTILE,
        broker=HOSTILE,
        machine={HOSTILE: HOSTILE},
        behind=HOSTILE,
        refusals=[HOSTILE],
        lost=1,
        lost_named=[HOSTILE],
        slowest_hosts=[(HOSTILE, 1.0, 1)],
        fleet={HOSTILE: 1},
        verdicts=[Verdict(what=HOSTILE, limit=HOSTILE, found=HOSTILE, held=False)],
    )
    phases = [
        PhaseResult.model_validate(phase.model_dump() | {"name": f"{HOSTILE}{number}"})
        for number, phase in enumerate(made.phases)
    ]
    stages = [
        one.model_copy(update={"by_phase": {phases[-1].name: one.whole}}) for one in made.stages
    ]
    processes = [
        one.model_copy(update={"name": f"fleet {HOSTILE}{n}"})
        for n, one in enumerate(made.processes)
    ]
    clocks = [
        one.model_copy(update={"worker": HOSTILE, "role": HOSTILE, "machine": HOSTILE})
        for one in made.clocks
    ]
    names = {"workload": made.workload | {"name": HOSTILE, "about": HOSTILE}}
    lists = {"phases": phases, "stages": stages, "processes": processes, "clocks": clocks}
    return made.model_copy(update=names | lists)


def test_words_of_users_are_shown_and_never_read_as_html() -> None:
    text = page.render(hostile())
    read = Page(text)
    assert text.count("</script>") == 3
    assert "img" not in read.tags
    assert all(address.startswith("#") for address in read.addresses)
    assert read.text.count(HOSTILE) > 10
    # Plotly reads tags in what it draws as well.
    drawn = json.dumps([one["figures"] for one in read.plots.values()])
    assert "evil.example" in drawn
    assert "<" not in drawn.replace("<extra></extra>", "")


def test_a_failed_result_is_seen_at_once_and_says_what_did_not_hold() -> None:
    read = Page(page.render(made_results.result(held=False)))
    assert "FAILED" in read.text
    assert "NOT HELD" in read.text
    assert "PASSED" not in read.text


def test_of_a_result_without_values_there_is_a_page() -> None:
    empty = made_results.result(stages=[], processes=[], slowest_hosts=[], clocks=[])
    read = Page(page.render(empty))
    assert "stages" in read.ids
    assert set(read.plots) == {"outcomes-by-phase"}


def test_where_nothing_came_in_a_second_the_line_has_a_gap() -> None:
    one = made_results.stage(Stage.ACCEPTED, 2.0, "steady", seconds=(2, 3, 6))
    figure = figures.over_time(made_results.result(), one)
    line = figure["data"][0]
    assert line["x"] == [2, 3, 4, 5, 6]
    assert line["y"] == [2.0, 2.0, None, None, 2.0]


def test_of_a_long_run_the_worst_seconds_are_kept() -> None:
    seconds = [(at, made_results.figures(50.0 if at == 7777 else 1.0)) for at in range(86_400)]
    step = figures.step_of(seconds[-1][0])
    points = figures.worst(seconds, step)
    assert len(points) <= 1800
    assert max(of.max_ms for _, of in points if of is not None) == 500.0


def test_a_warm_up_is_marked_and_phases_are_shaded_where_they_are() -> None:
    result = made_results.result()
    layout = figures.over_time(result, result.stages[0])["layout"]
    assert [(s["x0"], s["x1"]) for s in layout["shapes"]] == [(0, 2), (2, 10)]
    assert [a["text"] for a in layout["annotations"]] == ["warm", "warm-up", "steady"]


def test_what_has_no_room_for_its_name_is_shaded_without() -> None:
    result = made_results.result(overrides=["phases.0.seconds=0.2"])
    layout = figures.timed(result.phases, "ms")
    assert [a["text"] for a in layout["annotations"]] == ["warm-up", "steady"]
    assert len(layout["shapes"]) == 2


def test_of_many_processes_the_legend_has_roles() -> None:
    few = made_results.result()
    named = [one["name"] for one in figures.resources(few, "MiB")["data"]]
    assert named == [process.name for process in few.processes]
    fleets = [
        few.processes[-2].model_copy(update={"name": f"fleet {number}"}) for number in range(20)
    ]
    many = few.model_copy(update={"processes": [few.processes[0], *fleets]})
    figure = figures.resources(many, "MiB")
    legend = [one["name"] for one in figure["data"] if one.get("showlegend", True)]
    assert legend == ["dpm", "fleet: 20 processes"]
    assert len(figure["data"]) == 2 + 21


def test_a_tail_ends_where_there_are_no_more_values() -> None:
    one = made_results.stage(Stage.ACCEPTED, 2.0, "steady")
    assert one.whole.count == 100
    points = figures.tail(one)
    assert [x for x, _ in points] == pytest.approx([1, 2, 100])
    assert points[-1][1] == one.whole.max_ms


def test_a_step_is_what_a_stage_adds_and_never_below_nothing() -> None:
    of = {
        Stage.SENT: made_results.figures(1.0),
        Stage.PUBLISHED: made_results.figures(3.0),
        Stage.FIRST_HOST: made_results.figures(2.0),
        Stage.LAST_HOST: made_results.figures(7.0),
    }
    assert figures.steps(of, "50") == [
        (Stage.SENT, 1.0),
        (Stage.PUBLISHED, 2.0),
        (Stage.FIRST_HOST, 0.0),
        (Stage.LAST_HOST, 4.0),
    ]
