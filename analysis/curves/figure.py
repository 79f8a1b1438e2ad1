"""Accuracy against work and against speed, all methods on one figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from repshift.analysis.curves.points import DENSE, Point
from repshift.analysis.output.figures import plain_label
from repshift.analysis.output.palette import BLACK, MARKERS, colours_of


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
        axes[1].set_xlabel(plain_label(_speed_label(timed), longest=300))
    methods, models = _names(points)
    colours = colours_of(methods)
    handles = [
        Line2D([], [], color=colours[method], marker="o", linestyle="", label=plain_label(method)) for method in methods
    ]
    handles += [
        Line2D(
            [], [], color="none", marker=MARKERS[place % len(MARKERS)], markeredgecolor=BLACK, label=plain_label(model)
        )
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
                label=plain_label(f"{model}, {method}"),
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
