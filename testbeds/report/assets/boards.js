/* Leaderboards: choose an experiment, format and phase, filter methods, sort, draw. */
Lotion.boards = (() => {
  "use strict";
  const { el, select, search, command } = Lotion.dom;
  const LOSSES = [["rtn_loss", "RTN", "var(--s0)", 0], ["rr_loss", "RR", "var(--s3)", 1], ["float_loss", "float", "var(--s7)", 2]];
  const ALL = "all";

  const ours = (method) => String(method || "").startsWith("lotion");
  const unique = (values) => [...new Set(values)];

  /* RTN, RR and float loss side by side on one scale. */
  function curveCharts(found, board) {
    const names = { rtn: "RTN", rr: "RR", float: "float" }, shown = Object.keys(found.methods[0].losses);
    const values = (loss, at) => found.methods.flatMap((m) => m.losses[loss].filter((v) => v && v[at] > 0).map((v) => v[at] ?? v[0]));
    const rounded = shown.includes("rtn") ? values("rtn", 0) : values(shown[0], 0);
    const ends = [Math.min(...rounded) / 10, Math.max(...shown.flatMap((k) => values(k, 0))) * 1.2];
    const lowest = Math.min(...shown.flatMap((k) => values(k, 0)));
    const seeds = unique(found.methods.map((m) => m.seeds)).join(" or ");
    const words = `Geometric means over ${seeds} seed${seeds === "1" ? "" : "s"}${seeds === "1" ? "" : "; bands are 95 % intervals for comparing methods"}.`
      + (found.left_out ? ` ${found.left_out} methods with a higher RTN loss are left out.` : "");
    return shown.map((loss) => Lotion.chart({
      title: `${names[loss]} loss during training`, csv: `curves-${found.experiment}-${found.format}-${loss}`,
      x: { label: "step", log: true }, height: 320,
      y: { label: found.floored ? "loss above the smallest possible" : "loss", log: true, ends: [Math.max(ends[0], lowest / 1.2), ends[1]] },
      series: found.methods.map((m) => ({ name: m.method, band: true,
        points: m.steps.map((s, k) => (m.losses[loss][k] ? [s, ...m.losses[loss][k]] : [s, null])) })),
      caption: `${found.problem}, ${found.format}. ${words}`, command: board ? board.command : null,
    }));
  }

  function losses(lines, board, place) {
    return Lotion.dots({
      title: `Losses at the end: ${place}`, csv: `losses-${board.name}`,
      x: { label: "loss, mean and 95 % interval", log: true, decades: 3 },
      series: LOSSES.map(([key, name, color, marker]) => ({ name, color, marker, points: lines.filter((l) => l[key] > 0).map((l) =>
        [l.method, l[key], ...(l[`${key}_low`] === undefined ? [] : [l[`${key}_low`], l[`${key}_high`]])]) })),
      caption: "Three losses together: weights rounded to nearest (RTN), randomly rounded (RR), and not rounded (float). Lower is better. A triangle at the edge: smaller than a thousandth of the best RTN loss.",
      command: board.command,
    });
  }

  /* boards: experiments with lines; curves: training curves of them; name tells several sections apart. */
  function section(boards, curves, name) {
    const state = { board: boards[0], format: ALL, problem: ALL, phase: ALL, text: "" };
    const about = el("div", { class: "about" }), drawn = el("div"), curved = el("div", { class: "triple" });
    const filters = el("div", { class: "controls" });
    const field = (key) => unique(state.board.lines.map((l) => l[key]).filter((v) => v !== undefined));
    const kept = () => state.board.lines.filter((l) => ["format", "problem", "phase"].every((k) => state[k] === ALL || l[k] === state[k])
      && String(l.method || l.problem).toLowerCase().includes(state.text));
    const table = Lotion.table(spec());

    function spec() {
      const lines = kept(), extra = ["problem", "format", "phase"].filter((k) => field(k).length > 1 && state[k] === ALL);
      const skip = state.board.columns.map(([heading], k) => lines.every((l) => l.cells[k] === "") || (heading === "problem" && extra.includes("problem")));
      const columns = state.board.columns.filter((_, k) => !skip[k]);
      return {
        caption: `${state.board.title}`, name: `leaderboard-${state.board.name}`,
        columns: [...columns.map(([heading]) => heading), ...extra],
        rows: lines.map((l) => [
          ...state.board.columns.map(([, key], k) => [l.cells[k], l[key] ?? (l.cells[k] || null)]).filter((_, k) => !skip[k]),
          ...extra.map((k) => [l[k] || "", l[k] || ""])]),
        records: () => lines,
        mark: (cells) => ours(cells[0][0]),
      };
    }

    function update() {
      table.update(spec());
      const lines = kept(), board = state.board;
      drawn.replaceChildren();
      curved.replaceChildren();
      const single = ["problem", "format", "phase"].every((k) => unique(lines.map((l) => l[k])).length < 2);
      if (board.curve && single && lines.length) {
        drawn.append(losses(lines, board, `${lines[0].problem}, ${lines[0].format}`));
        const found = curves.find((c) => c.experiment === board.name && c.format === lines[0].format && c.problem === lines[0].problem);
        if (found) curved.append(...curveCharts(found, board));
      } else if (board.curve && lines.length) {
        drawn.append(el("p", { class: "hint", text: "Choose one problem, format and comparison to see losses and curves drawn." }));
      }
    }

    function choose(experiment) {
      state.board = boards.find((b) => b.name === experiment);
      const firstOf = (key) => { const found = field(key); return found.length > 1 ? found[0] : ALL; };
      const train = state.board.curve;
      Object.assign(state, { format: train ? firstOf("format") : ALL, problem: train ? firstOf("problem") : ALL, phase: train ? firstOf("phase") : ALL });
      const words = { final: "equal steps", equal_time: "equal time" };
      const choice = (label, key) => field(key).length > 1 && select(label, [[ALL, "all"], ...field(key).map((v) => [v, words[v] || v])], state[key],
        (v) => { state[key] = v; update(); }, `${name}-${key}`);
      filters.replaceChildren(...[choice("Problem", "problem"), choice("Format", "format"), choice("Comparison", "phase")].filter(Boolean));
      const b = state.board;
      about.replaceChildren(
        el("p", { text: `${b.rows.toLocaleString("en")} runs (${b.words || b.kind}), ${b.dates.join(" to ") || "no date"}; ${b.machines.join("; ")}. ${b.legend}` }),
        ...b.cautions.map((text) => el("p", { class: "caution", text: `Caution: ${text}` })), command(b.command), command(b.print));
      update();
    }

    const chooser = select("Experiment", boards.map((b) => [b.name, `${b.name} (${b.words || b.kind})`]), state.board.name, choose, `${name}-experiment`);
    const controls = el("div", { class: "controls" }, chooser, search("Methods that contain", (v) => { state.text = v; update(); }, `${name}-text`));
    choose(state.board.name);
    return el("div", { class: "boards" }, controls, filters, table, about, drawn, curved);
  }

  return { section };
})();

Lotion.draw.boards = (data) => data.boards.length && Lotion.boards.section(data.boards, data.curves, "boards");
Lotion.draw.language = ({ language }) => language.boards.length && Lotion.boards.section(language.boards, language.curves, "language");
