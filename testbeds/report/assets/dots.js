/* Named values downwards, with their intervals sideways. */
Lotion.dots = (() => {
  "use strict";
  const { el, svg, look, marker, command, number, fitted } = Lotion.dom;
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

    function draw(width) {
      const labels = [...new Set(spec.series.flatMap((s) => s.points.map((p) => p[0])))];
      const letters = Math.min(Math.max(8, ...labels.map((l) => l.length)), Math.floor(0.4 * width / 6.6));
      const size = { width, left: 14 + 6.6 * letters, right: 16, top: 10, row: 22 };
      const floor = size.top + size.row * labels.length;
      let [low, high] = range(spec.series.flatMap((s) => s.points.flatMap((p) => p.slice(1)))
        .concat(spec.x.rule ? [spec.x.rule] : []), spec.x.log);
      // Float losses may fall without end: they are held at the edge rather than flatten the others.
      const most = spec.x.decades ? Math.min(...spec.series[0].points.map((p) => p[1])) / 10 ** spec.x.decades : low;
      low = Math.max(low, most);
      const x = scale(spec.x.log ? low : Math.min(low, 0), high, size.left, size.width - size.right, spec.x.log);
      const hold = (v) => Math.max(x.at(spec.x.log ? Math.max(v, low) : v), size.left);
      drawing.setAttribute("viewBox", `0 0 ${size.width} ${floor + 42}`);
      drawing.replaceChildren(bottom(x, floor, floor - size.top, spec.x.label, size.left, size.width - size.right));
      if (spec.x.rule) drawing.append(svg("line", { x1: x.at(spec.x.rule), x2: x.at(spec.x.rule), y1: size.top, y2: floor, class: "rule" }));
      labels.forEach((label, k) => {
        const text = label.length > letters ? `${label.slice(0, letters - 1)}…` : label;
        drawing.append(svg("text", { x: size.left - 8, y: size.top + size.row * (k + 0.5) + 4, "text-anchor": "end", class: "name", text }, svg("title", { text: label })));
      });
      spec.series.forEach((s, n) => {
        const style = { ...look(n), ...s };
        for (const [label, value, from, to] of s.points) {
          const y = size.top + size.row * (labels.indexOf(label) + 0.5 + 0.5 * ((n + 0.5) / spec.series.length - 0.5));
          if (from !== undefined && from !== null) drawing.append(svg("line", { x1: hold(from), x2: hold(to), y1: y, y2: y, style: `stroke:${style.color}`, class: "bar" }));
          const beyond = spec.x.log && value < low;
          const dot = marker(beyond ? 7 : style.marker, hold(value), y, 3.6, { style: `fill:${style.color};stroke:${style.color}` });
          dot.append(svg("title", { text: `${s.name}, ${label}: ${number(value)}${beyond ? " (beyond the axis)" : ""}` }));
          drawing.append(dot);
        }
      });
      legend.replaceChildren(...(spec.series.length < 2 ? [] : spec.series.map((s, n) => {
        const style = { ...look(n), ...s };
        return el("span", {}, svg("svg", { viewBox: "0 0 14 12", class: "sample dot", "aria-hidden": "true" },
          marker(style.marker, 7, 6, 3.8, { style: `fill:${style.color};stroke:${style.color}` })), el("span", { text: s.name }));
      })));
    }

    fitted(drawing, 290, 720, draw);
    return figure;
  }

  return dots;
})();
