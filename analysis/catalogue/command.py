"""``repshift models``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from repshift.analysis.output import options
from repshift.analysis.output.terminal import interrupted, note, progress_bar, show_table

SHOWN = ("model", "family", "state", "blocks", "schedule", "kept", "numbers", "why")


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(help="Names with wildcards and commas, as '*deit*,resnet50' or torchvision/*. [default: all]"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run each without weights, and one of each kind with random ones.")
    ] = False,
    page: Annotated[Path | None, typer.Option(help="Write a page of counts by family here, in Markdown.")] = None,
    results_file: options.ResultsFile = None,
    results_format: options.ResultsFormat = None,
    resume: options.Resume = None,
) -> None:
    """List which models of timm and torchvision can be pruned, which tracked, and why not.

    No weights are loaded.
    """
    from repshift.analysis.catalogue.checking import WRONG
    from repshift.analysis.catalogue.page import page_of
    from repshift.analysis.catalogue.records import forget_rows, look_at_all
    from repshift.analysis.catalogue.sources import model_names
    from repshift.analysis.output.files import all_or_none, write_text
    from repshift.analysis.output.partial import settle_unfinished, unfinished_folder
    from repshift.analysis.output.results import Results, check_results_files, environment, write_results

    check_results_files(results_file, results_format, page, "--page")
    names = model_names(pattern)
    settle_unfinished(unfinished_folder(results_file), resume)
    try:
        with progress_bar() as progress:
            task = progress.add_task("", total=len(names))
            rows = look_at_all(
                names,
                check,
                results_file,
                lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
            )
    except KeyboardInterrupt:
        raise interrupted("the same command with --resume goes on" if results_file else "nothing was kept") from None
    versions = {name: value for name, value in environment().items() if name in ("repshift", "torch", "timm")}
    with all_or_none():
        if results_file is not None:
            write_results(results_file, Results("models", rows, versions), results_format)
        if page is not None:
            write_text(page, page_of(rows, ", ".join(f"{name} {value}" for name, value in versions.items())))
    forget_rows(results_file)
    shown = [name for name in SHOWN if any(row[name] for row in rows)]
    show_table(f"{len(rows)} models", [{name: str(row[name]) for name in shown} for row in rows])
    counts = Counter(row["state"] for row in rows)
    note(", ".join(f"{number} {state}" for state, number in counts.items()))
    for file in filter(None, (results_file, page)):
        note(f"results: {file}")
    if counts[WRONG]:
        raise typer.Exit(1)
