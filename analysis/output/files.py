"""Writing results so that nothing is ever half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from repshift.errors import DataError


def output_folder(path: Path) -> Path:
    """Make a folder for results and check that it can be written to.

    Raises:
        DataError: If it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".repshift-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"Cannot write to {path} ({error.strerror}). Give a folder that can be written to.") from error
    return path


def output_file(path: Path) -> None:
    """Check that a file can be written, before anything is computed for it; its folder is made if needed.

    Raises:
        DataError: If it cannot.
    """
    output_folder(path.parent)
    if path.is_dir():
        raise DataError(f"Cannot write to {path}: it is a folder. Give the name of a file.")
    try:
        existed = path.exists()
        path.touch()
        if not existed:
            path.unlink()
    except OSError as error:
        raise DataError(f"Cannot write to {path} ({error.strerror}). Give another name.") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and move it there when it is complete; its folder is made if needed.

    Args:
        path: Where the file belongs.
        write: Writes it to the path it is given, which has the same ending.
    """
    output_file(path)
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece, as UTF-8."""

    def write(unfinished: Path) -> None:
        unfinished.write_text(text, encoding="utf-8")

    write_whole(path, write)
