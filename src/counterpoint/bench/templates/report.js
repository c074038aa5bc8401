"use strict";
(() => {
  const { figures } = JSON.parse(document.getElementById("payload").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const state = { reading: "final", axis: "epochs" };
  const hidden = new Set(
    all('.chip[aria-pressed="false"]').map((chip) => Number(chip.dataset.method)),
  );
  const withLegend = new Set(
    all("section").filter((section) => section.querySelector(".legend"))
      .flatMap((section) => all(".plot", section).map((plot) => plot.id.replace("figure-", ""))),
  );
  const touch = matchMedia("(pointer: coarse)").matches; // a finger on a figure scrolls the page
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };

  // A figure as the switches want it: the variant's traces and layout laid over the base.
  function build(figure) {
    const variant = figure.variants[state[figure.switch]] || { data: [], layout: {} };
    const data = figure.data.map((trace, index) => {
      const off = withLegend.has(figure.key) && hidden.has(trace.meta.method);
      return { ...trace, ...(variant.data[index] || {}), visible: !off };
    });
    const layout = { ...structuredClone(figure.layout), ...structuredClone(variant.layout) };
    layout.dragmode = touch ? false : "zoom";
    return [data, layout];
  }

  // The drawing scales with its box where no script runs in time, which is in print.
  function scalable(plot) {
    for (const svg of all("svg.main-svg", plot)) {
      const width = svg.getAttribute("width");
      const height = svg.getAttribute("height");
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      plot.style.setProperty("--ratio", `${width} / ${height}`);
    }
  }

  async function draw() {
    for (const figure of figures) {
      const plot = document.getElementById(`figure-${figure.key}`);
      await Plotly.newPlot(plot, ...build(figure), config);
      scalable(plot);
      plot.on("plotly_afterplot", () => scalable(plot));
    }
    document.documentElement.dataset.drawn = "true";
  }

  function redraw(wanted) {
    for (const figure of figures.filter(wanted)) {
      Plotly.react(`figure-${figure.key}`, ...build(figure), config);
    }
  }

  function switchTo(name, value, text) {
    state[name] = value;
    if (name === "reading") {
      for (const body of all("tbody[data-reading]")) body.hidden = body.dataset.reading !== value;
      for (const place of all("[data-reading-text]")) place.textContent = text;
    }
    redraw((figure) => figure.switch === name);
  }

  for (const fieldset of all("[data-switch]")) {
    fieldset.addEventListener("change", (event) => {
      const text = event.target.nextElementSibling.textContent;
      switchTo(fieldset.dataset.switch, event.target.value, text);
    });
    fieldset.querySelector("input").checked = true; // a reload keeps old form values
  }

  for (const chip of all(".chip")) {
    chip.addEventListener("click", () => {
      const method = Number(chip.dataset.method);
      const show = hidden.delete(method);
      if (!show) hidden.add(method);
      for (const twin of all(`.chip[data-method="${method}"]`)) twin.setAttribute("aria-pressed", String(show));
      redraw((figure) => withLegend.has(figure.key));
    });
  }

  // Rows without a number stay last whichever way the others go.
  function compare(kind, sign) {
    return ([a], [b]) => {
      if (kind === "text") return sign * a.localeCompare(b, undefined, { numeric: true });
      if ((a === "") !== (b === "")) return a === "" ? 1 : -1;
      return a === "" ? 0 : sign * (number(a) - number(b)) || 0;
    };
  }

  function number(text) {
    if (text === "inf") return Infinity;
    return text === "-inf" ? -Infinity : Number(text);
  }

  function sortBy(header) {
    const before = header.getAttribute("aria-sort");
    const other = header.dataset.first === "ascending" ? "descending" : "ascending";
    const direction = before === header.dataset.first ? other : header.dataset.first;
    const headers = all("#results thead tr:last-child th");
    for (const each of headers) each.setAttribute("aria-sort", each === header ? direction : "none");
    const column = headers.indexOf(header);
    const order = compare(header.dataset.kind, direction === "ascending" ? 1 : -1);
    for (const body of all("#results tbody[data-reading]")) {
      const rows = all("tr", body).map((row) => [row.children[column].dataset.sort, row]);
      body.append(...rows.sort(order).map(([, row]) => row));
    }
  }

  for (const button of all("#results .sort")) {
    button.addEventListener("click", () => sortBy(button.closest("th")));
  }

  const box = document.querySelector(".scroll");
  new ResizeObserver(() => {
    document.getElementById("more").hidden = box.scrollWidth <= box.clientWidth;
  }).observe(box);

  // Print shows what is folded, and folds it again afterwards.
  const opened = new Set();
  function unfold(printing) {
    for (const details of all("details")) {
      if (printing && !details.open) {
        opened.add(details);
        details.open = true;
      } else if (!printing && opened.delete(details)) {
        details.open = false;
      }
    }
  }
  addEventListener("beforeprint", () => unfold(true));
  addEventListener("afterprint", () => unfold(false));
  matchMedia("print").addEventListener("change", (event) => unfold(event.matches));

  draw();
})();
