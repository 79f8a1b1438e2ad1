"""Writing results so that nothing is ever half-written."""

from __future__ import annotations

import os
from pathlib import Path

from repshift.errors import DataError
from repshift.files import all_or_none, check_place, reason, write_whole

__all__ = ["all_or_none", "output_file", "output_folder", "write_text", "write_whole"]


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
        raise DataError(f"Cannot write to {path} ({reason(error)}). Give a folder that can be written to.") from error
    return path


def output_file(path: Path) -> None:
    """Check that a file can be written, before anything is computed for it; its folder is made if needed.

    Raises:
        DataError: If it cannot, or what the command prints goes there.
    """
    try:
        place = check_place(path)
        printed = place.exists() and any(_leads_to(stream, place) for stream in (1, 2))
    except OSError as error:
        raise DataError(
            f"Cannot write to {path} ({reason(error)}). Give the name of a file in a folder that can be written to."
        ) from error
    if printed:
        raise DataError(f"Cannot write to {path}: what this command prints goes there. Give another name.")


def _leads_to(stream: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream), place.stat())
    except OSError:  # a stream may be closed
        return False


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece, as UTF-8; what has no form there, of names in other encodings, is escaped.

    Raises:
        DataError: If it cannot be written.
    """
    data = text.encode("utf-8", "backslashreplace")
    write_whole(path, lambda unfinished: unfinished.write_bytes(data))
