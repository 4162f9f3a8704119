/* Sections that are a list of blocks: texts, commands, tables and figures, as testbeds/report/section.py makes them. */
Lotion.blocks = (() => {
  "use strict";
  const { el, command, number } = Lotion.dom;

  const cell = (value) => (value === null ? ["", null] : [typeof value === "number" ? number(value, 4) : String(value), value]);
  const DRAWN = {
    text: (block) => el("p", { text: block.text }),
    table: ({ table }, name) => Lotion.table({ ...table, name: `${name}-${table.caption}`, rows: table.rows.map((row) => row.map(cell)) }),
    figure: (block, name) => Lotion.studies.study(block.figure, name, block.command),
    command: (block) => command(block.command),
  };

  return (blocks, name) => blocks.map((block) => DRAWN[Object.keys(DRAWN).find((what) => what in block)](block, name));
})();
