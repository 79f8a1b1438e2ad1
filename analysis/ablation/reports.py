"""Tables, files and a figure of an ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repshift.analysis.ablation.points import Point
from repshift.analysis.ablation.settings import STUDIES
from repshift.analysis.output.figures import save_figure
from repshift.analysis.output.files import all_or_none, write_text
from repshift.analysis.output.paired import MEANING, verdict
from repshift.analysis.output.results import Results, write_results
from repshift.analysis.subjects.methods import LOWRES, RANDOM

WHAT = {
    "operation": "whose change is the shift",
    "distance": "how the change is measured",
    "residual": "x + F(x) or F(x) compared with x",
    "score": "by which score",
    "half": "half is dropped; which half of the ranking stays",
}
LEGEND = (
    "Top-1 in percent; in brackets how many tokens go (positions, of a map) after that one block, counted from zero, "
    "and after no other. Controls: random (mean and standard deviation of its draws), norm, and lowres, the dense "
    f"model on a smaller input of no more GMACs than dropping. {MEANING}"
)
GREYS = {RANDOM: "0.45", "norm": "0.7", LOWRES: "0.85"}  # of the controls


def studies_of(points: Sequence[Point]) -> list[str]:
    """List the studies that have results, in order."""
    return [study for study in STUDIES if any(point.study == study for point in points)]


def table_of(points: Sequence[Point], study: str, unit: str = "block") -> tuple[list[str], list[list[str]]]:
    """Arrange a study as a table: a line for each setting, a column for each block, the mean of the blocks last.

    Args:
        points: From :func:`repshift.analysis.ablation.points.run_ablation`.
        study: Which study.
        unit: What the blocks of this model are called.

    Returns:
        Headings and rows.
    """
    blocks = {point.block: point.dropped for point in points if point.study == study and point.setting != LOWRES}
    headings = [study, *(f"{unit} {block} (-{dropped})" for block, dropped in blocks.items()), "mean"]
    rows = []
    for setting, line in _lines(points, study).items():
        top1 = {point.block: point.top1 for point in line}
        mean = sum(top1.values()) / len(top1)
        # a mean over other blocks than those of the other lines would compare what cannot be compared
        spread = {point.block: "" if point.top1_spread is None else f" ± {point.top1_spread:.1f}" for point in line}
        cells = [f"{top1[block]:.1f}{spread[block]}" if block in top1 else "" for block in blocks]
        rows.append([setting, *cells, f"{mean:.1f}" if len(top1) == len(blocks) else ""])
    return headings, rows


def summary(points: Sequence[Point]) -> str:
    """Say how well the dense model does and how sure the numbers are."""
    dense = points[0]
    largest = max(point.top1_error for point in points)
    return f"dense: {dense.top1:.1f} on {dense.samples} images; standard errors are at most {largest:.1f}."


def verdicts(points: Sequence[Point]) -> list[str]:
    """Say in words how the shift by default compares with the controls, for better or worse.

    A paired difference of less than two standard errors is no difference.
    """
    lines = {}
    for point in points:
        if point.setting in ("l2", "residual=False", "shift", "shift, top"):
            pairs = (
                (point.over_random, point.over_random_error, "random"),
                (point.over_norm, point.over_norm_error, "norm"),
                (point.over_lowres, point.over_lowres_error, LOWRES),
            )
            told = [verdict(gained, error or 0.0, control) for gained, error, control in pairs if gained is not None]
            lines[str(point.drop)] = f"{point.drop}: the shift " + " and ".join(told)
    return list(lines.values())


def write_ablation(
    folder: Path, points: Sequence[Point], environment: Mapping[str, Any], unit: str = "block"
) -> list[Path]:
    """Write ``ablation.csv``, ``ablation.json``, ``ablation.md`` and ``ablation.png``: all of them, or none.

    Returns:
        The files.
    """
    results = Results("ablate", [asdict(point) for point in points], environment)
    table, data, page, figure = (folder / f"ablation.{ending}" for ending in ("csv", "json", "md", "png"))
    with all_or_none():
        save_figure(draw_ablation(points, unit), figure)
        write_results(table, results)
        write_results(data, results)
        write_text(page, as_page(points, environment, unit))
    return [table, data, page, figure]


def as_page(points: Sequence[Point], environment: Mapping[str, Any], unit: str = "block") -> str:
    """Write the tables of all studies as Markdown, with what they were measured with below."""
    lines = [LEGEND, "", summary(points), ""]
    for study in studies_of(points):
        headings, rows = table_of(points, study, unit)
        cells = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
        lines += [*(f"| {' | '.join(row)} |" for row in cells), ""]
    lines += [*(f"- {line}" for line in verdicts(points)), ""]
    measured = ", ".join(f"{name} {value}" for name, value in environment.items())
    return "\n".join([*lines, f"Measured with {measured}.", ""])


def draw_ablation(points: Sequence[Point], unit: str = "block") -> Figure:
    """Draw a panel for each study: accuracy and its standard error over blocks, a line for each setting.

    Args:
        points: From :func:`repshift.analysis.ablation.points.run_ablation`, the dense model first.
        unit: What the blocks of this model are called.
    """
    studies = studies_of(points)
    columns = 2 if len(studies) in (2, 4) else min(3, len(studies))
    rows = -(-len(studies) // columns)
    figure = Figure(figsize=(4.2 * columns, 4.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel, study in zip(panels.flat, studies, strict=False):
        _draw_study(panel, points, study)
        panel.set_xlabel(f"{unit} after which tokens go, counted from zero", fontsize=8)
    for panel in panels.flat[len(studies) :]:
        panel.set_axis_off()
    return figure


def _draw_study(panel: Axes, points: Sequence[Point], study: str) -> None:
    blocks = sorted({point.block for point in points if point.study == study and point.block is not None})
    lines = _lines(points, study)
    apart = 0.3 / len(lines) * min((later - earlier for earlier, later in pairwise(blocks)), default=1)
    colours: dict[str, str] = {}
    for number, (setting, line) in enumerate(lines.items()):
        kind, top = setting.split(",")[0], line[0].keep != "bottom"
        control = kind in GREYS
        panel.errorbar(
            # side by side, since several settings often come to the same
            [(point.block or 0) + apart * (number - (len(lines) - 1) / 2) for point in line],
            [point.top1 for point in line],
            yerr=[point.top1_error for point in line],
            color=GREYS[kind] if control else colours.setdefault(kind, f"C{len(colours)}"),
            linestyle="-" if top else ":",
            linewidth=2.5 if control else 1.2,
            elinewidth=1,
            marker=("^" if top else "v") if study == "half" else "o",
            markersize=5,
            zorder=2 if control else 3,
            label=setting,
        )
    panel.axhline(points[0].top1, color="black", linestyle="--", linewidth=1, label="dense", zorder=1)
    panel.set_title(f"{study}: {WHAT[study]}", fontsize=9)
    panel.set_xticks(blocks)
    panel.set_ylabel("top-1 %", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3)
    # below the axis labels, where no line runs
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=7.5, frameon=False)


def _lines(points: Sequence[Point], study: str) -> dict[str, list[Point]]:
    """Group the points of a study by setting, block by block."""
    lines: dict[str, list[Point]] = {}
    for point in points:
        if point.study == study:
            lines.setdefault(point.setting, []).append(point)
    return lines
