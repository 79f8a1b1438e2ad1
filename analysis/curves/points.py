"""Accuracy, work and speed of all methods, put together from the results files of eval and bench."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from repshift import Schedule
from repshift.analysis.output.results import Results, Row
from repshift.analysis.subjects.recipes import size_in_words
from repshift.errors import DataError, ScheduleError

DENSE = "dense"
EVAL, BENCH = "eval", "bench"
ACCURACIES = (EVAL, "probe")  # kinds of results that hold accuracies
OPERATIONS = ("mlp", "stage", "mixer")  # those by default


@dataclass(frozen=True)
class Point:
    """One model, dense or pruned in one way.

    Attributes:
        model: Its name.
        method: ``dense``, or by what was scored.
        schedule: What was dropped where; empty for the dense model. Of a smaller input its size, as ``176 px``.
        top1: Accuracy in percent.
        top1_error: Its standard error in points; ``None`` if the number of images is not known.
        gmacs: Billions of multiply-accumulates an image.
        samples_per_sec: Images a second; ``None`` if no benchmark has measured this point.
        measured_by: ``bench``, or ``eval``, which times each model by itself.
        batch_size: At which it was timed.
        precision: In which it was timed.
        device: On which it was timed.
        img_size: Pixels a side of the images, both of the accuracy and of the timing; ``None`` if it is not known.
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
    img_size: int | None = None


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
        DataError: If there is no accuracy among them, a benchmark fits none of the accuracies or timed images of
            another size, two results contradict each other, or one is damaged.
    """
    results = list(files)
    points: dict[tuple[str, str, str], Point] = {}
    for one in results:
        for point in accuracies(one) if one.kind in ACCURACIES else ():
            known = points.setdefault(_key(point), point)
            if known.top1 != point.top1:
                raise DataError(
                    f"{_named(point)} has two accuracies, {known.top1} and {point.top1}. Give results of one data set."
                )
            if _differ(known.img_size, point.img_size):
                raise DataError(
                    f"{_named(point)} was evaluated at {known.img_size} and at {point.img_size} pixels. Give results "
                    "of one size."
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


def accuracies(results: Results) -> list[Point]:
    """Read the accuracies of results of ``repshift eval``, without the models that failed.

    Raises:
        DataError: If one is damaged.
    """
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
    top1, samples = _number(row, "top1", most=100), _count(row, "samples")
    speed = _speed(row, "samples_per_sec")
    point = Point(
        model=row["model"],
        method=method_of(row),
        schedule=schedule_in_words(row),
        top1=top1,
        top1_error=_error(top1, samples),
        gmacs=_number(row, "gmacs"),
        samples_per_sec=speed,
        measured_by=EVAL if speed else None,
        batch_size=_count(row, "batch_size"),
        precision=row.get("precision"),
        device=device,
        img_size=_count(row, "img_size"),
    )
    if row.get("dense_top1") is None or not point.schedule:
        return [point]
    speed, dense = _speed(row, "dense_samples_per_sec"), _number(row, "dense_top1", most=100)
    return [
        replace(
            point,
            method=DENSE,
            schedule="",
            top1=dense,
            top1_error=_error(dense, samples),
            gmacs=_number(row, "dense_gmacs"),
            samples_per_sec=speed,
            measured_by=EVAL if speed else None,
        ),
        point,
    ]


def _number(row: Row, name: str, most: float = math.inf) -> float:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most or value == math.inf:
        raise ValueError(f"{name} is {value!r}, expected a number from 0 {'on' if most == math.inf else f'to {most}'}")
    return float(value)


def _count(row: Row, name: str) -> int | None:
    value = row.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} is {value!r}, expected a whole number from 1 on")
    return value


def _speed(row: Row, name: str) -> float | None:
    """Return images a second; 0, which is what eval writes where it timed nothing, is none."""
    return None if row.get(name) is None else _number(row, name) or None


def _differ(one: int | None, other: int | None) -> bool:
    """Say whether two numbers that are known are different."""
    return None not in (one, other) and one != other


def method_of(row: Row) -> str:
    """Name a method so that settings other than the paper's are methods of their own."""
    method = str(row.get("method") or DENSE)
    others = [row.get("operation") if row.get("operation") not in (None, *OPERATIONS) else None]
    others += [row.get("distance") if row.get("distance") not in (None, "l2") else None]
    others += ["residual" if row.get("residual") else None]
    others += [row.get("pruner") if row.get("pruner") != method else None]
    recipe = row.get("recipe")  # not in files of before it was written, nor of the dense model
    restored = recipe.get("restore") if isinstance(recipe, dict) else None
    others += [f"restored {restored}" if isinstance(restored, str) else "restored" if restored else None]
    return " ".join([method, *(str(other) for other in others if other)])


