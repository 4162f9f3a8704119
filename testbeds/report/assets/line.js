/* One weight of a block of two: losses and gradients along it, computed as the sliders move. */
Lotion.line = (() => {
  "use strict";
  const { el, slider, select, checkbox, number } = Lotion.dom;
  const math = Lotion.math;
  const POINTS = 601;
  const LOSSES = [["float", "float L(w)", "var(--s7)", "2 3"], ["quantized", "quantized L(RTN(w))", "var(--ink)", ""],
    ["smoothed", "smoothed E[L(RR(w))]", "var(--s0)", ""], ["penalized", "L + λ·½Σ h Var", "var(--s3)", "7 4"]];
  const GRADIENTS = [["ste", "QAT: ∇L(RTN(w))", "var(--s1)", "6 2"], ["rrste", "RR-STE: E ∇L(RR(w))", "var(--s3)", "2 3"],
    ["detached", "LOTION detached", "var(--s5)", "9 3"], ["attached", "LOTION attached", "var(--s0)", ""]];

  /* The problem of a state: {format, h, optimum, partner, partner_h, lambda, frozen, step}. */
  function problem(books, state) {
    const book = books[state.format];
    return {
      book, h: [[state.h, 0], [0, state.partner_h]], center: [state.optimum, state.partner],
      frozen: state.frozen, top: state.step * book.high, lambda: state.lambda,
    };
  }

  /* Places along the slice; the sides of every level and of the lattice's own kinks are added, so that jumps stand upright. */
  function places(p, state, low, high) {
    const out = [];
    for (let k = 0; k < POINTS; k++) out.push(low + (high - low) * k / (POINTS - 1));
    const edge = Math.abs(state.partner), tops = p.frozen ? [p.top] : [edge];
    const tiny = (high - low) * 1e-7;
    for (const top of tops) for (let k = 0; k < p.book.units.length; k++) {
      const level = top * p.book.units[k], next = k + 1 < p.book.units.length ? top * p.book.units[k + 1] : level;
      for (const v of [level, (level + next) / 2]) out.push(v - tiny, v + tiny);
    }
    return out.filter((v) => v >= low && v <= high).sort((a, b) => a - b);
  }

  function series(p, state, low, high) {
    const at = places(p, state, low, high);
    const losses = at.map((w) => math.losses(p, [w, state.partner]));
    const slopes = at.map((w) => math.gradients(p, [w, state.partner]));
    return {
      losses: LOSSES.map(([key, name, color, dash]) => ({ name, color, dash, points: at.map((w, k) => [w, losses[k][key]]) })),
      slopes: GRADIENTS.map(([key, name, color, dash]) => ({ name, color, dash, points: at.map((w, k) => [w, slopes[k][key][0]]) })),
    };
  }

  /* Ends of the loss axis: what is near the optimum, where the losses differ. */
  function ends(found, optimum) {
    const near = found.losses.flatMap((s) => s.points.filter(([w]) => Math.abs(w - optimum) <= 1).map(([, v]) => v));
    const least = Math.min(...near), most = Math.max(...near), margin = (most - least || 1) * 0.06;
    return [least - margin, most + margin];
  }

  const START = { format: "int2", h: 2, optimum: 0.38, partner: 1, partner_h: 0.6, lambda: 1, frozen: false, step: 0.3 };

  /* The figure at the head of the page: fixed settings, losses only. */
  function cover(books) {
    const found = series(problem(books, START), START, -1.4, 1.4);
    return Lotion.chart({
      title: "One weight of a block: what rounding does to the loss, and what smoothing makes of it", csv: "cover",
      x: { label: "weight w", ends: [-1.2, 1.4] }, y: { label: "loss", ends: ends(found, START.optimum) },
      series: found.losses.slice(0, 3),
      caption: "INT2 (levels -1, 0, 1 times the scale), computed in this page. The quantized loss is flat between its jumps, so it has no gradient to follow; the smoothed loss is continuous, and meets it at the lattice points. Beyond ±1 this weight sets the scale itself and its partner is rounded.",
      command: "lotion landscape int2 --dimension 1",
    });
  }

  function section(books) {
    const state = { ...START };
    const span = 1.5;
    const spec = (drawn) => {
      const found = series(problem(books, state), state, -span, span);
      return {
        x: { label: "weight w", ends: [-span, span] },
        y: drawn === "losses" ? { label: "loss", ends: ends(found, state.optimum) } : { label: "derivative in w" },
        series: found[drawn], csv: `landscape-1d-${drawn}`,
        title: drawn === "losses" ? "Losses" : "What each method follows",
        caption: drawn === "losses" ? "Losses along w; the axis shows what lies within 1 of the optimum. At λ = 1 and without clipping the dashed line is the smoothed loss exactly, as the loss is quadratic." : "The derivative in w that each method follows downhill. RR-STE is the float gradient on a quadratic: no smoothing signal at all. Attached: the gradient also goes through the moving scale; detached: the scale is held constant. They differ where w sets the scale.",
        command: "lotion landscape " + state.format + " --dimension 1",
        height: 330,
      };
    };
    const losses = Lotion.chart(spec("losses")), slopes = Lotion.chart(spec("slopes"));
    const facts = el("p", { class: "reading", role: "status", "aria-live": "polite" });
    const boxes = {};

    function update() {
      losses.update(spec("losses"));
      slopes.update(spec("slopes"));
      for (const figure of [losses, slopes]) figure.querySelector("code").textContent = `lotion landscape ${state.format} --dimension 1`;
      boxes.step.enable(state.frozen);
      boxes.bits.enable(/^int\d$/.test(state.format));
      const book = books[state.format];
      facts.textContent = `${state.format}: ${book.summary}; ${book.units.length} levels. ` + (state.frozen
        ? `Frozen lattice: top level ${number(state.step * book.high, 3)}; weights beyond it are clipped, so rounding is biased there.`
        : `Moving lattice: top level max(|w|, |partner|); once |w| exceeds |partner| = ${number(Math.abs(state.partner), 3)}, w is on its own lattice and the partner is rounded on it.`);
    }

    const set = (key) => (value) => { state[key] = value; update(); };
    const formats = select("Format", Object.keys(books).map((k) => [k, k]), state.format, (v) => {
      state.format = v;
      if (/^int\d$/.test(v)) boxes.bits.set(Number(v.slice(3)));
      update();
    }, "format");
    boxes.bits = slider("Bits (integers)", { name: "bits", min: 2, max: 8, step: 1, value: 2 }, (v) => {
      state.format = `int${v}`;
      formats.input.value = state.format;
      update();
    });
    boxes.step = slider("Frozen step", { name: "step", min: 0.05, max: 1, step: 0.01, value: state.step }, set("step"));
    const controls = el("div", { class: "controls", role: "group", "aria-label": "Settings of the one-dimensional landscape" },
      formats, boxes.bits,
      slider("Weight λ", { name: "lambda", min: 0, max: 4, step: 0.05, value: state.lambda }, set("lambda")),
      slider("Curvature h", { name: "h", min: 0.1, max: 5, step: 0.1, value: state.h }, set("h")),
      slider("Optimum w*", { name: "optimum", min: -1.5, max: 1.5, step: 0.01, value: state.optimum }, set("optimum")),
      slider("Partner weight", { name: "partner", min: 0.05, max: 1.8, step: 0.01, value: state.partner }, set("partner")),
      slider("Partner's curvature", { name: "partner_h", min: 0, max: 5, step: 0.1, value: state.partner_h }, set("partner_h")),
      checkbox("freeze the scale", state.frozen, set("frozen"), "frozen"), boxes.step);
    update();
    return el("div", { class: "landscape" }, controls, facts, el("div", { class: "pair" }, losses, slopes));
  }

  return { section, cover, problem, series };
})();

Lotion.draw.line = (data) => Lotion.line.section(data.books);
