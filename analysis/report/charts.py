"""From results files to the curves of a report; the page draws what is described here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from repshift import RepshiftError
from repshift.analysis.curves.points import ACCURACIES, collect, method_of, schedule_in_words
from repshift.analysis.curves.points import Point as Measured
from repshift.analysis.output.results import Results, Row

# What makes benchmarks different ones, and how a title says it
SETTINGS = {
    "device": "{}",
    "precision": "{}",
    "attention": "{} attention",
    "channels_last": "channels last: {}",
    "torchcompile": "torch.compile: {}",
    "img_size": "{} px",
}
LIMIT = "oracle_free keeps the first tokens without a score: no method can be faster."


@dataclass(frozen=True)
class Point:
    """One mark of a curve; ``label`` says what it is in words."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Series:
    """Points that belong together, in the order of ``x``; drawn with a line between them."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """One diagram; ``note`` says where its numbers are from, ``problem`` why there are none to draw."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    note: str = ""
    whole_steps: bool = False
    problem: str = ""

    def content(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def make_charts(results: Sequence[Results]) -> list[Chart]:
    """Describe every curve that the results allow; one without points is left out.

    Accuracies and speeds are joined as ``repshift curves`` joins them, see
    :func:`repshift.analysis.curves.points.collect`; where it refuses, the chart says why instead.
    """
    timed = [
        {**row, "device": one.environment.get("device")} for one in results if one.kind == "bench" for row in one.rows
    ]
    studies = [one for one in results if one.kind == "ablate"]
    charts = [
        *_accuracies(results),
        *_benchmarks(timed),
        *(chart for one in studies for chart in _ablations(one, studies)),
    ]
    return [chart for chart in charts if chart.series or chart.problem]


def number(value: object) -> float | None:
    """Return a finite number as it is, anything else as ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def _reads(key: str) -> Callable[[Row], float | None]:
    return lambda row: number(row.get(key))


def _accuracies(results: Sequence[Results]) -> Iterable[Chart]:
    """Draw accuracy against work, and against throughput: the benchmarks' if there are any, else the evaluations'."""
    evaluated = [one for one in results if one.kind in ACCURACIES and any("error" not in row for row in one.rows)]
    if not evaluated:
        return
    try:
        points = collect(evaluated)
    except RepshiftError as error:
        yield _refused("Accuracy and work", error)
        return
    yield _accuracy("Accuracy and work", "GMACs an image", points, lambda point: point.gmacs)
    timed = [replace(one, rows=_with_speed(one)) for one in results if one.kind == "bench"]
    try:
        joined = collect([*evaluated, *timed])
    except RepshiftError as error:
        yield _refused("Accuracy and throughput", error)
        return
    yield _accuracy("Accuracy and throughput", "images a second", joined, lambda point: point.samples_per_sec)


def _with_speed(results: Results) -> list[Row]:
    return [row for row in results.rows if number(row.get("samples_per_sec")) is not None]


def _refused(title: str, error: RepshiftError) -> Chart:
    return Chart(title, "", "", [], problem=f"These results are not joined, as by repshift curves. {error}")


def _accuracy(title: str, x_label: str, points: Sequence[Measured], x: Callable[[Measured], float | None]) -> Chart:
    """Collect points into series: one a method, of each model by itself, and of each way to measure its speed."""
    speeds = x_label != "GMACs an image"
    shown = [point for point in points if number(x(point)) is not None and number(point.top1) is not None]
    ways = [_way(point) for point in shown] if speeds else []
    own = [tuple(part for part in way if any(part not in other for other in ways)) for way in ways]
    several = len({point.model for point in shown}) > 1
    found: dict[str, list[Point]] = {}
    for place, point in enumerate(shown):
        across = x(point)
        name = [*([point.model] if several else []), point.method, *(own[place] if speeds else ())]
        label = ", ".join(filter(None, [point.model, point.method, point.schedule]))
        if across is not None:
            found.setdefault(", ".join(name), []).append(Point(across, point.top1, label))
    return Chart(title, x_label, "top-1 accuracy, %", _sorted(found), _measured_by(shown) if speeds else "")


def _way(point: Measured) -> tuple[str, ...]:
    batch = f"batch {point.batch_size}" if point.batch_size else None
    return tuple(filter(None, (batch, point.precision, point.device)))


def _measured_by(points: Sequence[Measured]) -> str:
    benched = any(point.measured_by == "bench" for point in points)
    how = "; ".join(dict.fromkeys(", ".join(_way(point)) for point in points if _way(point)))
    if benched:
        return f"The throughput is that of repshift bench, at its largest batch size{f' ({how})' if how else ''}."
    return (
        f"The throughput is that of the evaluation itself{f' ({how})' if how else ''}; repshift bench measures it more "
        "carefully."
    )


def _chart(
    title: str,
    x_label: str,
    y_label: str,
    rows: Sequence[Row],
    x: Callable[[Row], float | None],
    y: Callable[[Row], float | None],
    name: Callable[[Row], str],
    words: Callable[[Row], str],
    **settings: Any,
) -> Chart:
    """Collect points into series by name, of each model by itself."""
    several = len({row.get("model") for row in rows}) > 1
    found: dict[str, list[Point]] = {}
    for row in rows:
        across, up = x(row), y(row)
        if across is not None and up is not None:
            key = f"{row.get('model')}, {name(row)}" if several else name(row)
            found.setdefault(key, []).append(Point(across, up, words(row)))
    return Chart(title, x_label, y_label, _sorted(found), **settings)


def _sorted(found: Mapping[str, Sequence[Point]]) -> list[Series]:
    return [Series(key, sorted(points, key=lambda point: (point.x, point.y))) for key, points in found.items()]


def _benchmarks(rows: Sequence[Row]) -> Iterable[Chart]:
    """Draw a chart for each device and setting, titled by what tells it from the others."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_setting(row, key) for key in SETTINGS), []).append(row)
    differing = [place for place in range(len(SETTINGS)) if len({group[place] for group in groups}) > 1]
    for group, own in groups.items():
        told = ", ".join(group[place] for place in differing)
        yield _benchmark(own, f" ({told})" if told else "")


def _setting(row: Row, key: str) -> str:
    value = row.get(key)
    if isinstance(value, (list, tuple)):
        value = "x".join(map(str, value))
    return f"{key} not told" if value is None or value == "" else SETTINGS[key].format(value)


def _benchmark(rows: Sequence[Row], told: str) -> Chart:
    if len({str(row.get("batch_size")) for row in rows}) == 1:
        across, up = "GMACs an image", "images a second"
        work, rate = _reads("gmacs"), _reads("samples_per_sec")
        return _chart(f"Throughput and work{told}", across, up, rows, work, rate, method_of, _words, note=LIMIT)
    several = len({_schedule(row) for row in rows} - {""}) > 1
    name = lambda row: ", ".join(filter(None, [method_of(row), _schedule(row) if several else ""]))  # noqa: E731
    words = lambda row: f"{_words(row)}, batch {row.get('batch_size')}"  # noqa: E731
    title, across, up = f"Speed-up over the dense model{told}", "batch size", "times as fast"
    return _chart(title, across, up, rows, _reads("batch_size"), _reads("speedup"), name, words, note=LIMIT)


def _schedule(row: Row) -> str:
    """Write a schedule in one way only."""
    given = row.get("schedule")
    try:
        return schedule_in_words(row) if given is None or isinstance(given, str) else ""
    except RepshiftError:
        return str(given)


def _words(row: Row) -> str:
    return ", ".join(filter(None, [str(row.get("model", "")), method_of(row), _schedule(row)]))


def _ablations(results: Results, all_studies: Sequence[Results]) -> Iterable[Chart]:
    """Draw the studies of one ablation by themselves; beside other ablations the title names the model."""
    told = f" ({results.environment.get('model', 'model unknown')})" if len(all_studies) > 1 else ""
    rows = [row for row in results.rows if row.get("block") is not None]
    for study in dict.fromkeys(str(row.get("study")) for row in rows):
        yield _chart(
            f"Study: {study}{told}",
            "dropped after block",
            "points of accuracy against dense",
            [row for row in rows if str(row.get("study")) == study],
            _reads("block"),
            _reads("delta"),
            name=lambda row: str(row.get("setting")),
            words=lambda row: f"{row.get('setting')}, block {row.get('block')}",
            whole_steps=True,
        )
