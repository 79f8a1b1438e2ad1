"""``repshift bench --suite``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from repshift.analysis.output.terminal import interrupted, note, progress_bar, show_table
from repshift.errors import DataError, UnknownNameError

if TYPE_CHECKING:
    from repshift.analysis.throughput.suite_runs import Measured

ALLOWED = ("suite", "page", "minutes", "threads", "memory", "results_file", "results_format", "resume")
SHOWN = ("method", "samples_per_sec", "step_time", "gmacs", "peak_memory", "speedup", "efficiency", "matmul_share")


def refuse_other_options(context: typer.Context) -> None:
    """Refuse what a suite says itself.

    Raises:
        DataError: If another option was given.
    """
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in ALLOWED and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise DataError(f"--suite says which models are timed and how, so leave out {', '.join(given)}.")


def bench_suite(
    name: str,
    page: Path | None,
    minutes: float | None,
    threads: int | None,
    memory: bool,
    results_file: Path | None,
    results_format: str | None,
    resume: bool | None,
) -> None:
    """Measure a suite, show its tables, and write results file and page."""
    import torch

    from repshift.analysis.output.files import all_or_none, write_text
    from repshift.analysis.output.partial import settle_unfinished, unfinished_folder
    from repshift.analysis.output.results import Results, check_results_files, write_results
    from repshift.analysis.subjects.memory import keep_freed_memory
    from repshift.analysis.throughput.suite_page import suite_page
    from repshift.analysis.throughput.suite_runs import forget_cases, run_suite
    from repshift.analysis.throughput.suites import SUITES
    from repshift.registry import suggest

    if name not in SUITES:
        raise UnknownNameError(f"Unknown --suite {name!r}. {suggest(name, SUITES)}")
    check_results_files(results_file, results_format, page, "--page")
    settle_unfinished(unfinished_folder(results_file), resume)
    torch.set_num_threads(threads or torch.get_num_threads())
    suite = SUITES[name]
    if suite.device == "cpu":
        keep_freed_memory()
    try:
        with progress_bar() as progress:
            task = progress.add_task("", total=len(suite.cases))
            measured = run_suite(
                suite,
                results_file,
                minutes=minutes,
                memory=memory,
                observe=lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
            )
    except KeyboardInterrupt:
        raise interrupted("the same command with --resume goes on" if results_file else "nothing was kept") from None
    _show(measured)
    with all_or_none():
        if results_file is not None:
            write_results(results_file, Results("bench", measured.rows, measured.environment), results_format)
        if page is not None:
            given = {"threads": threads, "results-file": results_file, "page": page}
            said = [f"--{option} {value}" for option, value in given.items() if value is not None]
            said += [] if memory else ["--no-memory"]
            write_text(page, suite_page(f"repshift bench --suite {name} {' '.join(said)}", measured))
    for file in filter(None, (results_file, page)):
        note(f"results: {file}")
    if measured.left:
        going_on = "; the same command with --resume goes on" if results_file else ""
        note(f"{measured.left} of {len(suite.cases)} cases were not begun in {minutes:g} minutes{going_on}")
    else:
        forget_cases(results_file)


def _show(measured: Measured) -> None:
    from repshift.analysis.throughput.suite_page import case_of

    for case, rows in case_of(measured.rows).items():
        show_table(case, [{key: "" if row[key] is None else str(row[key]) for key in SHOWN} for row in rows])
    for case, why in measured.failed.items():
        note(f"not measured: {case}: {why}")
