// A table whose columns sort: once up, once down.
function sortableTable(columns, rows, caption) {
  const body = element("tbody");
  const heads = columns.map((column, index) => {
    const button = element("button", { type: "button" }, column.label);
    const head = element("th", { scope: "col", class: column.numeric ? "number" : null, "aria-sort": "none" }, button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? direction : "none"));
      fill(body, columns, sorted(rows, index, direction === "ascending" ? 1 : -1));
    });
    return head;
  });
  fill(body, columns, rows);
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    element("table", { class: "sortable" }, element("caption", { class: "unseen" }, caption),
      element("thead", {}, element("tr", {}, ...heads)), body));
}

function fill(body, columns, rows) {
  body.replaceChildren(...rows.map((row) => element("tr", {}, ...row.map((value, index) => {
    const numeric = columns[index].numeric;
    const text = value === null ? "" : numeric ? written(value, 6) : String(value);
    return element("td", { class: numeric ? "number" : null }, text);
  }))));
}

// Numbers by size, text by letters with its numbers by size; what is empty stays last either way.
function sorted(rows, index, direction) {
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  return rows.map((row, place) => ({ row, place })).sort((one, other) => {
    const [first, second] = [one.row[index], other.row[index]];
    if (first === null || second === null) return (first === null) - (second === null) || one.place - other.place;
    const order = typeof first === "number" && typeof second === "number" ? first - second : compare(String(first), String(second));
    return direction * order || one.place - other.place;
  }).map(({ row }) => row);
}

function pairs(list) {
  return list.map(([name, value]) => `${name} ${value}`).join(", ");
}

function resultsTable(table) {
  return [
    element("h3", {}, table.title),
    table.same.length ? element("p", { class: "soft" }, `The same in all rows: ${pairs(table.same)}.`) : null,
    sortableTable(table.columns, table.rows, table.title),
    table.environment.length ? element("p", { class: "soft" }, `Measured with ${pairs(table.environment)}.`) : null,
  ].filter(Boolean);
}
