"""The page of a result: what held, how long each stage took, and where and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from goalstate.scale.load import figures, html
from goalstate.scale.load.html import Plot, Raw, Section
from goalstate.scale.load.results import Figures, Result
from goalstate.scale.load.stages import PERCENTILES, Stage

#: Of a result directory.
FILE = "report.html"
_MIB = 2**20
_LATENCY = (
    "Latency is from a change's intended start, at which the schedule wanted it to be sent, so "
    "that waiting behind a stall counts. Received and applied are one value for each host that a "
    "change is for; joined is from when a host was to join until it had everything; the others are "
    "one value a change."
)
_STEPS = (
    "How much later each stage's percentile is than the one before. These are not the parts of one "
    "change: the slowest 1 % of one stage are other changes than those of the next, so a step is a "
    "hint at where to look and not a duration that adds up. Where a later stage's percentile is "
    "the lower one, its step is 0. A change is published while the client is still being answered, "
    "so that accepted stands beside the path. Each bar has its own scale."
)


def render(result: Result) -> str:
    """The whole page, which needs nothing else."""
    workload = result.workload
    return html.page(f"{workload.get('name', '')} – {result.run}", _head(result), _sections(result))


def write(result: Result, file: Path) -> None:
    """Raises OSError."""
    file.write_text(render(result), encoding="utf-8")


def _sections(result: Result) -> Iterator[Section]:
    yield Section("verdicts", "What must hold", [_verdicts(result)])
    yield Section("stages", "Stages", [html.text(_LATENCY), _stages(result)])
    yield Section("time", "Over time", list(_over_time(result)))
    yield Section("distribution", "Distribution", list(_distribution(result)))
    yield Section("steps", "Where the time goes", list(_steps(result)))
    yield Section("resources", "Resources", list(_resources(result)))
    yield Section("outcomes", "Outcomes", list(_outcomes(result)))
    yield Section("hosts", "Slowest hosts", list(_hosts(result)))
    yield Section("clocks", "Clocks", list(_clocks(result)))
    yield Section("losses", "Losses and refusals", list(_losses(result)))
    yield Section(
        "workload",
        "Workload",
        [html.code(yaml.safe_dump(result.workload, sort_keys=False, allow_unicode=True))],
    )


# --- at the top ---


def _head(result: Result) -> Raw:
    workload = result.workload
    about = str(workload.get("about", ""))
    parts = [
        f'<div class="title"><h1>{escape(str(workload.get("name", "")))}</h1>',
        badge(result.passed),
        "</div>",
        f'<p class="about">{escape(about)}</p>' if about else "",
        tiles(_tiles(result)),
        html.facts(_facts(result)),
    ]
    return Raw("".join(parts))


def badge(passed: bool) -> Raw:
    return Raw(
        f'<span class="verdict {"good" if passed else "bad"}">{"PASSED" if passed else "FAILED"}'
        "</span>"
    )


def tiles(pairs: Iterator[tuple[str, str]]) -> Raw:
    inner = "".join(f"<div><b>{escape(v)}</b><span>{escape(n)}</span></div>" for n, v in pairs)
    return Raw(f'<div class="tiles">{inner}</div>')


def _tiles(result: Result) -> Iterator[tuple[str, str]]:
    yield f"changes accepted of {result.offered:,} offered", f"{result.accepted:,}"
    for stage in (Stage.ACCEPTED, Stage.LAST_HOST):
        found = result.stage(stage)
        if found is not None:
            of = found.whole.percentiles_ms
            yield f"ms: {stage}, p50 / p99", f"{_ms(of['50'])} / {_ms(of['99'])}"
    yield "changes lost", f"{result.lost:,}"
    dpm = result.process("dpm")
    if dpm is not None:
        yield "processors of the DPM", f"{dpm.cpu_s / result.measured_s:.2f}"
        yield "MiB of the DPM at the end", f"{dpm.end_bytes / _MIB:,.0f}"


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    workload = result.workload
    region, layout, fleet = (workload.get(k, {}) for k in ("region", "layout", "fleet"))
    yield "run", f"{result.run}, {result.began}"
    yield "goalstate", result.goalstate
    yield "region", f"{region.get('hosts', 0):,} hosts, VPCs {region.get('vpcs', '')}"
    yield "layout", _pairs(layout)
    yield "fleet", _pairs(fleet)
    yield "generators", f"{workload.get('generators')}, of {workload.get('callers')} callers each"
    yield from result.machine.items()
    yield "broker", result.broker
    measured, whole = result.measured_s, sum(phase.seconds for phase in result.phases)
    yield (
        "time",
        f"{measured:g} s measured of {whole:g} s; the region was made in {result.build_s:g} s",
    )
    yield "hosts got", ", ".join(f"{n:,} {name}" for name, n in result.fleet.items())
    for name, number in result.traffic_bytes.items():
        yield name, f"{number / _MIB:,.1f} MiB while it was measured"
    if result.loopback_bytes:
        yield "loopback", f"{result.loopback_bytes / _MIB:,.1f} MiB while it was measured"


def _pairs(of: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in of.items())


# --- the sections ---


def _verdicts(result: Result) -> Raw:
    doubts = "".join(f'<p class="bad">{escape(doubt)}</p>' for doubt in result.doubts)
    table = html.table(
        ("what", "limit", "found", ""),
        [
            (
                "",
                [
                    (v.what, v.limit, v.found, html.mark(v.held, "held" if v.held else "NOT HELD"))
                    for v in result.verdicts
                ],
            )
        ],
    )
    return Raw(table + doubts)


def _stages(result: Result) -> Raw:
    columns = (
        "stage",
        "values#",
        "mean ms#",
        *(f"p{percentile:g}#" for percentile in PERCENTILES),
        "highest#",
    )

    def row(name: str, of: Figures) -> Sequence[str]:
        percentiles = (_ms(of.percentiles_ms[f"{percentile:g}"]) for percentile in PERCENTILES)
        return (name, f"{of.count:,}", _ms(of.mean_ms), *percentiles, _ms(of.max_ms))

    groups = [("all that was measured", [row(one.stage, one.whole) for one in result.stages])]
    measured = [phase.name for phase in result.phases if phase.measured]
    if len(measured) > 1:
        groups += [
            (
                f"phase: {name}",
                [
                    row(one.stage, one.by_phase[name])
                    for one in result.stages
                    if name in one.by_phase and one.by_phase[name].count
                ],
            )
            for name in measured
        ]
    return html.table(columns, groups)


def _over_time(result: Result) -> Iterator[Raw | Plot]:
    # The stage that most look for is shown first.
    order = sorted(result.stages, key=lambda one: one.stage is not Stage.LAST_HOST)
    variants = {one.stage.value: figures.over_time(result, one) for one in order if one.seconds}
    if not variants:
        return
    words = "Each second by itself. Where nothing came in a second, the lines have a gap."
    step = max(figures.step_of(one.seconds[-1][0]) for one in order if one.seconds)
    if step > 1:
        words = (
            f"Each point is, of {step} seconds, the one with the highest latency; gaps are where "
            "nothing came."
        )
    yield html.text(words)
    yield Plot("latency", variants, "stage", height=420, scales=True, link="time")


def _distribution(result: Result) -> Iterator[Raw | Plot]:
    if not result.stages:
        return
    yield html.text(
        "All measured phases. To the right each step is ten times as rare, up to the highest value "
        "of each stage. A click on a name hides it, a double click hides the others."
    )
    yield Plot("tail", {"": figures.distributions(result)}, height=440, scales=True)


def _steps(result: Result) -> Iterator[Raw | Plot]:
    variants = {}
    for name in ("", *(phase.name for phase in result.phases if phase.measured)):
        of = {one.stage: one.by_phase.get(name) if name else one.whole for one in result.stages}
        there = {stage: found for stage, found in of.items() if found is not None and found.count}
        if there:
            variants[name or "all that was measured"] = figures.breakdown(there)
    if len(variants) == 2:
        variants.popitem()
    if variants:
        yield html.text(_STEPS)
        yield Plot("path", variants, "phase", height=440)


def _resources(result: Result) -> Iterator[Raw | Plot]:
    if not result.processes:
        return
    yield Plot("cpu", {"": figures.resources(result, "processors")}, height=330, link="time")
    yield Plot("memory", {"": figures.resources(result, "MiB")}, height=330, link="time")
    rows = [
        (
            one.name,
            f"{one.cpu_s:,.1f}",
            f"{one.cpu_s / result.measured_s:.2f}",
            f"{one.begin_bytes / _MIB:,.0f}",
            f"{one.end_bytes / _MIB:,.0f}",
        )
        for one in result.processes
    ]
    columns = ("process", "CPU s#", "processors#", "MiB at the beginning#", "at the end#")
    yield html.text("While it was measured:")
    yield html.table(columns, [("", rows)])


def _outcomes(result: Result) -> Iterator[Raw | Plot]:
    yield Plot(
        "outcomes-by-phase",
        {"": figures.outcomes(result.phases)},
        height=130 + 34 * len(result.phases),
    )
    outcomes = list(dict.fromkeys(name for phase in result.phases for name in phase.outcomes))
    rows = [
        (
            phase.name if phase.measured else f"{phase.name} (warm-up)",
            f"{phase.begin_s:,g}",
            f"{phase.seconds:,g}",
            f"{phase.offered:,}",
            f"{phase.offered / phase.seconds:,.1f}",
            *(f"{phase.outcomes.get(name, 0):,}" for name in outcomes),
        )
        for phase in result.phases
    ]
    columns = ("phase", "from s#", "seconds#", "offered#", "a second#")
    yield html.table((*columns, *(f"{name}#" for name in outcomes)), [("", rows)], "named")
    kinds = list(dict.fromkeys(kind for phase in result.phases for kind in phase.accepted))
    if kinds:
        yield html.text("Accepted, by kind of change:")
        by_kind = [
            (phase.name, *(f"{phase.accepted.get(kind, 0):,}" for kind in kinds))
            for phase in result.phases
        ]
        yield html.table(("phase", *(f"{kind}#" for kind in kinds)), [("", by_kind)], "named")


def _hosts(result: Result) -> Iterator[Raw | Plot]:
    if not result.slowest_hosts:
        return
    highest = max(ms for _, ms, _ in result.slowest_hosts) or 1.0
    yield html.text("Mean from intended start to applied, over all changes that reached the host.")
    rows = [
        (
            host,
            _ms(ms),
            f"{changes:,}",
            Raw(f'<i class="bar" style="width:{ms / highest:.1%}"></i>'),
        )
        for host, ms, changes in result.slowest_hosts
    ]
    yield html.table(("host", "ms#", "changes#", ""), [("", rows)], "bars")


def _clocks(result: Result) -> Iterator[Raw | Plot]:
    if not result.clocks:
        return
    if all(clock.same for clock in result.clocks):
        yield html.text("All workers ran on the coordinator's machine, with its clock: no error.")
    else:
        yield html.text(
            "Times of workers on other machines are put right by what is ahead; the error is as "
            "much as a latency across machines can be wrong."
        )
    rows = [
        (
            clock.worker,
            clock.role,
            clock.machine,
            "the same clock" if clock.same else f"{clock.ahead_ms:+,.3f}",
            "" if clock.same else f"± {clock.error_ms:,.3f}",
        )
        for clock in result.clocks
    ]
    yield html.table(("worker", "role", "machine", "ahead, ms#", "error, ms#"), [("", rows)])


def _losses(result: Result) -> Iterator[Raw | Plot]:
    if result.lost:
        yield html.text(f"{result.lost:,} changes were lost, among them:")
        yield html.listing(result.lost_named)
    if result.behind:
        yield html.text(f"At the end, by the DPM: {result.behind}")
    if result.not_joined:
        yield html.text(f"{result.not_joined:,} hosts did not join.")
    if result.refusals:
        yield html.text("Refused, among others:")
        yield html.listing(result.refusals)
    if not (result.lost or result.behind or result.not_joined or result.refusals):
        yield html.text("Nothing was lost, and nothing was refused.")


def _ms(value: float) -> str:
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
