/* A line chart: lines or marks, intervals as bands or bars, a cursor for mouse and arrow keys, a legend of switches. */
Lotion.chart = (() => {
  "use strict";
  const { el, svg, number, look, marker, command, fitted } = Lotion.dom;
  const { scale, range, bottom, side } = Lotion.scales;
  const SIZE = { height: 340, left: 62, right: 12, top: 26, bottom: 44 };

  /* spec: {title, caption, command, x, y: {label, log, rule, ends}, series: [{name, points: [[x, y, low, high]], dash,
   * color, marks, band, hidden}], marks: [x...], csv, height}. Returns the figure; `update(spec)` draws it anew. */
  function chart(spec) {
    const hidden = new Set(spec.series.filter((s) => s.hidden).map((s) => s.name));
    const drawing = svg("svg", { class: "plot", role: "img", tabindex: "0", "aria-label": "" });
    const legend = el("div", { class: "legend", role: "group", "aria-label": "Series shown" });
    const reading = el("p", { class: "reading", role: "status", "aria-live": "polite" });
    const caption = el("figcaption", { text: spec.caption || "" });
    const figure = el("figure", { class: "chart" },
      spec.title && el("h4", { text: spec.title }), drawing, legend, reading, caption,
      spec.command && command(spec.command),
      Lotion.export.buttons(() => drawing, Lotion.export.stem(spec.csv || spec.title || "figure"), rows));
    let places = [], frame = null, at = -1;

    function rows() {
      const out = [["series", spec.x.label, spec.y.label, "low", "high"]];
      for (const s of spec.series) for (const p of s.points) out.push([s.name, ...p]);
      return out;
    }

    const shown = () => spec.series.map((s, k) => ({ ...look(k), marks: false, ...s })).filter((s) => !hidden.has(s.name));

    function draw(width) {
      const size = { ...SIZE, width, height: spec.height || SIZE.height };
      const series = shown(), all = series.flatMap((s) => s.points);
      const floor = size.height - size.bottom;
      const [x0, x1] = spec.x.ends || range(all.map((p) => p[0]), spec.x.log, 0.02);
      const ys = all.flatMap((p) => p.slice(1)).concat(spec.y.rule ? [spec.y.rule] : []);
      const [y0, y1] = spec.y.ends || range(ys, spec.y.log);
      const x = scale(x0, x1, size.left, size.width - size.right, spec.x.log);
      const y = scale(y0, y1, floor, size.top, spec.y.log);
      const good = (p) => p[1] !== null && (!spec.x.log || p[0] > 0) && (!spec.y.log || p[1] > 0);
      frame = { size, x, y, floor };
      drawing.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
      drawing.setAttribute("aria-label", `${spec.title || spec.csv}: ${spec.y.label} against ${spec.x.label}. Arrow keys read values.`);
      const clip = Lotion.dom.id("clip");
      const inner = svg("g", { "clip-path": `url(#${clip})` });
      drawing.replaceChildren(
        svg("defs", {}, svg("clipPath", { id: clip }, svg("rect", { x: size.left, y: size.top - 4,
          width: size.width - size.left - size.right, height: floor - size.top + 8 }))),
        bottom(x, floor, floor - size.top, spec.x.label, size.left, size.width - size.right),
        side(y, size.left, size.width - size.right, spec.y.label, size.top), inner);
      for (const v of spec.marks || []) inner.append(svg("line", { x1: x.at(v), x2: x.at(v), y1: size.top, y2: floor, class: "mark" }));
      if (spec.y.rule) inner.append(svg("line", { x1: size.left, x2: size.width, y1: y.at(spec.y.rule), y2: y.at(spec.y.rule), class: "rule" }));
      for (const s of series) {
        const points = s.points.filter(good);
        const ends = points.filter((p) => p.length > 3 && p[2] !== null);
        const hold = (v) => Math.min(Math.max(y.at(spec.y.log ? Math.max(v, y0 / 10) : v), -size.height), 2 * size.height);
        if (s.band && ends.length > 1) {
          const edge = ends.map((p) => `${x.at(p[0]).toFixed(2)},${hold(p[3]).toFixed(2)}`)
            .concat(ends.slice().reverse().map((p) => `${x.at(p[0]).toFixed(2)},${hold(p[2]).toFixed(2)}`));
          inner.append(svg("polygon", { points: edge.join(" "), style: `fill:${s.color}`, class: "band" }));
        } else {
          for (const p of ends) inner.append(svg("line", { x1: x.at(p[0]), x2: x.at(p[0]), y1: hold(p[2]), y2: hold(p[3]),
            style: `stroke:${s.color}`, class: "bar" }));
        }
        inner.append(svg("polyline", { points: points.map((p) => `${x.at(p[0]).toFixed(2)},${hold(p[1]).toFixed(2)}`).join(" "),
          style: `stroke:${s.color};stroke-width:${s.width || 2}${s.dash ? `;stroke-dasharray:${s.dash}` : ""}`, class: "line" }));
        if (s.marks) for (const p of points) inner.append(marker(s.marker, x.at(p[0]), y.at(p[1]), 3.4, {
          style: `fill:${s.marker > 4 && s.marker < 7 ? "none" : s.color};stroke:${s.color}` }));
      }
      places = [...new Set(all.filter(good).map((p) => p[0]))].sort((a, b) => a - b);
    }

    function read(k) {
      drawing.querySelector("[data-cursor]")?.remove();
      if (k < 0 || !places.length) return;
      at = Math.min(Math.max(k, 0), places.length - 1);
      const v = places[at], place = frame.x.at(v);
      drawing.append(svg("line", { "data-cursor": true, x1: place, x2: place, y1: frame.size.top, y2: frame.floor, class: "cursor" }));
      const told = shown().map((s) => [s.name, s.points.find((p) => p[0] === v)]).filter(([, p]) => p && p[1] !== null)
        .map(([name, p]) => `${name} ${number(p[1])}${p.length > 3 ? ` [${number(p[2])}, ${number(p[3])}]` : ""}`);
      reading.textContent = `${spec.x.label} ${number(v)}: ${told.join("; ")}`;
    }

    function legends() {
      legend.replaceChildren(...spec.series.map((s, k) => {
        const style = { ...look(k), ...s };
        const sample = svg("svg", { viewBox: "0 0 30 12", class: "sample", "aria-hidden": "true" },
          svg("line", { x1: 1, x2: 29, y1: 6, y2: 6, style: `stroke:${style.color};stroke-width:2.4${style.dash ? `;stroke-dasharray:${style.dash}` : ""}` }),
          s.marks && marker(style.marker, 15, 6, 3.4, { style: `fill:${style.color};stroke:${style.color}` }));
        return el("button", { type: "button", "aria-pressed": String(!hidden.has(s.name)), onclick: (event) => {
          if (!hidden.delete(s.name)) hidden.add(s.name);
          event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(s.name)));
          redraw();
        } }, sample, el("span", { text: s.name }));
      }));
    }

    drawing.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1, PageUp: 10, PageDown: -10 }[event.key];
      if (!move) return;
      event.preventDefault();
      read(at < 0 ? (move > 0 ? 0 : places.length - 1) : at + move);
    });
    drawing.addEventListener("pointermove", (event) => {
      const box = drawing.getBoundingClientRect(), px = (event.clientX - box.left) / box.width * frame.size.width;
      let best = -1;
      places.forEach((v, k) => { if (best < 0 || Math.abs(frame.x.at(v) - px) < Math.abs(frame.x.at(places[best]) - px)) best = k; });
      read(best);
    });

    figure.update = (next) => { spec = next; at = -1; redraw(); if (figure.dataset.legend !== names()) legends(); figure.dataset.legend = names(); };
    const names = () => spec.series.map((s) => s.name).join("|");
    const redraw = fitted(drawing, 290, 720, draw);
    legends();
    figure.dataset.legend = names();
    return figure;
  }

  return chart;
})();