def schedule_in_words(row: Row) -> str:
    """Write in one way what was dropped where, and the size of the input where that was made smaller.

    Raises:
        ScheduleError: If a schedule cannot be read.
    """
    text, size = row.get("schedule"), row.get("input_size")
    return ", ".join([*([str(Schedule.of(text))] if text else []), *([f"{size_in_words(size)} px"] if size else [])])


def _error(top1: float, samples: Any) -> float | None:
    return (top1 * (100 - top1) / samples) ** 0.5 if samples else None


def _key(point: Point) -> tuple[str, str, str]:
    return point.model, point.method, point.schedule


def _named(point: Point) -> str:
    return f"{point.model}, {point.method}{', ' if point.schedule else ''}{point.schedule}"


def _with_speed(points: Sequence[Point], benchmarks: Sequence[Results], batch_size: int | None) -> list[Point]:
    """Give points the throughput of a benchmark; those that it has not measured get none."""
    rows = [timing for one in benchmarks for timing in _timings(one)]
    sizes = sorted({row["batch_size"] for row in rows})
    wanted = batch_size or (sizes[-1] if sizes else None)
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["batch_size"] == wanted:
            found.setdefault((str(row.get("model")), method_of(row), schedule_in_words(row)), []).append(row)
    if not any(_key(point) in found for point in points):
        raise DataError(
            f"No benchmark at batch {wanted} has timed a model, method and schedule whose accuracy is known; there are "
            f"batches of {', '.join(map(str, sizes)) or 'no size'}. Give --batch-size, or bench what was evaluated."
        )
    return [_timed(point, found[_key(point)]) if _key(point) in found else _untimed(point) for point in points]


def _timings(results: Results) -> list[Row]:
    """Leave out what a benchmark could not time, and check the rest."""
    timings: list[Row] = []
    for row in results.rows:
        try:
            if _speed(row, "samples_per_sec") and _count(row, "batch_size"):
                _count(row, "img_size")
                schedule_in_words(row)
                runtime = row.get("runtime") or ("compile" if row.get("torchcompile") else "eager")  # of older files
                timings.append({**row, "runtime": runtime, "device": results.environment.get("device")})
        except (TypeError, ValueError, ScheduleError) as error:
            raise DataError(
                f"A line of the benchmark's results is damaged ({type(error).__name__}: {error}). Measure again."
            ) from error
    return timings


def _timed(point: Point, rows: Sequence[Row]) -> Point:
    """Take the median of what several benchmarks measured in the same way, as the dense model is with each schedule."""
    for setting in ("precision", "attention", "channels_last", "runtime", "img_size", "device"):
        values = list(dict.fromkeys(str(row.get(setting)) for row in rows))
        if len(values) > 1:
            raise DataError(
                f"{_named(point)} was timed with {setting} {' and '.join(values)}. Give benchmarks of one setting."
            )
    img_size = rows[0].get("img_size")
    if _differ(point.img_size, img_size):
        raise DataError(
            f"{_named(point)} was evaluated at {point.img_size} pixels and timed at {img_size}. Give a benchmark of "
            f"the same size (repshift bench --img-size {point.img_size}), or evaluate at that one."
        )
    return replace(
        point,
        img_size=point.img_size or img_size,
        samples_per_sec=median(row["samples_per_sec"] for row in rows),
        measured_by=BENCH,
        batch_size=rows[0]["batch_size"],
        precision=rows[0].get("precision"),
        device=rows[0].get("device"),
    )


def _untimed(point: Point) -> Point:
    return replace(point, samples_per_sec=None, measured_by=None, batch_size=None, precision=None, device=None)
