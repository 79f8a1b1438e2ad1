"""The file of ``--class-map``: which number each class of the data has. Only text is read, never a pickle."""

from __future__ import annotations

from pathlib import Path

from repshift.errors import DataError, first_line

PICKLES = (".pkl", ".pickle", ".p", ".pt", ".pth", ".npy", ".npz")


def read_class_map(path: str | Path) -> dict[str, int]:
    """Number the names in a file from zero.

    Args:
        path: Text in UTF-8, one name a line; empty lines at the end do not count.

    Raises:
        DataError: If the file is missing, is no text, or does not name each class once.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise DataError(
            f"--class-map {path} is named as a pickle, which could run code, so it is not read. Write the names of the "
            "classes into a text file, one a line."
        )
    if not path.is_file():
        raise DataError(f"--class-map {path} does not exist. Give a text file with the names of the classes.")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"--class-map {path} is no text ({first_line(error)}). Write the names of the classes into a text file, "
            "one a line."
        ) from error
    numbered: dict[str, int] = {}
    for number, name in enumerate(names):
        if not name or "\0" in name:
            raise DataError(f"--class-map {path} has no name in its line {number + 1}, which would shift the others.")
        if name in numbered:
            raise DataError(f"--class-map {path} has {name!r} in its lines {numbered[name] + 1} and {number + 1}.")
        numbered[name] = number
    if not numbered:
        raise DataError(f"--class-map {path} is empty. Write the names of the classes into it, one a line.")
    return numbered
