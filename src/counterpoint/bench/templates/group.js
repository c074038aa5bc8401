"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  for (const { key, data, layout } of figures) {
    if (window.innerWidth < 600) data[0].texttemplate = ""; // no room for numbers; a touch shows them
    const place = document.getElementById(`figure-${key}`);
    Plotly.newPlot(place, data, layout, { responsive: true, displayModeBar: false });
  }
  const resize = () => document.querySelectorAll(".js-plotly-plot").forEach((plot) => Plotly.Plots.resize(plot));
  window.addEventListener("beforeprint", resize);
  window.addEventListener("afterprint", resize);
})();
