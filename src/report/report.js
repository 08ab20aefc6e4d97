// Tables sort by a click on their heads, which narrow screens show beside each figure; folded parts open for print.
for (const table of document.querySelectorAll("table.sort")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  for (const row of body.rows) [...row.cells].forEach((cell, i) => i && (cell.dataset.l = heads[i].textContent));
  const key = (row, i) => { const c = row.cells[i], v = c.dataset.v ?? c.textContent; return v === "" || isNaN(v) ? v : +v; };
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const down = head.getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
      heads.forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => typeof a === typeof b ? (a > b) - (a < b) : (typeof a === "string") - (typeof b === "string");
      body.append(...[...body.rows].sort((a, b) => sign * order(key(a, i), key(b, i))));
    };
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => (d.open = true)));
