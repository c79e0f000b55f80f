/* Tables that are sorted by a click on a heading; what has no value stays at the end. */
document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column], given = cell.dataset.v;
    if (!heads[column].classList.contains("number")) return given ?? cell.textContent.trim();
    return given === undefined || given === "" ? null : Number(given);
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const falling = head.getAttribute("aria-sort") === "ascending", sign = falling ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0], rows = [...body.rows].map((row) => [key(row, column), row]);
    rows.sort(([first], [second]) => {
      if (first === null || second === null) return (first === null) - (second === null);
      return sign * (typeof first === "number" ? first - second : first.localeCompare(second, undefined, { numeric: true }));
    });
    body.append(...rows.map(([, row]) => row));
  }));
});
