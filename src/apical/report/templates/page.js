"use strict";
(() => {
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const night = matchMedia("(prefers-color-scheme: dark)");
  const state = {
    curves: Object.keys(payload.curves)[0],
    angles: Object.keys(payload.angles)[0],
    scale: null, // null: as the figure itself has it
    hidden: new Set(),
  };

  // Figures come in the light theme's colours; on a dark page each colour is exchanged for its partner.
  const themed = (value) => {
    if (typeof value === "string") return night.matches ? (payload.dark[value] ?? value) : value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(themed);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
    }
    return value;
  };

  const save = {
    name: "save",
    title: "Save as SVG",
    icon: Plotly.Icons.camera ?? Plotly.Icons.disk,
    click: (plot) => {
      const layout = { ...plot.layout, title: plot.heading, margin: undefined, showlegend: plot.figure !== "errors" };
      layout.margin = { l: 60, r: 20, t: 50, b: 60 };
      Plotly.downloadImage({ data: plot.data, layout }, { format: "svg", filename: plot.figure, width: 800, height: 500 });
    },
  };
  const config = { displaylogo: false, responsive: true, modeBarButtons: [[save]] };

  const draw = (plot, figure, name, change) => {
    const { data, layout } = themed(figure);
    plot.heading = layout.title;
    plot.figure = name;
    delete layout.title;
    layout.showlegend = false;
    layout.margin = { ...layout.margin, t: name === "errors" ? 10 : 14 };
    change?.(layout);
    if (name !== "errors") {
      for (const trace of data) trace.visible = !state.hidden.has(trace.legendgroup);
    }
    Plotly.react(plot, data, layout, config);
  };

  const pressed = (name, value) => {
    for (const button of document.querySelectorAll(`[data-choice="${name}"]`)) {
      button.setAttribute("aria-pressed", String(button.dataset.value === value));
    }
  };

  const drawCurves = () => {
    const plot = document.querySelector('[data-figure="curves"]');
    if (!plot) return;
    const figure = payload.curves[state.curves];
    const { logarithmic, marks, texts } = figure.layout.meta;
    const own = figure.layout.yaxis.type === "log" ? "log" : "linear";
    const scale = logarithmic ? (state.scale ?? own) : "linear";
    draw(plot, figure, "curves", (layout) => {
      if (scale === "log") Object.assign(layout.yaxis, { type: "log", tickvals: marks, ticktext: texts });
      else Object.assign(layout.yaxis, { type: "linear", tickvals: undefined, ticktext: undefined });
    });
    for (const button of document.querySelectorAll('[data-choice="scale"]')) {
      button.disabled = !logarithmic && button.dataset.value === "log";
      if (button.disabled) button.title = "Some values are not positive";
    }
    pressed("curves", state.curves);
    pressed("scale", scale);
  };

  const drawAngles = (afresh) => {
    const panels = document.querySelector(".panels");
    if (!panels) return;
    const layers = Object.keys(payload.angles[state.angles]);
    if (afresh) {
      panels.querySelectorAll(".plot").forEach((plot) => Plotly.purge(plot));
      panels.replaceChildren(
        ...layers.map((layer, place) => {
          const panel = document.createElement("div");
          const heading = document.createElement("h3");
          const name = document.createElement("code");
          const where = document.createElement("span");
          const plot = document.createElement("div");
          name.textContent = layer;
          where.textContent = `${place + 1} of ${layers.length}`;
          heading.append(name, where);
          plot.className = "plot";
          plot.setAttribute("role", "img");
          plot.setAttribute("aria-label", `Angles of ${layer} over training`);
          panel.append(heading, plot);
          return panel;
        }),
      );
    }
    panels.querySelectorAll(".plot").forEach((plot, place) => {
      draw(plot, payload.angles[state.angles][layers[place]], "angles", (layout) => {
        delete layout.yaxis.title;
      });
    });
    for (const text of document.querySelectorAll("[data-for]")) text.hidden = text.dataset.for !== state.angles;
    pressed("angles", state.angles);
  };

  const drawAll = () => {
    drawCurves();
    draw(document.querySelector('[data-figure="errors"]'), payload.errors, "errors");
    drawAngles(!document.querySelector(".panels .plot"));
  };

  document.addEventListener("click", (event) => {
    const choice = event.target.closest("[data-choice]");
    if (choice) {
      state[choice.dataset.choice] = choice.dataset.value;
      if (choice.dataset.choice === "angles") drawAngles(true);
      else drawCurves();
      return;
    }
    const rule = event.target.closest("[data-rule]");
    if (rule) {
      const show = state.hidden.delete(rule.dataset.rule);
      if (!show) state.hidden.add(rule.dataset.rule);
      rule.setAttribute("aria-pressed", String(show));
      drawCurves();
      drawAngles(false);
    }
  });

  // A column's button sorts by it, a second time the other way round; rows without a value stay last.
  for (const heading of document.querySelectorAll(".summary thead th[aria-sort]")) {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      const place = [...heading.parentElement.children].indexOf(heading);
      for (const other of heading.parentElement.children) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.children[place].dataset.sort;
      const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
      const body = document.querySelector(".summary tbody");
      const rows = [...body.children].sort((a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        return down ? compare(right, left) : compare(left, right);
      });
      body.append(...rows);
    });
  }

  const copy = document.getElementById("copy");
  copy.addEventListener("click", async () => {
    const command = document.getElementById("command");
    try {
      await navigator.clipboard.writeText(command.textContent);
    } catch {
      getSelection().selectAllChildren(command); // no clipboard for this page: the older way
      document.execCommand("copy");
    }
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });

  night.addEventListener("change", drawAll);
  drawAll();
})();
