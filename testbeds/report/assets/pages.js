/* Fill the sections once the page is there: `Lotion.draw` has what fills each element, by its id. */
(() => {
  "use strict";
  const { el, command } = Lotion.dom;
  const data = JSON.parse(document.getElementById("data").textContent);
  Lotion.data = data;
  const put = (id, ...nodes) => document.getElementById(id)?.append(...nodes.filter(Boolean));

  /* Sections are made when they come near the window, so that the page opens at once. */
  function lazily(id, make) {
    const place = document.getElementById(id);
    if (!place) return;
    let done = false;
    const run = () => { if (!done) { done = true; place.append(...[make()].flat().filter(Boolean)); } };
    Lotion.ready[id] = run;
    new IntersectionObserver((entries, watcher) => {
      if (entries.some((e) => e.isIntersecting)) { watcher.disconnect(); run(); }
    }, { rootMargin: "800px" }).observe(place);
  }

  Lotion.ready = {};
  /* Make these sections now, by default all: printing needs them. */
  Lotion.make = (...ids) => (ids.length ? ids : Object.keys(Lotion.ready)).forEach((id) => Lotion.ready[id]());

  function theme() {
    const button = document.getElementById("theme"), root = document.documentElement;
    const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const tell = () => {
      button.textContent = dark() ? "Light" : "Dark";
      button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`);
    };
    button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; tell(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
    tell();
  }

  theme();
  for (const place of document.querySelectorAll("[data-command]")) place.replaceWith(command(place.dataset.command));
  put("cover", Lotion.line.cover(data.books));
  for (const [id, make] of Object.entries(Lotion.draw)) lazily(id, () => make(data));
  for (const place of document.querySelectorAll("[data-blocks]")) lazily(place.id, () => Lotion.blocks(data[place.dataset.blocks], place.dataset.blocks));
  addEventListener("beforeprint", () => Lotion.make());
})();
