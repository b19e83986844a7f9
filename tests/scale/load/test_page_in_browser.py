"""Pages in a browser: plots are drawn, choices work, nothing is complained of."""

from __future__ import annotations

from pathlib import Path

from goalstate.scale.load import compare, compare_page, page, sweep_page
from goalstate.scale.load import sweep as sweeps
from goalstate.scale.load.compare import Group
from goalstate.scale.load.sweep import Axis
from tests.scale.load import made_results
from tests.scale.load.browser import look, needs_browser
from tests.scale.load.test_page import HOSTILE, PLOTS, hostile

pytestmark = needs_browser

#: Makes every choice that there is on the page, and zooms in on a part of the time.
_CHOOSE = """<script>
let chosen = 0;
for (const select of document.querySelectorAll("select")) {
  for (let at = 0; at < select.options.length; at++) {
    select.selectedIndex = at;
    select.dispatchEvent(new Event("change"));
    chosen++;
  }
}
for (const box of document.querySelectorAll("input")) box.click();
document.body.dataset.chosen = chosen;
document.body.dataset.scales = [...document.querySelectorAll("input")]
  .map((box) => document.getElementById(box.dataset.of).layout.yaxis.type).join();
const cpu = document.getElementById("cpu");
if (cpu) {
  Plotly.relayout(cpu, { "xaxis.range[0]": 3, "xaxis.range[1]": 5 }).then(() => {
    setTimeout(() => {
      document.body.dataset.shown = document.getElementById("latency").layout.xaxis.range.join();
    }, 500);
  });
}
document.body.dataset.traces = [...document.querySelectorAll(".plot")]
  .map((plot) => plot.data.length).join();
</script>"""


def test_plots_are_drawn_and_the_console_is_empty(tmp_path: Path) -> None:
    file = tmp_path / page.FILE
    page.write(made_results.result(), file)
    seen = look(file)
    assert seen.console == []
    assert seen.attribute("data-drawn") == str(len(PLOTS))
    assert seen.count('class="plot js-plotly-plot"') == len(PLOTS)
    assert seen.count('class="trace scatter') >= 20
    assert seen.count('class="trace bars"') >= 16


def test_every_choice_draws_its_figure(tmp_path: Path) -> None:
    file = tmp_path / page.FILE
    made = made_results.result()
    file.write_text(page.render(made).replace("</body>", f"{_CHOOSE}</body>"), "utf-8")
    seen = look(file, width=800)
    assert seen.console == []
    assert seen.attribute("data-chosen") == str(len(made.stages))
    assert seen.attribute("data-scales") == "log,linear"
    assert seen.attribute("data-traces") == "4,6,20,5,5,2"
    # Plots along the time are zoomed together.
    assert seen.attribute("data-shown") == "3,5"


def test_hostile_words_are_drawn_as_words(tmp_path: Path) -> None:
    file = tmp_path / page.FILE
    page.write(hostile(), file)
    seen = look(file)
    assert seen.console == []
    assert seen.attribute("data-drawn") == str(len(PLOTS))
    assert seen.count("<img") == 0
    assert seen.count("<a [^>]*evil") == 0
    # In the legend of the processes, as far as it is shown.
    assert HOSTILE[:20].replace("<", "&lt;").replace(">", "&gt;") in seen.dom


def test_plots_of_a_comparison_and_of_a_sweep_are_drawn(tmp_path: Path) -> None:
    groups = [
        Group(hosts, tuple(made_results.result(ms=ms) for ms in (1.0, 2.0)))
        for hosts in ("a", HOSTILE)
    ]
    axes = [Axis(path="region.hosts", values=[10, 200])]
    results = {point: [made_results.result()] for point in sweeps.grid(axes)}
    sweep = sweeps.sweep("made", [], axes, 1, results, {})
    pages = {
        "comparison": (compare_page.render(groups, compare.compare(groups)), 4),
        "sweep": (sweep_page.render(sweep), 3),
    }
    for name, (text, plots) in pages.items():
        file = tmp_path / f"{name}.html"
        file.write_text(text.replace("</body>", f"{_CHOOSE}</body>"), "utf-8")
        seen = look(file)
        assert seen.console == [], name
        assert seen.attribute("data-drawn") == str(plots)
        assert seen.count('class="plot js-plotly-plot"') == plots
        assert seen.count("<img") == 0
