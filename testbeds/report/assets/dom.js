/* Elements, colours and small controls that every section uses. */
Lotion.dom = (() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "text") node.textContent = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children || []) if (child) node.append(child);
    return node;
  }

  const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
  const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

  let serial = 0;
  const id = (stem) => `${stem}-${++serial}`;

  /* A number to a few digits, as the tables write them. */
  function number(value, digits = 4) {
    if (value === null || value === undefined) return "";
    if (typeof value !== "number") return String(value);
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-4 || size >= 1e6) return value.toExponential(digits - 1).replace(/\.?0*e\+?/, "e");
    return String(Number(value.toPrecision(digits)));
  }

  /* Eight series told apart by colour, marker and dash. */
  const look = (k) => ({ color: `var(--s${k % 8})`, marker: k % 8, dash: k >= 8 ? "5 3" : "" });

  function marker(shape, x, y, r, attributes) {
    const d = [
      `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`, `M${-r} ${-r}H${r}V${r}H${-r}Z`,
      `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0Z`, `M0 ${-1.3 * r}L${1.2 * r} ${r}H${-1.2 * r}Z`,
      `M0 ${1.3 * r}L${1.2 * r} ${-r}H${-1.2 * r}Z`, `M${-r} ${-r}L${r} ${r}M${-r} ${r}L${r} ${-r}`,
      `M0 ${-1.3 * r}V${1.3 * r}M${-1.3 * r} 0H${1.3 * r}`, `M${-1.3 * r} 0L${r} ${1.2 * r}V${-1.2 * r}Z`,
    ][shape % 8];
    return svg("path", { d, transform: `translate(${x.toFixed(2)} ${y.toFixed(2)})`, ...attributes });
  }

  /* A labelled control; `change` is called with its value whenever it changes. */
  function slider(label, options, change) {
    const name = id("slider");
    const out = el("output", { for: name, text: (options.show || number)(options.value) });
    const input = el("input", {
      id: name, type: "range", min: options.min, max: options.max, step: options.step, value: options.value,
      "data-name": options.name,
    });
    input.addEventListener("input", () => {
      out.textContent = (options.show || number)(Number(input.value));
      change(Number(input.value));
    });
    const box = el("div", { class: "control" }, el("label", { for: name, text: label }), input, out);
    box.set = (value) => { input.value = value; out.textContent = (options.show || number)(Number(input.value)); };
    box.enable = (on) => { input.disabled = !on; box.classList.toggle("off", !on); };
    return box;
  }

  function select(label, options, value, change, name) {
    const key = id("select");
    const input = el("select", { id: key, "data-name": name });
    for (const [code, text] of options) input.append(el("option", { value: code, text, selected: code === value }));
    input.addEventListener("change", () => change(input.value));
    const box = el("div", { class: "control" }, el("label", { for: key, text: label }), input);
    box.input = input;
    return box;
  }

  function checkbox(label, value, change, name) {
    const key = id("check");
    const input = el("input", { id: key, type: "checkbox", "data-name": name });
    input.checked = value;
    input.addEventListener("change", () => change(input.checked));
    return el("div", { class: "control tick" }, input, el("label", { for: key, text: label }));
  }

  function search(label, change, name) {
    const key = id("search");
    const input = el("input", { id: key, type: "search", "data-name": name, autocomplete: "off" });
    input.addEventListener("input", () => change(input.value.trim().toLowerCase()));
    return el("div", { class: "control" }, el("label", { for: key, text: label }), input);
  }

  /* The command that makes what stands above it, with a button that copies it. */
  function command(text) {
    const button = el("button", { type: "button", class: "copy", text: "Copy", "aria-label": `Copy the command ${text}` });
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
      catch { button.textContent = "Select it and copy"; }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    return el("div", { class: "command" }, el("code", { text, tabindex: "0" }), button);
  }

  /* Call `draw` with the width a drawing has on the page, now and whenever that changes: type keeps its size on a phone. */
  function fitted(drawing, least, most, draw) {
    let width = 0;
    const fit = () => {
      const next = Math.round(Math.min(Math.max(drawing.clientWidth || most, least), most));
      if (next !== width) { width = next; draw(width); }
    };
    fit();
    new ResizeObserver(fit).observe(drawing);
    return () => draw(width);
  }

  return { fitted, el, svg, id, number, look, marker, slider, select, checkbox, search, command };
})();
