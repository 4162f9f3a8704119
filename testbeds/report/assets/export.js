/* Downloads: a drawing as SVG or PNG with its colours written into it, and rows as CSV. */
Lotion.export = (() => {
  "use strict";
  const { el } = Lotion.dom;
  const PROPERTIES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "fill-opacity",
    "font-family", "font-size", "font-weight", "text-anchor", "dominant-baseline"];

  function save(name, blob) {
    const address = URL.createObjectURL(blob);
    const link = el("a", { href: address, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  /* The drawing as text that stands alone: computed styles become attributes, the page's background is painted. */
  function standalone(svg) {
    const copy = svg.cloneNode(true);
    const from = [svg, ...svg.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
    from.forEach((node, k) => {
      const style = getComputedStyle(node);
      for (const property of PROPERTIES) to[k].setAttribute(property, style.getPropertyValue(property));
      to[k].removeAttribute("class");
      to[k].removeAttribute("style");
      to[k].removeAttribute("tabindex");
    });
    const box = svg.viewBox.baseVal;
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", box.width);
    copy.setAttribute("height", box.height);
    copy.querySelectorAll("[data-cursor]").forEach((node) => node.remove());
    const ground = Lotion.dom.svg("rect", { width: box.width, height: box.height });
    ground.setAttribute("fill", getComputedStyle(document.documentElement).getPropertyValue("--panel").trim());
    copy.prepend(ground);
    return { text: new XMLSerializer().serializeToString(copy), width: box.width, height: box.height };
  }

  function png(svg, name) {
    const { text, width, height } = standalone(svg);
    const image = new Image();
    image.onload = () => {
      const canvas = el("canvas", { width: width * 2, height: height * 2 });
      canvas.getContext("2d").drawImage(image, 0, 0, width * 2, height * 2);
      canvas.toBlob((blob) => save(`${name}.png`, blob), "image/png");
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  }

  /* A spreadsheet runs text that starts like this as a formula: an apostrophe in front keeps it text. */
  const formula = (value) => typeof value === "string" && /^'*[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value));
  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : formula(value) ? `'${value}` : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csvText = (rows) => rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  const csv = (rows, name) => save(`${name}.csv`, new Blob([csvText(rows)], { type: "text/csv" }));

  /* Records to rows under the union of their keys. */
  function table(records) {
    const keys = [...new Set(records.flatMap((r) => Object.keys(r)))].filter((k) => k !== "cells");
    return [keys, ...records.map((r) => keys.map((k) => r[k]))];
  }

  /* Buttons for a drawing; `rows` gives the numbers behind it. */
  function buttons(svg, name, rows) {
    const button = (text, what, run) => el("button", {
      type: "button", class: "small", text, "aria-label": `Download ${what} as ${text}`, onclick: run });
    const what = name.replaceAll("-", " ");
    return el("div", { class: "downloads" },
      svg && button("PNG", what, () => png(svg(), name)),
      svg && button("SVG", what, () => save(`${name}.svg`, new Blob([standalone(svg()).text], { type: "image/svg+xml" }))),
      button("CSV", what, () => csv(rows(), name)));
  }

  const stem = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");

  return { standalone, csvText, csv, table, buttons, stem };
})();
