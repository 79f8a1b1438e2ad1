const WIDTH = 560, HEIGHT = 340;
const MARGIN = { left: 64, right: 18, top: 14, bottom: 52 };
const COLOURS = 8;

function chartFigure(chart, number) {
  const title = `chart-${number}`;
  if (chart.problem) return element("figure", {}, element("h3", { id: title }, chart.title), element("p", {}, chart.problem));
  const legend = chart.series.map((series, index) => element("li", { class: null },
    drawing("svg", { viewBox: "-8 -8 16 16", class: `series-${index % COLOURS}`, "aria-hidden": "true" }, markAt(index, 0, 0, 6)),
    series.name));
  return element("figure", {},
    element("h3", { id: title }, chart.title),
    chart.note ? element("p", { class: "soft" }, chart.note) : null,
    chartDrawing(chart, title),
    element("ul", { class: "legend" }, ...legend),
    element("details", {}, element("summary", {}, "As a table"), chartTable(chart)));
}

function chartDrawing(chart, title) {
  const points = chart.series.flatMap((series) => series.points);
  const across = ticks(points.map((point) => point.x), chart.whole_steps), up = ticks(points.map((point) => point.y), false);
  const x = (value) => MARGIN.left + share(value, across) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (value) => HEIGHT - MARGIN.bottom - share(value, up) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const picture = drawing("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": title });
  for (const value of up) {
    picture.append(
      drawing("line", { class: "rule", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y(value), y2: y(value) }),
      drawing("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, written(value)));
  }
  for (const value of across) {
    picture.append(
      drawing("line", { class: "axis", x1: x(value), x2: x(value), y1: HEIGHT - MARGIN.bottom, y2: HEIGHT - MARGIN.bottom + 5 }),
      drawing("text", { x: x(value), y: HEIGHT - MARGIN.bottom + 20, "text-anchor": "middle" }, written(value)));
  }
  const middle = (MARGIN.top + HEIGHT - MARGIN.bottom) / 2;
  picture.append(
    drawing("line", { class: "axis", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: HEIGHT - MARGIN.bottom, y2: HEIGHT - MARGIN.bottom }),
    drawing("text", { x: (MARGIN.left + WIDTH - MARGIN.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, chart.x),
    drawing("text", { x: 15, y: middle, "text-anchor": "middle", transform: `rotate(-90 15 ${middle})` }, chart.y));
  chart.series.forEach((series, index) => picture.append(curve(series, index, x, y)));
  return picture;
}

function curve(series, index, x, y) {
  const group = drawing("g", { class: `series-${index % COLOURS}` });
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

// A shape of its own for every series, so that colours are not needed to tell them apart.
function markAt(index, x, y, size) {
  const corners = [null, 4, 3, 5][index % 4];
  if (corners === null) return drawing("circle", { class: "mark", cx: x, cy: y, r: size - 0.5 });
  const turn = index % 8 < 4 ? -Math.PI / 2 : Math.PI / 4;
  const points = Array.from({ length: corners }, (_, corner) => {
    const angle = turn + (2 * Math.PI * corner) / corners;
    return `${x + size * Math.cos(angle)},${y + size * Math.sin(angle)}`;
  });
  return drawing("polygon", { class: "mark", points: points.join(" ") });
}

function share(value, marks) {
  return (value - marks[0]) / (marks[marks.length - 1] - marks[0]);
}

// Round numbers around all values.
function ticks(values, whole) {
  const low = Math.min(...values), high = Math.max(...values);
  const span = high - low || Math.abs(high) / 5 || 1;
  const rough = span / 5, power = 10 ** Math.floor(Math.log10(rough));
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
