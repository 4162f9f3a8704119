/* Axes: a place for a value, and ticks. */
Lotion.scales = (() => {
  "use strict";
  const { svg, number } = Lotion.dom;

  /* `log`: positive values on a logarithmic axis; from [low, high] to [a, b]. */
  function scale(low, high, a, b, log) {
    const f = log ? Math.log10 : (v) => v;
    const start = f(low), span = f(high) - start || 1;
    const at = (v) => a + (b - a) * (f(v) - start) / span;
    return { at, low, high, log, ticks: log ? logTicks(low, high) : linearTicks(low, high) };
  }

  function linearTicks(low, high, count = 5) {
    const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) || raw;
    const out = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) out.push(Number((k * step).toPrecision(12)));
    return out;
  }

  function logTicks(low, high) {
    const decades = Math.log10(high / low);
    const subs = decades > 3 ? [1] : decades > 1.3 ? [1, 3] : decades > 0.5 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
    const out = [];
    const every = Math.max(1, Math.ceil(decades / 6));
    for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) {
      if (k % every) continue;
      for (const sub of subs) {
        const v = Number((sub * 10 ** k).toPrecision(6));
        if (v >= low * 0.999 && v <= high * 1.001) out.push(v);
      }
    }
    return out.length > 1 ? out : linearTicks(low, high, 3).filter((v) => v > 0);
  }

  /* Lowest and highest of the values, with a margin; the wanted ends where given. */
  function range(values, log, margin = 0.04) {
    const kept = values.filter((v) => Number.isFinite(v) && (!log || v > 0));
    if (!kept.length) return log ? [0.1, 1] : [0, 1];
    let low = kept[0], high = kept[0];
    for (const v of kept) { if (v < low) low = v; if (v > high) high = v; }
    if (log) {
      const widen = Math.max((high / low) ** margin, 1.05);
      return [low / widen, high * widen];
    }
    const widen = (high - low || Math.abs(high) || 1) * margin;
    return [low - widen, high + widen];
  }

  function bottom(scale, y, height, label, left, right) {
    const group = svg("g", { class: "axis" });
    let free = -Infinity;
    for (const v of scale.ticks) {
      const x = scale.at(v), text = number(v), half = 3.7 * text.length;
      group.append(svg("line", { x1: x, x2: x, y1: y - height, y2: y, class: "grid" }));
      if (x - half < free) continue;
      free = x + half + 6;
      group.append(svg("text", { x, y: y + 16, "text-anchor": "middle", text }));
    }
    group.append(svg("line", { x1: left, x2: right, y1: y, y2: y, class: "rule" }),
      svg("text", { x: (left + right) / 2, y: y + 34, "text-anchor": "middle", class: "label", text: label }));
    return group;
  }

  function side(scale, x, right, label, top) {
    const group = svg("g", { class: "axis" });
    for (const v of scale.ticks) {
      const y = scale.at(v);
      group.append(svg("line", { x1: x, x2: right, y1: y, y2: y, class: "grid" }),
        svg("text", { x: x - 6, y: y + 4, "text-anchor": "end", text: number(v) }));
    }
    group.append(svg("text", { x: 2, y: top - 8, class: "label", text: label }));
    return group;
  }

  return { scale, range, bottom, side };
})();
