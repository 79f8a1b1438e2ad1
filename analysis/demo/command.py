"""``repshift demo``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from repshift.analysis.output import options
from repshift.analysis.output.terminal import console, note, progress_bar


class Shown(str, Enum):
    """What the demo shows."""

    IMAGES = "images"
    VIDEO = "video"


def demo(
    shown: Annotated[
        Shown, typer.Argument(metavar="[images|video]", help="Classifying images, or retrieval and answers of videos.")
    ] = Shown.IMAGES,
    output: options.ResultsFolder = Path("repshift-demo"),
) -> None:
    """Prune the embedded models, by the shift, its controls and by merging, and show what is kept.

    On 2,000 canvases, or with "video" on 400 small videos that are written as mp4 files.
    """
    if shown is Shown.VIDEO:
        _demo_video(output)
    else:
        _demo_images(output)


def _demo_images(output: Path) -> None:
    from repshift.analysis.demo.comparison import HEADINGS, LEGEND, SCHEDULES, cells, run_demo, verdicts

    with progress_bar() as progress:
        task = progress.add_task("2,000 canvases, 3 models, each by several methods", total=None)
        results = run_demo(output, lambda done, steps: progress.update(task, completed=done, total=steps))
    for name in SCHEDULES:
        own = [result for result in results if result.model == name]
        ends = [result.method == "dense" for result in own]
        _print_table(f"{name} on Cluttered MNIST, no retraining", HEADINGS, [cells(result) for result in own], ends)
    console.print(LEGEND, highlight=False)
    for line in verdicts(results):
        console.print(line, highlight=False)
    note(f"figures: {', '.join(f'{name}.png' for name in SCHEDULES)}   numbers: results.json   in {output}")


def _demo_video(output: Path) -> None:
    from repshift.analysis.demo.video_comparison import HEADINGS, LEGEND, cells, run_video_demo, verdicts

    with progress_bar() as progress:
        task = progress.add_task("400 videos, 2 models, each by several methods", total=None)
        results = run_video_demo(output, lambda done, steps: progress.update(task, completed=done, total=steps))
    following = [*(result.schedule for result in results[1:]), None]
    ends = [result.schedule != other for result, other in zip(results, following, strict=True)]
    rows = [cells(result) for result in results]
    _print_table("tiny_umt and tiny_umt_qa on moving digits, no retraining", HEADINGS, rows, ends)
    console.print(LEGEND, highlight=False)
    for line in verdicts(results):
        console.print(line, highlight=False)
    note(f"videos: videos   figures: video.png, video.gif   numbers: video.json   in {output}")


def _print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], ends: Sequence[bool]) -> None:
    """Print a table, with a line behind every row that ends a section."""
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("drop", "method") else "right", no_wrap=True)
    for row, end in zip(rows, ends, strict=True):
        table.add_row(*row, end_section=end)
    console.print(table)
