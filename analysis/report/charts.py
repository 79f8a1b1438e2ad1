"""From results files to the curves of a report; the page draws what is described here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from repshift import RepshiftError, Schedule
from repshift.analysis.result_files import Results, Row

KINDS = ("eval", "bench", "ablate")
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
    """One diagram; ``note`` says where its numbers are from."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    note: str = ""
    whole_steps: bool = False

    def content(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def make_charts(results: Sequence[Results]) -> list[Chart]:
    """Describe every curve that the results allow; one without points is left out."""
    rows = {kind: [row for found in results if found.kind == kind for row in found.rows] for kind in KINDS}
    evaluated = _with_dense(rows["eval"])
    charts = [
        _chart("Accuracy and work", "GMACs an image", "top-1 accuracy, %", evaluated, _reads("gmacs"), _reads("top1")),
        _accuracy_and_speed(evaluated, rows["bench"]),
        *_benchmark(rows["bench"]),
        *_ablations(rows["ablate"]),
    ]
    return [chart for chart in charts if chart.series]


def number(value: object) -> float | None:
    """Return a finite number as it is, anything else as ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def _reads(key: str) -> Callable[[Row], float | None]:
    return lambda row: number(row.get(key))


def _with_dense(rows: Sequence[Row]) -> list[Row]:
    """Add the dense models that were evaluated beside pruned ones, once each."""
    dense: dict[object, Row] = {}
    for row in rows:
        if number(row.get("dense_top1")) is not None:
            dense[row.get("model")] = {
                "model": row.get("model"),
                "method": "dense",
                "top1": row["dense_top1"],
                "gmacs": row.get("dense_gmacs"),
                "samples_per_sec": row.get("dense_samples_per_sec"),
            }
    known = {row.get("model") for row in rows if _method(row) == "dense"}
    return [*(row for model, row in dense.items() if model not in known), *rows]


def _method(row: Row) -> str:
    return str(row.get("method") or ("dense" if not row.get("schedule") else "pruned"))


def _schedule(row: Row) -> str:
    """Write a schedule in one way only, so that files of different commands can be joined."""
    given = row.get("schedule")
    try:
        return str(Schedule.of(given)) if isinstance(given, str) and given else ""
    except RepshiftError:
        return str(given)


def _words(row: Row) -> str:
    schedule = _schedule(row)
    return ", ".join([str(row.get("model", "")), _method(row), *([schedule] if schedule else [])])


def _chart(
    title: str,
    x_label: str,
    y_label: str,
    rows: Sequence[Row],
    x: Callable[[Row], float | None],
    y: Callable[[Row], float | None],
    name: Callable[[Row], str] = _method,
    words: Callable[[Row], str] = _words,
    **settings: Any,
) -> Chart:
    """Collect points into series: one a method, of each model by itself."""
    several = len({row.get("model") for row in rows}) > 1
    found: dict[str, list[Point]] = {}
    for row in rows:
        across, up = x(row), y(row)
        if across is not None and up is not None:
            key = f"{row.get('model')}, {name(row)}" if several else name(row)
            found.setdefault(key, []).append(Point(across, up, words(row)))
    series = [Series(key, sorted(points, key=lambda point: (point.x, point.y))) for key, points in found.items()]
    return Chart(title, x_label, y_label, series, **settings)


def _accuracy_and_speed(evaluated: Sequence[Row], timed: Sequence[Row]) -> Chart:
    """Take the speed from benchmarks where they fit; evaluations measure it, too, but less carefully."""
    rates: dict[tuple[object, str, str], tuple[float, float]] = {}
    for row in timed:
        rate, batch = number(row.get("samples_per_sec")), number(row.get("batch_size"))
        if rate is not None and batch is not None:
            key = (row.get("model"), _method(row), _schedule(row))
            rates[key] = max(rates.get(key, (0.0, 0.0)), (batch, rate))
    measured = {id(row): rates.get((row.get("model"), _method(row), _schedule(row))) for row in evaluated}
    title, up = "Accuracy and throughput", "top-1 accuracy, %"
    if any(measured.values()):
        note = "The throughput is that of repshift bench, at its largest batch size."
        benched = lambda row: (measured[id(row)] or (None, None))[1]  # noqa: E731
        return _chart(title, "images a second", up, evaluated, benched, _reads("top1"), note=note)
    note = "The throughput is that of the evaluation itself; repshift bench measures it more carefully."
    return _chart(title, "images a second", up, evaluated, _reads("samples_per_sec"), _reads("top1"), note=note)


def _benchmark(rows: Sequence[Row]) -> Iterable[Chart]:
    if len({row.get("batch_size") for row in rows}) > 1:
        words = lambda row: f"{_words(row)}, batch {row.get('batch_size')}"  # noqa: E731
        title, across, up = "Speed-up over the dense model", "batch size", "times as fast"
        yield _chart(title, across, up, rows, _reads("batch_size"), _reads("speedup"), words=words, note=LIMIT)
    else:
        title, across, up = "Throughput and work", "GMACs an image", "images a second"
        yield _chart(title, across, up, rows, _reads("gmacs"), _reads("samples_per_sec"), note=LIMIT)


def _ablations(rows: Sequence[Row]) -> Iterable[Chart]:
    studies = dict.fromkeys(str(row.get("study")) for row in rows if row.get("block") is not None)
    for study in studies:
        yield _chart(
            f"Study: {study}",
            "dropped after block",
            "points of accuracy against dense",
            [row for row in rows if str(row.get("study")) == study],
            _reads("block"),
            _reads("delta"),
            name=lambda row: str(row.get("setting")),
            words=lambda row: f"{row.get('setting')}, block {row.get('block')}",
            whole_steps=True,
        )
