/* A plane in bands of colour with arrows and paths on it. */
Lotion.heat = (() => {
  "use strict";
  const { el, svg, look, marker, number, command, fitted } = Lotion.dom;
  const { scale, range } = Lotion.scales;
  // Five colours of viridis: even steps of lightness, for every colour vision.
  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const BANDS = 24, PIXELS = 121;

  function colour(share) {
    const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), k = Math.min(Math.floor(place), RAMP.length - 2);
    return RAMP[k].map((c, i) => Math.round(c + (RAMP[k + 1][i] - c) * (place - k)));
  }

  /* spec: {title, value(x, y), arrow(x, y) or null, paths: [{name, points}], points: [{name, at}], span: [low, high],
   * labels: [x, y], caption, command}. */
  function heat(spec) {
    const size = { left: 46, right: 12, top: 12, bottom: 44 };
    const drawing = svg("svg", { class: "plot", role: "img" });
    const legend = el("div", { class: "legend plain" });
    const caption = el("figcaption");
    let grid = [];
    const figure = el("figure", { class: "chart plane" }, el("h4", { text: spec.title }), drawing, legend, caption,
      spec.command && command(spec.command),
      Lotion.export.buttons(() => drawing, Lotion.export.stem(spec.title), () => [["w1", "w2", "loss"], ...grid]));

    /* Loss over the plane; its square root is shaded, so that the bottom of the valley has colours too. */
    function picture(low, high) {
      const values = [];
      grid = [];
      for (let j = 0; j < PIXELS; j++) for (let i = 0; i < PIXELS; i++) {
        const x = low + (high - low) * (i + 0.5) / PIXELS, y = high - (high - low) * (j + 0.5) / PIXELS;
        const v = spec.value(x, y);
        values.push(v);
        grid.push([x, y, v]);
      }
      const [least, most] = [Math.min(...values), Math.max(...values)];
      const canvas = el("canvas", { width: PIXELS, height: PIXELS }), context = canvas.getContext("2d");
      const image = context.createImageData(PIXELS, PIXELS);
      values.forEach((v, k) => {
        const share = Math.sqrt((v - least) / (most - least || 1));
        image.data.set([...colour(1 - Math.floor(share * BANDS) / BANDS), 255], 4 * k);
      });
      context.putImageData(image, 0, 0);
      return { address: canvas.toDataURL(), least, most };
    }

    function draw(width) {
      Object.assign(size, { width, height: width - 2 });
      drawing.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
      const [low, high] = spec.span;
      const x = scale(low, high, size.left, size.width - size.right, false);
      const y = scale(low, high, size.height - size.bottom, size.top, false);
      const { address, least, most } = picture(low, high);
      const floor = size.height - size.bottom, clip = Lotion.dom.id("clip");
      const inner = svg("g", { "clip-path": `url(#${clip})` });
      drawing.setAttribute("aria-label", `${spec.title}, from ${number(least)} (yellow) to ${number(most)} (violet)`);
      drawing.replaceChildren(
        svg("defs", {}, svg("clipPath", { id: clip }, svg("rect", { x: size.left, y: size.top, width: size.width - size.left - size.right, height: floor - size.top }))),
        svg("image", { href: address, x: size.left, y: size.top, width: size.width - size.left - size.right, height: floor - size.top,
          preserveAspectRatio: "none", style: "image-rendering:pixelated" }),
        axes(x, y, floor), inner);
      if (spec.arrow) arrows(inner, x, y, low, high);
      (spec.paths || []).forEach((path, k) => {
        const style = { ...look(k), ...path };
        const points = path.points.map((p) => `${x.at(p[0]).toFixed(2)},${y.at(p[1]).toFixed(2)}`).join(" ");
        inner.append(svg("polyline", { points, class: "halo" }), svg("polyline", { points, class: "line",
          style: `stroke:${style.color};stroke-width:2.2${style.dash ? `;stroke-dasharray:${style.dash}` : ""}` }));
        const last = path.points.at(-1);
        inner.append(marker(style.marker, x.at(last[0]), y.at(last[1]), 5, { style: `fill:${style.color};stroke:#fff` }));
      });
      for (const point of spec.points || []) {
        inner.append(marker(6, x.at(point.at[0]), y.at(point.at[1]), 6, { style: "stroke:#fff;stroke-width:4;fill:none" }),
          marker(6, x.at(point.at[0]), y.at(point.at[1]), 6, { style: "stroke:#000;stroke-width:2;fill:none" }));
      }
      legend.replaceChildren(...(spec.paths || []).map((path, k) => {
        const style = { ...look(k), ...path };
        return el("span", {}, svg("svg", { viewBox: "0 0 30 12", class: "sample", "aria-hidden": "true" },
          svg("line", { x1: 1, x2: 29, y1: 6, y2: 6, style: `stroke:${style.color};stroke-width:2.4${style.dash ? `;stroke-dasharray:${style.dash}` : ""}` }),
          marker(style.marker, 15, 6, 4, { style: `fill:${style.color};stroke:${style.color}` })), el("span", { text: path.name }));
      }));
      caption.textContent = `${spec.caption} Yellow is ${number(least, 3)}, violet ${number(most, 3)}; the square root of the height is shaded.`;
    }

    function axes(x, y, floor) {
      const group = svg("g", { class: "axis" });
      for (const v of x.ticks) group.append(svg("text", { x: x.at(v), y: floor + 16, "text-anchor": "middle", text: number(v) }));
      for (const v of y.ticks) group.append(svg("text", { x: size.left - 6, y: y.at(v) + 4, "text-anchor": "end", text: number(v) }));
      group.append(svg("text", { x: (size.left + size.width) / 2, y: floor + 36, "text-anchor": "middle", class: "label", text: spec.labels[0] }),
        svg("text", { x: 4, y: size.top + 12, class: "label", text: spec.labels[1] }));
      return group;
    }

    function arrows(inner, x, y, low, high) {
      const count = 15, step = (high - low) / count, found = [];
      for (let i = 0; i < count; i++) for (let j = 0; j < count; j++) {
        const at = [low + step * (i + 0.5), low + step * (j + 0.5)], g = spec.arrow(at[0], at[1]);
        found.push([at, g, Math.hypot(g[0], g[1])]);
      }
      const [, most] = range(found.map(([, , size]) => size), false, 0);
      for (const [at, g, length] of found) {
        if (!length) continue;
        const reach = step * 0.9 * Math.sqrt(length / (most || 1)) / length;
        const a = [x.at(at[0]), y.at(at[1])], b = [x.at(at[0] - g[0] * reach), y.at(at[1] - g[1] * reach)];
        const turn = Math.atan2(b[1] - a[1], b[0] - a[0]);
        const tip = (side) => `${(b[0] - 4 * Math.cos(turn + side)).toFixed(1)} ${(b[1] - 4 * Math.sin(turn + side)).toFixed(1)}`;
        inner.append(svg("path", { class: "arrow", d: `M${a[0].toFixed(1)} ${a[1].toFixed(1)}L${b[0].toFixed(1)} ${b[1].toFixed(1)}M${tip(0.5)}L${b[0].toFixed(1)} ${b[1].toFixed(1)}L${tip(-0.5)}` }));
      }
    }

    figure.update = (next) => { spec = { ...spec, ...next }; redraw(); };
    const redraw = fitted(drawing, 290, 540, draw);
    return figure;
  }

  return heat;
})();
