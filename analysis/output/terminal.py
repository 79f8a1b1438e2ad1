"""What the commands write to: the terminal, and a bar of progress beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()
INTERRUPTED = 130  # the exit code by which shells know it


def note(text: str) -> None:
    """Print a line as it is: not coloured, not wrapped, and no bracket of a file's name read as markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


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
