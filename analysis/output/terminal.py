"""What the commands write to: the terminal, and a bar of progress beside it."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()


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
