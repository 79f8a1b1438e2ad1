const WIDEST = 560, NARROWEST = 240;
const MARGIN = { left: 64, right: 18, top: 14, bottom: 52 };
const COLOURS = 8;
const LINES = ["", "dashed", "dotted"];
// Corners and where the first one points; a circle has none.
const SHAPES = [[0, 0], [4, -0.5], [3, -0.5], [5, -0.5], [3, 0], [4, 0.25], [3, 0.5], [5, 0.5]];

function chartFigure(chart, number) {
  const title = `chart-${number}`;
  if (chart.problem) return element("figure", {}, element("h3", { id: title }, chart.title), element("p", {}, chart.problem));
  const legend = chart.series.map((series, index) => element("li", { class: null },
    drawing("svg", { viewBox: "-8 -8 16 16", class: lookOf(index), "aria-hidden": "true" }, markAt(index, 0, 0, 6)),
    series.name));
  return element("figure", {},
    element("h3", { id: title }, chart.title),
    chart.note ? element("p", { class: "soft" }, chart.note) : null,
    element("div", { class: "drawing" }),
    element("ul", { class: "legend" }, ...legend),
    element("details", {}, element("summary", {}, "As a table"), chartTable(chart)));
}

// Drawn as wide as there is room, so that letters keep their size on a phone; needs the figures on the page.
function fitCharts(charts) {
  charts.forEach((chart, number) => {
    const title = `chart-${number}`, place = document.getElementById(title).parentElement.querySelector(".drawing");
    if (!place) return;
    const width = Math.min(WIDEST, Math.max(NARROWEST, place.clientWidth));
    if (Number(place.dataset.width) === width) return;
    place.dataset.width = width;
    place.replaceChildren(chartDrawing(chart, title, width, Math.max(260, Math.round(0.6 * width))));
  });
}

function chartDrawing(chart, title, width, height) {
  const points = chart.series.flatMap((series) => series.points);
  const across = ticks(points.map((point) => point.x), chart.whole_steps, width < 400 ? 3 : 5), up = ticks(points.map((point) => point.y), false, 5);
  const x = (value) => MARGIN.left + share(value, across) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => height - MARGIN.bottom - share(value, up) * (height - MARGIN.top - MARGIN.bottom);
  const picture = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": title });
  for (const value of up) {
    picture.append(
      drawing("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
      drawing("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, written(value)));
  }
  for (const value of across) {
    picture.append(
      drawing("line", { class: "axis", x1: x(value), x2: x(value), y1: height - MARGIN.bottom, y2: height - MARGIN.bottom + 5 }),
      drawing("text", { x: x(value), y: height - MARGIN.bottom + 20, "text-anchor": "middle" }, written(value)));
  }
  const middle = (MARGIN.top + height - MARGIN.bottom) / 2;
  picture.append(
    drawing("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: height - MARGIN.bottom, y2: height - MARGIN.bottom }),
    drawing("text", { x: (MARGIN.left + width - MARGIN.right) / 2, y: height - 8, "text-anchor": "middle" }, chart.x),
    drawing("text", { x: 15, y: middle, "text-anchor": "middle", transform: `rotate(-90 15 ${middle})` }, chart.y));
  chart.series.forEach((series, index) => picture.append(curve(series, index, x, y)));
  return picture;
}

function curve(series, index, x, y) {
  const group = drawing("g", { class: lookOf(index) });
  if (series.points.length > 1) {
    group.append(drawing("polyline", { class: "curve", points: series.points.map((point) => `${x(point.x)},${y(point.y)}`).join(" ") }));
  }
  for (const point of series.points) {
    const mark = markAt(index, x(point.x), y(point.y), 6);
    mark.append(drawing("title", {}, `${point.label}: ${written(point.x, 6)}, ${written(point.y, 6)}`));
    group.append(mark);
  }
  return group;
}

// After all colours, the next round has lines and fillings of its own.
function lookOf(index) {
  const round = Math.floor(index / COLOURS);
  return [`series-${index % COLOURS}`, LINES[round % LINES.length], round % 2 ? "hollow" : ""].filter(Boolean).join(" ");
}

// A shape of its own for every series, so that colours are not needed to tell them apart; another one in each round.
function markAt(index, x, y, size) {
  const [corners, turn] = SHAPES[(index + Math.floor(index / COLOURS)) % SHAPES.length];
  if (!corners) return drawing("circle", { class: "mark", cx: x, cy: y, r: size - 0.5 });
  const points = Array.from({ length: corners }, (_, corner) => {
    const angle = Math.PI * (turn + (2 * corner) / corners);
    return `${x + size * Math.cos(angle)},${y + size * Math.sin(angle)}`;
  });
  return drawing("polygon", { class: "mark", points: points.join(" ") });
}

function share(value, marks) {
  return (value - marks[0]) / (marks[marks.length - 1] - marks[0]);
}

// Round numbers around all values.
function ticks(values, whole, most) {
  const low = Math.min(...values), high = Math.max(...values);
  const span = high - low || Math.abs(high) / 5 || 1;
  const rough = span / most, power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) * power;
  if (whole) step = Math.max(1, Math.round(step));
  const first = Math.floor((low - (whole ? 0 : span * 0.04)) / step), last = Math.ceil((high + (whole ? 0 : span * 0.04)) / step);
  const end = Math.max(last, first + 1);
  return Array.from({ length: end - first + 1 }, (_, index) => (first + index) * step);
}

function chartTable(chart) {
  const columns = [
    { key: "what", label: "what", numeric: false },
    { key: "x", label: chart.x, numeric: true },
    { key: "y", label: chart.y, numeric: true },
  ];
  const rows = chart.series.flatMap((series) => series.points.map((point) => [point.label, point.x, point.y]));
  return sortableTable(columns, rows, chart.title);
}
