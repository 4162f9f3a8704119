/* Figures as plain data: of one experiment, or of all of them in folds. */
Lotion.studies = (() => {
  "use strict";
  const { el } = Lotion.dom;

  /* figure: as testbeds/results/studies.py makes it; name: begins the name of its CSV file; command: what makes its rows. */
  function study(figure, name, command) {
    const spec = { ...figure, csv: `${name}-${figure.title}`, command };
    if (figure.dots) return Lotion.dots(spec);
    return Lotion.chart({ ...spec, series: figure.series.map((s) => ({ ...s, marks: true })) });
  }

  function section(figures, boards) {
    const names = [...new Set(figures.map((f) => f.experiment))];
    return names.map((name, k) => {
      const board = boards.find((b) => b.name === name), place = el("div", { class: "pair" });
      const fold = el("details", { open: k === 0 }, el("summary", { text: `${board ? board.title : name} (${name})` }), place);
      let made = false;
      const fill = () => {
        if (made || !fold.open) return;
        made = true;
        place.append(...figures.filter((f) => f.experiment === name).map((f) => study(f, name, board ? board.command : null)));
      };
      fold.addEventListener("toggle", fill);
      fill();
      return fold;
    });
  }

  return { study, section };
})();

Lotion.draw.studies = (data) => Lotion.studies.section(data.figures, data.boards);
