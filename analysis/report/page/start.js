const HOW = {
  eval: "repshift eval DATA --model NAME --drop SCHEDULE --results-file eval.json gives accuracy.",
  bench: "repshift bench --model NAME --drop SCHEDULE --results-file bench.json gives speed and memory.",
  ablate: "repshift ablate DATA --model NAME --output FOLDER gives FOLDER/ablation.json, the studies of single blocks.",
};

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("content");
  document.getElementById("heading").textContent = data.heading;
  document.getElementById("facts").append(...data.facts.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  main.replaceChildren();
  if (data.explorer) {
    const explorer = new Explorer(data.explorer, bytesOf(data.colours));
    main.append(explorer.section);
    explorer.start();
  }
  if (data.charts.length) {
    main.append(element("section", { "aria-labelledby": "curves-title" }, element("h2", { id: "curves-title" }, "Curves"),
      element("div", { class: "charts" }, ...data.charts.map(chartFigure))));
    fitCharts(data.charts);
    addEventListener("resize", () => fitCharts(data.charts));
  }
  if (data.tables.length) {
    main.append(element("section", { "aria-labelledby": "tables-title" }, element("h2", { id: "tables-title" }, "Results"),
      element("p", { class: "soft" }, "The head of a column sorts by it."), ...data.tables.flatMap(resultsTable)));
  }
  main.append(...missing(data));
  document.getElementById("colophon").textContent =
    `Made by repshift ${data.version}. The page is complete in this one file: it loads nothing and sends nothing.` +
    (data.explorer ? " Maps are kept in 254 steps between the lowest and the highest value of each." : "");
}

function missing(data) {
  const entries = data.missing.map((kind) => HOW[kind]);
  if (!data.explorer) entries.unshift("repshift report --model NAME --images FOLDER --drop SCHEDULE shows images block by block.");
  if (!entries.length) return [];
  return [element("section", { "aria-labelledby": "missing-title" }, element("h2", { id: "missing-title" }, "What else it can show"),
    element("ul", {}, ...entries.map((entry) => element("li", {}, entry))))];
}

start();
