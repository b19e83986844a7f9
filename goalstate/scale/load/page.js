"use strict";
const plots = JSON.parse(document.getElementById("plots").textContent);
const config = {
  displaylogo: false,
  responsive: true,
  // A page stays where it is.
  showSendToCloud: false,
  plotlyServerURL: "",
  modeBarButtonsToRemove: ["lasso2d", "select2d"],
};

for (const [id, plot] of Object.entries(plots)) {
  const place = document.getElementById(id);
  const select = document.querySelector(`select[data-of="${id}"]`);
  const scale = document.querySelector(`input[data-of="${id}"]`);

  const draw = () => {
    const figure = plot.figures[select ? select.selectedIndex : 0];
    const layout = structuredClone(figure.layout);
    if (scale) layout.yaxis.type = scale.checked ? "log" : "linear";
    const shown = place.layout?.xaxis;
    if (plot.link && shown && !shown.autorange) layout.xaxis.range = shown.range;
    Plotly.react(place, figure.data, layout, config);
  };
  if (scale) {
    scale.checked = plot.figures[0].layout.yaxis.type === "log";
    scale.addEventListener("change", draw);
  }
  if (select) select.addEventListener("change", draw);
  draw();
}

// Plots of one link are zoomed together.
let following = false;
for (const [id, plot] of Object.entries(plots)) {
  if (!plot.link) continue;
  document.getElementById(id).on("plotly_relayout", (change) => {
    const range = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    const whole = change["xaxis.autorange"];
    if (following || (range[0] === undefined && !whole)) return;
    const update = whole ? { "xaxis.autorange": true } : { "xaxis.range": range };
    const others = Object.keys(plots).filter((one) => one !== id && plots[one].link === plot.link);
    following = true;
    Promise.all(others.map((one) => Plotly.relayout(one, update))).finally(() => {
      following = false;
    });
  });
}
document.body.dataset.drawn = Object.keys(plots).length;
