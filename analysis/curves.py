"""Accuracy against work and against speed, all methods on one figure, from the results files of eval and bench."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from repshift import Schedule
from repshift.analysis.palette import BLACK, MARKERS, colours_of
from repshift.analysis.result_files import Results, Row
from repshift.errors import DataError, ScheduleError

DENSE = "dense"
EVAL, BENCH = "eval", "bench"
OPERATIONS = ("mlp", "stage", "mixer")  # those by default


@dataclass(frozen=True)
class Point:
    """One model, dense or pruned in one way.

    Attributes:
        model: Its name.
        method: ``dense``, or by what was scored.
        schedule: What was dropped where; empty for the dense model.
        top1: Accuracy in percent.
        top1_error: Its standard error in points; ``None`` if the number of images is not known.
        gmacs: Billions of multiply-accumulates an image.
        samples_per_sec: Images a second; ``None`` if no benchmark has measured this point.
        measured_by: ``bench``, or ``eval``, which times each model by itself.
        batch_size: At which it was timed.
        precision: In which it was timed.
        device: On which it was timed.
    """

    model: str
    method: str
    schedule: str
    top1: float
    top1_error: float | None
    gmacs: float
    samples_per_sec: float | None
    measured_by: str | None
    batch_size: int | None
    precision: str | None
    device: str | None


def collect(files: Iterable[Results], batch_size: int | None = None) -> list[Point]:
    """Put results together.

    Accuracies come from ``eval``. Throughput comes from ``bench`` where any such results are given, found by model,
    method and schedule; else from ``eval``.

    Args:
        files: What was read, in any order.
        batch_size: Of the benchmark; by default its largest.

    Returns:
        One point for each model, method and schedule, dense first.

    Raises:
        DataError: If there is no accuracy among them, a benchmark fits none of the accuracies, or two results
            contradict each other.
    """
    results = list(files)
    points: dict[tuple[str, str, str], Point] = {}
    for one in results:
        for point in _accuracies(one) if one.kind == EVAL else ():
            known = points.setdefault(_key(point), point)
            if known.top1 != point.top1:
                raise DataError(
                    f"{_named(point)} has two accuracies, {known.top1} and {point.top1}. Give results of one data set."
                )
    if not points:
        kinds = ", ".join(sorted({one.kind for one in results})) or "none"
        raise DataError(
            f"There is no accuracy in these results (of {kinds}). Give at least one file of repshift eval "
            "--results-file NAME.json."
        )
    speeds = [one for one in results if one.kind == BENCH]
    found = _with_speed(list(points.values()), speeds, batch_size) if speeds else list(points.values())
    return sorted(found, key=lambda point: (point.model, point.method != DENSE, point.method, -point.gmacs))


def _accuracies(results: Results) -> list[Point]:
    points = []
    for row in results.rows:
        if "error" in row:
            continue  # a model that eval could not evaluate
        try:
            points += _points_of(row, results.environment.get("device"))
        except (KeyError, TypeError, ValueError, ScheduleError) as error:
            raise DataError(
                f"A line of the eval results is damaged ({type(error).__name__}: {error}). Evaluate again."
            ) from error
    return points


def _points_of(row: Row, device: str | None) -> list[Point]:
    top1, samples = float(row["top1"]), row.get("samples")
    point = Point(
        model=row["model"],
        method=method_of(row),
        schedule=_schedule(row.get("schedule")),
        top1=top1,
        top1_error=_error(top1, samples),
        gmacs=float(row["gmacs"]),
        samples_per_sec=row.get("samples_per_sec") or None,
        measured_by=EVAL if row.get("samples_per_sec") else None,
        batch_size=row.get("batch_size"),
        precision=row.get("precision"),
        device=device,
    )
    if row.get("dense_top1") is None or not point.schedule:
        return [point]
    speed, dense = row.get("dense_samples_per_sec") or None, float(row["dense_top1"])
    return [
        replace(
            point,
            method=DENSE,
            schedule="",
            top1=dense,
            top1_error=_error(dense, samples),
            gmacs=float(row["dense_gmacs"]),
            samples_per_sec=speed,
            measured_by=EVAL if speed else None,
        ),
        point,
    ]


def method_of(row: Row) -> str:
    """Name a method so that settings other than the paper's are methods of their own."""
    method = str(row.get("method") or DENSE)
    others = [row.get("operation") if row.get("operation") not in (None, *OPERATIONS) else None]
    others += [row.get("distance") if row.get("distance") not in (None, "l2") else None]
    others += ["residual" if row.get("residual") else None, row.get("pruner")]
    return " ".join([method, *(str(other) for other in others if other)])


def _schedule(text: Any) -> str:
    return str(Schedule.of(text)) if text else ""


def _error(top1: float, samples: Any) -> float | None:
    return (top1 * (100 - top1) / samples) ** 0.5 if samples else None


def _key(point: Point) -> tuple[str, str, str]:
    return point.model, point.method, point.schedule


