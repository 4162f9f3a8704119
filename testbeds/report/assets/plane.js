/* Both weights of a block: a loss as colours, one method's field as arrows, the paths of all methods from a start. */
Lotion.plane = (() => {
  "use strict";
  const { el, slider, select, checkbox } = Lotion.dom;
  const math = Lotion.math;
  const LOSSES = [["smoothed", "smoothed loss"], ["quantized", "quantized loss"], ["float", "float loss"],
    ["penalized", "L + λ·½Σ h Var"]];
  const METHODS = [["ste", "QAT (STE)", "var(--s1)", "6 2"], ["rrste", "RR-STE", "var(--s3)", "2 3"],
    ["detached", "LOTION detached", "var(--s5)", "9 3"], ["attached", "LOTION attached", "var(--s0)", ""]];
  const START = { format: "int2", shown: "smoothed", field: "attached", h1: 2, h2: 1, coupling: 0.4, a: 0.3, b: -0.6,
    lambda: 1, frozen: false, step: 0.3, start1: 1.2, start2: 0.9, rate: 0.05 };
  const STEPS = 300;

  /* Coupling is given over √(h1 h2), so that the Hessian stays positive. */
  function problem(books, state) {
    const off = state.coupling * Math.sqrt(state.h1 * state.h2), book = books[state.format];
    return { book, h: [[state.h1, off], [off, state.h2]], center: [state.a, state.b], frozen: state.frozen,
      top: state.step * book.high, lambda: state.lambda };
  }

  function section(books) {
    const state = { ...START };
    const table = Lotion.table({ caption: "Losses at the end of each path", name: "descent-ends", quiet: true, ...ends() });

    function paths() {
      const p = problem(books, state);
      return METHODS.map(([key, name, color, dash], k) => ({ name, color, dash, marker: k,
        points: math.path(p, key, [state.start1, state.start2], state.rate, STEPS) }));
    }

    function ends() {
      const p = problem(books, state);
      return {
        columns: ["method", "w1", "w2", "float loss", "RTN loss", "RR loss"],
        rows: paths().map((path) => {
          const w = path.points.at(-1), found = math.losses(p, w);
          const cell = (v) => [Lotion.dom.number(v), v];
          return [[path.name, path.name], cell(w[0]), cell(w[1]), cell(found.float), cell(found.quantized), cell(found.smoothed)];
        }),
      };
    }

    function spec() {
      const p = problem(books, state);
      const names = Object.fromEntries([...LOSSES, ...METHODS.map(([key, name]) => [key, name]), ["none", "none"]]);
      return {
        title: "Block of two weights",
        value: (x, y) => math.losses(p, [x, y])[state.shown],
        arrow: state.field === "none" ? null : (x, y) => math.gradients(p, [x, y])[state.field],
        paths: paths(),
        points: [{ name: "optimum", at: p.center }],
        span: [-1.5, 1.5],
        labels: ["weight w₁", "w₂"],
        caption: `Colours: ${names[state.shown]}. Arrows: where ${names[state.field]} leads, their length the square root of its size. Lines: ${STEPS} steps of plain descent from the start. The plus sign is the float optimum. The page opens with settings for which the methods end apart; that is an example, not a comparison.`,
        command: `lotion landscape ${state.format} --dimension 2`,
      };
    }

    const figure = Lotion.heat(spec());
    let waiting = false;
    function update() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        figure.update(spec());
        figure.querySelector("code").textContent = `lotion landscape ${state.format} --dimension 2`;
        table.update({ caption: "Losses at the end of each path", name: "descent-ends", quiet: true, ...ends() });
        step.enable(state.frozen);
      });
    }

    const set = (key) => (value) => { state[key] = value; update(); };
    const bar = (label, key, min, max, by) => slider(label, { name: key, min, max, step: by, value: state[key] }, set(key));
    const step = bar("Frozen step", "step", 0.05, 1, 0.01);
    const controls = el("div", { class: "controls", role: "group", "aria-label": "Settings of the two-dimensional landscape" },
      select("Format", Object.keys(books).map((k) => [k, k]), state.format, set("format"), "format2"),
      select("Colours", LOSSES, state.shown, set("shown"), "shown"),
      select("Arrows", [...METHODS.map(([key, name]) => [key, name]), ["none", "none"]], state.field, set("field"), "field"),
      bar("Weight λ", "lambda", 0, 4, 0.05), bar("Curvature h₁", "h1", 0.1, 5, 0.1), bar("Curvature h₂", "h2", 0.1, 5, 0.1),
      bar("Coupling", "coupling", -0.95, 0.95, 0.05), bar("Optimum w₁*", "a", -1.4, 1.4, 0.01), bar("Optimum w₂*", "b", -1.4, 1.4, 0.01),
      bar("Start w₁", "start1", -1.4, 1.4, 0.01), bar("Start w₂", "start2", -1.4, 1.4, 0.01), bar("Learning rate", "rate", 0.005, 0.5, 0.005),
      checkbox("freeze the scale", state.frozen, set("frozen"), "frozen2"), step);
    step.enable(false);
    return el("div", { class: "landscape" }, controls, el("div", { class: "pair" }, figure, table));
  }

  return { section, problem };
})();

Lotion.draw.plane = (data) => Lotion.plane.section(data.books);
