"""The methods of one model as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from repshift.analysis.evaluation.records import Row
from repshift.analysis.output.terminal import console, note
from repshift.analysis.subjects.recipes import size_in_words

WIDE = 100  # columns that the whole table needs
AGAINST = {"- dense": "delta_top1", "- random": "over_random", "- lowres": "over_lowres"}


def show_methods(rows: Sequence[Row]) -> None:
    """Print a line for each method: work, accuracy, and the gain on the dense model and the controls."""
    if not rows:
        return
    schedule = next((row["schedule"] for row in rows if row["schedule"]), "")
    title = ", ".join(filter(None, [rows[0]["model"], schedule, f"{rows[0]['samples']} samples"]))
    table = Table(title=title, title_justify="left")
    shown = {heading: key for heading, key in AGAINST.items() if any(key in row for row in rows)}
    for heading in ("method", "GMACs", "Acc@1", "Acc@5", *shown):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for row in rows:
        spread = f" ± {row['top1_spread']:.2f}" if "top1_spread" in row else ""
        against = [_gain(row, key) for key in shown.values()]
        table.add_row(_method(row), f"{row['gmacs']:.3f}", f"{row['top1']:.2f}{spread}", f"{row['top5']:.2f}", *against)
    wide = console if console.is_terminal else Console(width=max(WIDE, console.width))
    wide.print(table)
    drawn = next((row["seeds"] for row in rows if "seeds" in row), None)
    spread = f" random: mean and standard deviation of {drawn} draws." if drawn else ""
    if shown:
        note(f"Differences in points of Acc@1, with the standard error of the paired difference.{spread}")


def _method(row: Row) -> str:
    size = f" ({size_in_words(row['input_size'])} px)" if row.get("input_size") else ""
    pruner = f", {row['pruner']}" if row.get("pruner") and row["pruner"] != row["method"] else ""
    return f"{row['method']}{pruner}{size}"


def _gain(row: Row, key: str) -> str:
    return f"{row[key]:+.2f} ({row[f'{key}_error']:.2f})" if key in row else ""
