/* Put the sections together once the page is there. */
(() => {
  "use strict";
  const { el, command } = Lotion.dom;
  const data = JSON.parse(document.getElementById("data").textContent);
  Lotion.data = data;
  const put = (id, ...nodes) => document.getElementById(id)?.append(...nodes.filter(Boolean));

  /* Sections are made when they come near the window, so that the page opens at once. */
  function lazily(id, make) {
    const place = document.getElementById(id);
    if (!place) return;
    let done = false;
    const run = () => { if (!done) { done = true; place.append(...[make()].flat().filter(Boolean)); } };
    Lotion.ready[id] = run;
    new IntersectionObserver((entries, watcher) => {
      if (entries.some((e) => e.isIntersecting)) { watcher.disconnect(); run(); }
    }, { rootMargin: "800px" }).observe(place);
  }

  Lotion.ready = {};
  /* Make these sections now, by default all: printing needs them. */
  Lotion.make = (...ids) => (ids.length ? ids : Object.keys(Lotion.ready)).forEach((id) => Lotion.ready[id]());

  function theme() {
    const button = document.getElementById("theme"), root = document.documentElement;
    const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const tell = () => {
      button.textContent = dark() ? "Light" : "Dark";
      button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`);
    };
    button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; tell(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
    tell();
  }

  function study(figure) {
    const board = data.boards.find((b) => b.name === figure.experiment);
    const spec = { ...figure, csv: `${figure.experiment}-${figure.title}`, command: board ? board.command : null };
    if (figure.dots) return Lotion.dots(spec);
    return Lotion.chart({ ...spec, series: figure.series.map((s) => ({ ...s, marks: true })) });
  }

  function studies() {
    const names = [...new Set(data.figures.map((f) => f.experiment))];
    return names.map((name, k) => {
      const board = data.boards.find((b) => b.name === name), place = el("div", { class: "pair" });
      const fold = el("details", { open: k === 0 }, el("summary", { text: `${board ? board.title : name} (${name})` }), place);
      let made = false;
      const fill = () => { if (!made && fold.open) { made = true; place.append(...data.figures.filter((f) => f.experiment === name).map(study)); } };
      fold.addEventListener("toggle", fill);
      fill();
      return fold;
    });
  }

  function layers() {
    if (!data.layers.length) return null;
    const text = (v) => (v === null ? ["", null] : [Lotion.dom.number(v, 3), v]);
    return Lotion.table({
      caption: "Reconstruction loss over the layer's output power, geometric means over layers; last: noise of randomized rounding over that of round-to-nearest", name: "trained-layers",
      columns: ["format", "RTN", "RR", "conditional expectation", "noise ratio RR / RTN"],
      rows: data.layers.map(([format, ...rest]) => [[format, format], ...rest.map(text)]),
    });
  }

  function benchmarks() {
    return data.benchmarks.map((b) => el("details", { open: true }, el("summary", { text: b.name.replaceAll("_", " ") }),
      el("p", { text: b.about }), ...b.tables.map((t) => Lotion.table({
        caption: `${b.name.replaceAll("_", " ")}: ${t.title}${t.left_out ? ` (${t.left_out} further rows left out)` : ""}`, name: `${b.name}-${t.title}`, columns: t.columns, rows: t.rows })),
      command(b.command)));
  }

  theme();
  for (const place of document.querySelectorAll("[data-command]")) place.replaceWith(command(place.dataset.command));
  put("cover", Lotion.line.cover(data.books));
  if (data.verdicts) lazily("verdict-matrix", () => Lotion.verdicts.matrix(data.verdicts, "Verdicts: formats by claims"));
  if (data.trained) lazily("trained-matrix", () => [Lotion.verdicts.matrix(data.trained, "Verdicts on trained weights"), layers()]);
  lazily("line", () => Lotion.line.section(data.books));
  lazily("plane", () => Lotion.plane.section(data.books));
  if (data.boards.length) lazily("boards", () => Lotion.boards.section(data.boards, data.curves, "boards"));
  if (data.figures.length) lazily("studies", studies);
  if (data.language.boards.length) lazily("language", () => Lotion.boards.section(data.language.boards, data.language.curves, "language"));
  lazily("benchmarks", benchmarks);
  addEventListener("beforeprint", () => Lotion.make());
})();
