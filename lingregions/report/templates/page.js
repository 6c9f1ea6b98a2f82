// Draws the figures, keeps those of one group together, follows light and dark, and sorts the tables.
"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const specifications = read("specifications"), themes = read("themes");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map(); // name of a figure -> its Vega view
  const named = (spec) => (spec.params || []).filter((param) => "value" in param && !param.select).map((param) => param.name);

  const settings = (name) => {
    const view = drawn.get(name);
    return view ? Object.fromEntries(named(specifications[name]).map((param) => [param, view.signal(param)])) : {};
  };

  // A parameter that is set in one figure is set in the others of its group that have it.
  const share = (name, changes) => {
    for (const [other, view] of drawn) {
      const group = specifications[other].usermeta.group;
      if (!group || group !== specifications[name].usermeta.group) continue;
      const known = named(specifications[other]);
      for (const [param, value] of Object.entries(changes)) {
        if (known.includes(param) && view.signal(param) !== value) view.signal(param, value).runAsync();
      }
    }
  };

  const follow = (name, view) => {
    for (const param of named(specifications[name])) view.addSignalListener(param, (_, value) => share(name, { [param]: value }));
    if ((specifications[name].params || []).some((param) => param.name === "cell")) {
      view.addSignalListener("cell", (_, value) => {
        share(name, Object.fromEntries(Object.entries(value).filter(([, list]) => Array.isArray(list)).map(([key, list]) => [key, list[0]])));
      });
    }
  };

  const draw = async (figure) => {
    const name = figure.dataset.figure, before = settings(name), controls = figure.querySelector(".controls");
    controls.replaceChildren();
    const spec = { ...specifications[name] };
    spec.params = (spec.params || []).map((param) => (param.name in before ? { ...param, value: before[param.name] } : param));
    const theme = themes[dark.matches ? "dark" : "light"], view = figure.querySelector(".view");
    // Names of rows leave at least half of the width to what they name.
    const config = { ...theme, axis: { ...theme.axis, labelLimit: Math.max(100, Math.min(300, 0.5 * view.clientWidth)) } };
    const result = await vegaEmbed(view, spec, {
      actions: false, ast: true, bind: controls, config,
      defaultStyle: false, logLevel: 1, renderer: "svg", tooltip: { disableDefaultStyle: true },
    });
    drawn.set(name, result.view);
    follow(name, result.view);
  };

  const figures = [...document.querySelectorAll("[data-figure]")];
  const visible = (figure) => !figure.closest("details:not([open])");
  const all = () => Promise.all(figures.filter(visible).map(draw)).then(() => document.documentElement.setAttribute("data-drawn", ""));
  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => {
      if (!details.open) return;
      for (const figure of details.querySelectorAll("[data-figure]")) if (!drawn.has(figure.dataset.figure)) draw(figure);
    });
  }
  dark.addEventListener("change", all);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
  if (figures.length) all();

  const key = (row, place) => {
    const cell = row.children[place];
    return "key" in cell.dataset ? (cell.dataset.key === "" ? -Infinity : Number(cell.dataset.key)) : cell.textContent;
  };
  const sort = (table, head, place) => {
    const body = table.tBodies[0], up = head.getAttribute("aria-sort") === "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows], totals = rows.filter((row) => row.classList.contains("total"));
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    const sorted = rows.filter((row) => !totals.includes(row)).sort((a, b) => (up ? 1 : -1) * compare(key(a, place), key(b, place)));
    body.replaceChildren(...sorted, ...totals);
  };
  for (const table of document.querySelectorAll(".sortable table")) {
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, head, place));
    });
  }
})();
