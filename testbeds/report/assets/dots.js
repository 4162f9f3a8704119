/* Named values downwards, with their intervals sideways. */
Lotion.dots = (() => {
  "use strict";
  const { el, svg, look, marker, command, number } = Lotion.dom;
  const { scale, range, bottom } = Lotion.scales;

  /* spec: {title, caption, command, x: {label, log, rule}, series: [{name, points: [[label, value, low, high]]}], csv}. */
  function dots(spec) {
    const drawing = svg("svg", { class: "plot", role: "img", "aria-label": `${spec.title}: ${spec.x.label}; the numbers are in the CSV file and the table` });
    const legend = el("div", { class: "legend plain" });
    const caption = el("figcaption", { text: spec.caption || "" });
    const figure = el("figure", { class: "chart" }, spec.title && el("h4", { text: spec.title }), drawing, legend, caption,
      spec.command && command(spec.command),
      Lotion.export.buttons(() => drawing, Lotion.export.stem(spec.csv || spec.title || "figure"), () =>
        [["series", "name", "value", "low", "high"], ...spec.series.flatMap((s) => s.points.map((p) => [s.name, ...p]))]));

    function draw() {
      const labels = [...new Set(spec.series.flatMap((s) => s.points.map((p) => p[0])))];
      const size = { width: 640, left: Math.min(250, 14 + 6.4 * Math.max(8, ...labels.map((l) => l.length))), right: 16, top: 10, row: 22 };
      const floor = size.top + size.row * labels.length;
      const [low, high] = range(spec.series.flatMap((s) => s.points.flatMap((p) => p.slice(1)))
        .concat(spec.x.rule ? [spec.x.rule] : []), spec.x.log);
      const x = scale(spec.x.log ? low : Math.min(low, 0), high, size.left, size.width - size.right, spec.x.log);
      const hold = (v) => Math.max(x.at(spec.x.log ? Math.max(v, low) : v), size.left);
      drawing.setAttribute("viewBox", `0 0 ${size.width} ${floor + 42}`);
      drawing.replaceChildren(bottom(x, floor, floor - size.top, spec.x.label, size.left, size.width - size.right));
      if (spec.x.rule) drawing.append(svg("line", { x1: x.at(spec.x.rule), x2: x.at(spec.x.rule), y1: size.top, y2: floor, class: "rule" }));
      labels.forEach((label, k) => {
        const text = label.length > 38 ? `${label.slice(0, 37)}…` : label;
        drawing.append(svg("text", { x: size.left - 8, y: size.top + size.row * (k + 0.5) + 4, "text-anchor": "end", class: "name", text }));
      });
      spec.series.forEach((s, n) => {
        const style = { ...look(n), ...s };
        for (const [label, value, from, to] of s.points) {
          const y = size.top + size.row * (labels.indexOf(label) + 0.5 + 0.5 * ((n + 0.5) / spec.series.length - 0.5));
          if (from !== undefined && from !== null) drawing.append(svg("line", { x1: hold(from), x2: hold(to), y1: y, y2: y, style: `stroke:${style.color}`, class: "bar" }));
          const dot = marker(style.marker, hold(value), y, 3.6, { style: `fill:${style.color};stroke:${style.color}` });
          dot.append(svg("title", { text: `${s.name}, ${label}: ${number(value)}` }));
          drawing.append(dot);
        }
      });
      legend.replaceChildren(...(spec.series.length < 2 ? [] : spec.series.map((s, n) => {
        const style = { ...look(n), ...s };
        return el("span", {}, svg("svg", { viewBox: "0 0 14 12", class: "sample dot", "aria-hidden": "true" },
          marker(style.marker, 7, 6, 3.8, { style: `fill:${style.color};stroke:${style.color}` })), el("span", { text: s.name }));
      })));
    }

    figure.update = (next) => { spec = next; caption.textContent = spec.caption || ""; draw(); };
    draw();
    return figure;
  }

  return dots;
})();
