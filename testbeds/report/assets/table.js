/* A table whose headings sort it, by click or keyboard, in a box that scrolls sideways. */
Lotion.table = (() => {
  "use strict";
  const { el } = Lotion.dom;

  /* spec: {caption, columns: [heading...], rows: [[[text, key]...]...], name, records, mark}; `records` is what the CSV
   * holds. Keys sort: numbers before texts, missing ones last. */
  function table(spec) {
    const body = el("tbody"), head = el("tr");
    const count = el("p", { class: "count", role: "status", "aria-live": "polite" });
    let order = null, down = false;

    const texts = () => spec.columns.map((_, k) => !spec.rows.some((cells) => typeof cells[k][1] === "number"));

    function compare(a, b) {
      const x = a[order][1], y = b[order][1];
      const missing = (v) => v === null || v === undefined || v === "";
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      const sign = down ? -1 : 1;
      return typeof x === "number" && typeof y === "number" ? sign * (x - y)
        : sign * String(x).localeCompare(String(y), "en", { numeric: true });
    }

    function fill() {
      const rows = order === null ? spec.rows : spec.rows.slice().sort(compare);
      const left = texts();
      body.replaceChildren(...rows.map((cells) => el("tr", { class: spec.mark?.(cells) ? "ours" : null },
        ...cells.map(([text], k) => el(k ? "td" : "th", { scope: k ? null : "row", class: left[k] ? "text" : null, text })))));
      count.textContent = spec.quiet ? "" : `${rows.length} rows`;
    }

    function headings() {
      const left = texts();
      head.replaceChildren(...spec.columns.map((heading, k) => el("th", {
        scope: "col", class: left[k] ? "text" : null, "aria-sort": order === k ? (down ? "descending" : "ascending") : "none",
      }, el("button", { type: "button", text: heading, onclick: () => {
        down = order === k ? !down : false;
        order = k;
        headings();
        fill();
        head.children[k].firstChild.focus();
      } }))));
    }

    const box = el("div", { class: "tablebox" }, count,
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": spec.caption },
        el("table", {}, el("caption", {}, el("span", { text: spec.caption })), el("thead", {}, head), body)),
      Lotion.export.buttons(null, Lotion.export.stem(spec.name), () => spec.records ? Lotion.export.table(spec.records())
        : [spec.columns, ...spec.rows.map((r) => r.map(([text]) => text))]));
    box.update = (next) => {
      const same = next.columns.join() === spec.columns.join();
      spec = next;
      if (!same) { order = null; down = false; }
      box.querySelector("caption span").textContent = spec.caption;
      box.querySelector(".scroll").setAttribute("aria-label", spec.caption);
      headings();
      fill();
    };
    headings();
    fill();
    return box;
  }

  return table;
})();