def _named(point: Point) -> str:
    return f"{point.model}, {point.method}{', ' if point.schedule else ''}{point.schedule}"


def _with_speed(points: Sequence[Point], benchmarks: Sequence[Results], batch_size: int | None) -> list[Point]:
    """Give points the throughput of a benchmark; those that it has not measured get none."""
    rows = [{**row, "device": one.environment.get("device")} for one in benchmarks for row in one.rows]
    sizes = sorted({row["batch_size"] for row in rows if isinstance(row.get("batch_size"), int)})
    wanted = batch_size or (sizes[-1] if sizes else None)
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.get("batch_size") == wanted and row.get("samples_per_sec"):
            key = (str(row.get("model")), method_of(row), _schedule(row.get("schedule")))
            found.setdefault(key, []).append(row)
    if not any(_key(point) in found for point in points):
        raise DataError(
            f"No benchmark at batch {wanted} has timed a model, method and schedule whose accuracy is known; there are "
            f"batches of {', '.join(map(str, sizes)) or 'no size'}. Give --batch-size, or bench what was evaluated."
        )
    return [_timed(point, found[_key(point)]) if _key(point) in found else _untimed(point) for point in points]


def _timed(point: Point, rows: Sequence[Row]) -> Point:
    """Take the median of what several benchmarks measured in the same way, as the dense model is with each schedule."""
    for setting in ("precision", "attention", "channels_last", "torchcompile", "img_size", "device"):
        values = list(dict.fromkeys(str(row.get(setting)) for row in rows))
        if len(values) > 1:
            raise DataError(
                f"{_named(point)} was timed with {setting} {' and '.join(values)}. Give benchmarks of one setting."
            )
    return replace(
        point,
        samples_per_sec=median(row["samples_per_sec"] for row in rows),
        measured_by=BENCH,
        batch_size=rows[0]["batch_size"],
        precision=rows[0].get("precision"),
        device=rows[0].get("device"),
    )


def _untimed(point: Point) -> Point:
    return replace(point, samples_per_sec=None, measured_by=None, batch_size=None, precision=None, device=None)


# --- the figure -------------------------------------------------------------------------------------------------


def draw_curves(points: Sequence[Point]) -> Figure:
    """Draw accuracy against GMACs and against throughput: one colour a method, one marker a model.

    Lines join the schedules of one method, from the dense model on. Bars are one standard error of the accuracy.
    """
    timed = [point for point in points if point.samples_per_sec is not None]
    figure = Figure(figsize=(5.2 * (1 + bool(timed)) + 1.6, 4), layout="constrained")
    axes = figure.subplots(1, 1 + bool(timed), squeeze=False, sharey=True)[0]
    _draw_points(axes[0], points, "gmacs")
    axes[0].set_xlabel("GMACs an image")
    axes[0].set_ylabel("top-1 accuracy, %")
    if timed:
        _draw_points(axes[1], timed, "samples_per_sec")
        axes[1].set_xlabel(_speed_label(timed))
    methods, models = _names(points)
    colours = colours_of(methods)
    handles = [Line2D([], [], color=colours[method], marker="o", linestyle="", label=method) for method in methods]
    handles += [
        Line2D([], [], color="none", marker=MARKERS[place % len(MARKERS)], markeredgecolor=BLACK, label=model)
        for place, model in enumerate(models)
    ]
    axes[-1].legend(handles=handles, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _names(points: Sequence[Point]) -> tuple[list[str], list[str]]:
    methods = list(dict.fromkeys(point.method for point in points))
    return methods, list(dict.fromkeys(point.model for point in points))


def _draw_points(axis: Axes, points: Sequence[Point], along: str) -> None:
    methods, models = _names(points)
    colours = colours_of(methods)
    for place, model in enumerate(models):
        marker = MARKERS[place % len(MARKERS)]
        dense = [point for point in points if point.model == model and point.method == DENSE]
        for method in methods:
            own = [point for point in points if point.model == model and point.method == method]
            if not own:
                continue
            joined = own if method == DENSE else sorted([*dense, *own], key=lambda point: point.gmacs)
            axis.plot(
                [getattr(point, along) for point in joined],
                [point.top1 for point in joined],
                color=colours[method],
                linewidth=1,
                alpha=0.6,
            )
            axis.errorbar(
                [getattr(point, along) for point in own],
                [point.top1 for point in own],
                [point.top1_error or 0 for point in own],
                color=colours[method],
                linestyle="",
                elinewidth=0.8,
                marker=marker,
                markersize=9 if method == DENSE else 6,
                label=f"{model}, {method}",
            )
    axis.grid(alpha=0.25)


def _speed_label(points: Sequence[Point]) -> str:
    by = " and ".join(dict.fromkeys(str(point.measured_by) for point in points))
    how = [
        ", ".join(dict.fromkeys(str(value) for value in values if value))
        for values in zip(
            *((f"batch {point.batch_size}", point.precision, point.device) for point in points), strict=True
        )
    ]
    return "images a second (" + "; ".join([f"measured by {by}", *filter(None, how)]) + ")"
