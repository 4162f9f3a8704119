/* Stored benchmarks: a fold with tables for each file. */
Lotion.draw.benchmarks = (data) => {
  "use strict";
  const { el, command } = Lotion.dom;
  return data.benchmarks.map((b) => el("details", { open: true }, el("summary", { text: b.name.replaceAll("_", " ") }),
    el("p", { text: b.about }), ...b.tables.map((t) => Lotion.table({
      caption: `${b.name.replaceAll("_", " ")}: ${t.title}${t.left_out ? ` (${t.left_out} further rows left out)` : ""}`, name: `${b.name}-${t.title}`, columns: t.columns, rows: t.rows })),
    command(b.command)));
};
