// Sorts the table of classes when a column heading is clicked, and filters its rows by text.
"use strict";
(() => {
  const table = document.querySelector(".classes");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  const words = new Intl.Collator("en", { numeric: true });
  const input = document.getElementById("filter"), count = document.getElementById("count");
  const texts = rows.map((row) => row.textContent.toLowerCase());

  function value(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  }

  function sort(column) {
    const heading = headings[column], numeric = heading.classList.contains("number");
    const old = heading.getAttribute("aria-sort");
    const down = old ? old === "ascending" : numeric; // numbers start with the largest
    const sign = down ? -1 : 1;
    const order = rows.map((row, place) => [value(row, column), place]);
    order.sort(([a, i], [b, j]) => sign * (numeric ? a - b : words.compare(a, b)) || i - j);
    body.append(...order.map(([, place]) => rows[place]));
    for (const each of headings) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  function filter() {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    rows.forEach((row, place) => {
      row.hidden = !texts[place].includes(wanted);
      shown += !row.hidden;
    });
    count.textContent = `${shown} of ${rows.length} classes`;
  }

  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => sort(column)));
  input.addEventListener("input", filter);
  input.parentElement.hidden = false;
  filter();
})();
