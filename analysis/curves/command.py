"""``repshift curves``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repshift.analysis.output import options
from repshift.analysis.output.terminal import note


def curves(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS.json...", help="Results files of eval, and of bench if there are.")
    ],
    output: options.FigureFile = Path("curves.png"),
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", min=1, help="Of the benchmark. [default: its largest]")
    ] = None,
) -> None:
    """Draw accuracy against GMACs and against measured throughput, all methods on one figure.

    The points go beside the figure as NAME.points.csv.
    """
    from dataclasses import asdict

    from repshift.analysis.curves.figure import draw_curves
    from repshift.analysis.curves.points import collect
    from repshift.analysis.output.figures import check_figure_path, save_figure
    from repshift.analysis.output.files import all_or_none, output_file
    from repshift.analysis.output.results import Results, read_results, write_results

    table = output.parent / f"{output.stem}.points.csv"
    check_figure_path(output)
    output_file(table)
    points = collect([read_results(path) for path in results], batch_size)
    with all_or_none():
        save_figure(draw_curves(points), output)
        write_results(table, Results("curves", [asdict(point) for point in points]), "csv")
    untimed = [point for point in points if point.samples_per_sec is None]
    if untimed and len(untimed) < len(points):
        named = "; ".join(f"{point.model} {point.method} {point.schedule}".strip() for point in untimed)
        note(f"note: the benchmark has not timed {named}")
    note(f"figure: {output}   points: {table}")
