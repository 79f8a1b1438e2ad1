"""``repshift demo``."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from repshift.analysis.output import options
from repshift.analysis.output.terminal import console, note, progress_bar


def demo(
    output: options.ResultsFolder = Path("repshift-demo"),
) -> None:
    """Prune the embedded models on 2,000 canvases, by the shift, its controls and by merging, and show what is kept."""
    from repshift.analysis.demo.comparison import HEADINGS, LEGEND, SCHEDULES, cells, run_demo, verdicts

    with progress_bar() as progress:
        task = progress.add_task("2,000 canvases, 3 models, each by several methods", total=None)
        results = run_demo(output, lambda done, steps: progress.update(task, completed=done, total=steps))
    for name in SCHEDULES:
        table = Table(title=f"{name} on Cluttered MNIST, no retraining", title_justify="left")
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading in ("drop", "method") else "right", no_wrap=True)
        for result in results:
            if result.model == name:
                table.add_row(*cells(result), end_section=result.method == "dense")
        console.print(table)
    console.print(LEGEND, highlight=False)
    for line in verdicts(results):
        console.print(line, highlight=False)
    note(f"figures: {', '.join(f'{name}.png' for name in SCHEDULES)}   numbers: results.json   in {output}")
