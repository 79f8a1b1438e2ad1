"""What the commands write to: the terminal, and a bar of progress beside it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console()
INTERRUPTED = 130  # the exit code by which shells know it


def note(text: str) -> None:
    """Print a line as it is: not coloured, not wrapped, and no bracket of a file's name read as markup."""
    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)


def show_table(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print a table, the first column to the left; what is no terminal has no width, and gets all of it.

    Args:
        title: Stands above it.
        rows: By heading; each row has all of them.
    """
    table = Table(title=printable(title), title_justify="left")
    for number, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row.values()))
    wide = console if console.is_terminal else Console(width=200)
    wide.print(table, highlight=False)


def with_error(row: Mapping[str, Any], name: str, scale: float = 1, sign: str = "", digits: int = 2) -> str:
    """Write a number of a result with its standard error, which is called like it and ``_error``.

    Args:
        row: Of the results.
        name: Of the number; nothing is written where there is none.
        scale: What both are multiplied by.
        sign: ``+`` shows it of positive numbers, too.
        digits: Behind the point.
    """
    value, error = row.get(name), row.get(f"{name}_error")
    if value is None:
        return ""
    return f"{scale * value:{sign}.{digits}f}" + ("" if error is None else f" ± {scale * error:.{digits}f}")


def note_draws(rows: Sequence[Mapping[str, Any]], measure: str, scale: float = 1) -> None:
    """Say of methods that are drawn at random how far their draws lie apart."""
    for row in rows:
        if "seeds" in row:
            spread = scale * row[f"{measure}_spread"]
            note(f"{row['method']}: mean of {row['seeds']} draws, which lie {spread:.2f} (standard deviation) apart.")


def fail(message: str) -> int:
    """Say in one line on standard error what went wrong, and return the exit code for it."""
    with suppress(OSError):  # where even that cannot be said, the exit code does
        errors = Console(stderr=True, soft_wrap=True)
        errors.print(f"error: {printable(message)}", style="red", markup=False, highlight=False)
    return 1


def printable(text: str) -> str:
    """Write a text in one line: escape what is no letter or sign, as names of files may hold, and the ends of lines."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def escape_what_cannot_be_shown() -> None:
    """Let letters that the terminal's encoding lacks be escaped instead of refused."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Pass over what is still to be printed, where nothing can be: the interpreter would complain in the end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note_random_weights(pretrained: bool, checkpoint: Path | str | None, *models: str) -> None:
    """Say that a model has learned nothing, if it was given neither the published weights nor a file or folder of some.

    Args:
        pretrained: Whether it was given the published ones.
        checkpoint: The file.
        *models: Their names; of folders that hold a model nothing is said.
    """
    from repshift.folders import folder_of

    if not pretrained and checkpoint is None and any(folder_of(model) is None for model in models):
        note("note: the weights are random; give --pretrained or --checkpoint for a trained model.")


def note_data(notes: Iterable[str]) -> None:
    """Say what was noticed of the data, a line each."""
    for text in notes:
        note(f"note: {text}")


def interrupted(outcome: str, *, shown: bool = True) -> typer.Exit:
    """Make what a command that was interrupted ends with.

    Args:
        outcome: What is left, or how to go on.
        shown: Of several processes, only the first one says it.
    """
    if shown:
        note(f"interrupted; {outcome}")
    return typer.Exit(INTERRUPTED)


def progress_bar(*, shown: bool = True) -> Progress:
    """Make a bar of progress on standard error, which disappears when it is done; without a terminal there is none.

    Args:
        shown: Of several processes, only the first one shows its progress.
    """
    errors = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,  # what is left on the screen is the result, or the error
        disable=not (shown and errors.is_terminal),  # in a file it would leave an empty line
    )
