// Comfort only: without scripts the page shows all that it has.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const value = (row, index) => {
    const cell = row.cells[index];
    const exact = (cell.dataset.value || "").split(" ")[0];
    if (exact === "null") return null;
    return exact === "" ? cell.textContent.trim() : Number(exact);
  };
  const isMissing = (found) => found === null || found === "";
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descends = head.getAttribute("aria-sort") === "ascending" ||
        (!head.hasAttribute("aria-sort") && head.classList.contains("number"));
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descends ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [value(row, index), row]);
      rows.sort(([a], [b]) => {
        // What has no value comes last either way.
        if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
        const order = typeof a === "number" && typeof b === "number"
          ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
        return descends ? -order : order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
  if (body.rows.length > 12) {
    const filter = document.createElement("input");
    filter.className = "filter";
    filter.type = "search";
    filter.placeholder = "filter by name";
    filter.setAttribute("aria-label", "filter rows by name");
    filter.addEventListener("input", () => {
      const wanted = filter.value.trim().toLowerCase();
      for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
    table.parentNode.before(filter);
  }
}
