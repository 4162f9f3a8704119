/* The matrix of formats by claims: cells are buttons, arrow keys move among them, Enter opens the rows behind one. */
Lotion.verdicts = (() => {
  "use strict";
  const { el, number, search, checkbox, command } = Lotion.dom;
  const LETTER = { proved: "P", exhaustive: "E", property: "T" };
  const WORDS = { proved: "proved", exhaustive: "exhaustive and exact on small blocks", property: "tested on random and directed blocks" };

  function records(data) {
    return data.rows.map(([format, claim, ...rest]) => {
      const out = { format: data.formats[format], claim: data.claims[claim].id };
      data.fields.forEach((name, k) => { out[name] = data.texts_in.includes(name) ? data.texts[rest[k]] : rest[k]; });
      return out;
    });
  }

  const failed = (rows) => rows.some((r) => r.verdict === "fails");
  const surprising = (rows) => rows.some((r) => r.expected !== "open" && r.expected !== r.verdict);

  function matrix(data, name) {
    const all = records(data), cells = new Map();
    for (const row of all) {
      const key = `${row.format}\n${row.claim}`;
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(row);
    }
    const dialog = makeDialog(data);
    const body = el("tbody"), count = el("p", { class: "count", role: "status", "aria-live": "polite" });
    const table = el("table", { class: "matrix", role: "grid", "aria-label": name },
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "format" }),
        ...data.claims.map((c) => el("th", { scope: "col", title: `${c.title}: ${c.statement}`, text: c.id })))), body);
    let text = "", broken = false;

    function cellButton(format, claim, rows) {
      const bad = failed(rows), odd = surprising(rows);
      const evidence = [...new Set(rows.map((r) => r.evidence))];
      return el("button", {
        type: "button", tabindex: "-1", class: `cell ${bad ? "fails" : "holds"}${odd ? " odd" : ""}`,
        "aria-label": `${format}, ${claim.id} ${claim.title}: ${bad ? "fails" : "holds"}${odd ? ", against expectation" : ""}; ${evidence.join(", ")}`,
        text: `${bad ? "✕" : ""}${evidence.map((e) => LETTER[e]).join("")}${odd ? "!" : ""}`,
        onclick: () => dialog.open(format, claim, rows),
      });
    }

    function fill() {
      const formats = data.formats.filter((f) => f.toLowerCase().includes(text)
        && (!broken || data.claims.some((c) => failed(cells.get(`${f}\n${c.id}`) || []))));
      body.replaceChildren(...formats.map((f) => el("tr", {}, el("th", { scope: "row", text: f === data.any ? "no format involved" : f }),
        ...data.claims.map((c) => {
          const rows = cells.get(`${f}\n${c.id}`);
          return el("td", { role: "gridcell" }, rows ? cellButton(f, c, rows) : null);
        }))));
      count.textContent = `${formats.length} of ${data.formats.length} formats`;
      body.querySelector("button")?.setAttribute("tabindex", "0");
    }

    table.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step || !event.target.matches(".cell")) return;
      event.preventDefault();
      let row = event.target.closest("tr"), at = event.target.closest("td").cellIndex;
      for (;;) {
        if (step[0]) row = step[0] > 0 ? row.nextElementSibling : row.previousElementSibling;
        at += step[1];
        const next = row?.cells[at];
        if (!next || at < 1) return;
        const button = next.querySelector("button");
        if (button) {
          body.querySelector('button[tabindex="0"]')?.setAttribute("tabindex", "-1");
          button.setAttribute("tabindex", "0");
          button.focus();
          return;
        }
      }
    });

    const meanings = el("details", {}, el("summary", { text: "What the claims say" }), el("dl", { class: "facts" },
      ...data.claims.flatMap((c) => [el("dt", { text: c.id }), el("dd", { text: `${c.title}: ${c.statement}` })])));

    fill();
    return el("div", { class: "verdicts" },
      el("div", { class: "controls" }, search("Formats that contain", (v) => { text = v; fill(); }, "format"),
        checkbox("with a failure only", false, (v) => { broken = v; fill(); }, "broken")),
      el("ul", { class: "key" },
        el("li", {}, el("span", { class: "cell holds", text: "P" }), " holds"),
        el("li", {}, el("span", { class: "cell fails", text: "✕E" }), " fails: a counterexample is stored"),
        el("li", {}, el("span", { class: "cell fails odd", text: "!" }), " against what the theory predicts"),
        el("li", { text: "P proved · E exhaustive · T property-tested" })),
      count, el("div", { class: "scroll tall" }, table), meanings, dialog.node,
      Lotion.export.buttons(null, Lotion.export.stem(name), () => Lotion.export.table(all)));
  }

  function makeDialog(data) {
    const content = el("div"), title = el("h3", { id: Lotion.dom.id("dialog") });
    const node = el("dialog", { "aria-labelledby": title.id },
      el("form", { method: "dialog" }, el("button", { class: "close", "aria-label": "Close", text: "✕" })), title, content);
    node.addEventListener("click", (event) => { if (event.target === node) node.close(); });

    function open(format, claim, rows) {
      const bad = failed(rows);
      title.textContent = `${claim.id} ${claim.title}: ${bad ? "fails" : "holds"} on ${format === data.any ? "no format" : format}`;
      const named = format === data.any ? data.command.replace(" --formats {format}", "") : data.command.replace("{format}", format);
      content.replaceChildren(
        el("p", { class: "statement", text: claim.statement }),
        ...rows.map((r) => el("section", { class: "evidence" },
          el("h4", { text: `${r.check} (${WORDS[r.evidence]})` }),
          el("dl", {},
            ...pair("verdict", `${r.verdict}; theory: ${r.expected === "open" ? "makes no promise" : r.expected}${r.expected !== "open" && r.expected !== r.verdict ? " (against expectation)" : ""}`),
            ...pair("measured", number(r.measured, 10)),
            ...pair(r.kind === "bound" ? "at most" : "theoretical", number(r.theoretical, 10)),
            ...pair("tolerance", number(r.tolerance)),
            ...pair("cases", r.checked.toLocaleString("en")),
            ...pair("counterexample", r.counterexample || "none found"),
            ...(r.note ? pair("note", r.note) : [])))),
        el("p", { text: "Reproduce:" }), command(named.replace("{claim}", claim.id)));
      node.showModal();
    }

    const pair = (name, value) => [el("dt", { text: name }), el("dd", { text: value })];
    return { node, open };
  }

  return { matrix, records };
})();

Lotion.draw["verdict-matrix"] = ({ verdicts }) => verdicts && Lotion.verdicts.matrix(verdicts, "Verdicts: formats by claims");
Lotion.draw["trained-matrix"] = ({ trained, layers }) => {
  if (!trained) return null;
  const text = (v) => (v === null ? ["", null] : [Lotion.dom.number(v, 3), v]);
  return [Lotion.verdicts.matrix(trained, "Verdicts on trained weights"), layers.length && Lotion.table({
    caption: "Reconstruction loss over the layer's output power, geometric means over layers; last: noise of randomized rounding over that of round-to-nearest", name: "trained-layers",
    columns: ["format", "RTN", "RR", "conditional expectation", "noise ratio RR / RTN"],
    rows: layers.map(([format, ...rest]) => [[format, format], ...rest.map(text)]),
  })];
};
