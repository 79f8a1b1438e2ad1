"""Files that number classes by their names, read as text and never unpickled."""

from __future__ import annotations

from pathlib import Path

from repshift.errors import DataError, first_line


def read_class_map(path: Path) -> dict[str, int]:
    """Read a text file with the names of all classes of a model, one a line, in their order.

    Raises:
        DataError: If it is missing or no text, or a name is empty or stands there twice.
    """
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise DataError(
            f"--class-map {path} is a pickle, which could run any code when it is read. Write a text file with one "
            "name a line."
        )
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"--class-map {path} cannot be read ({first_line(error)}). Give a text file with one name a line."
        ) from error
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError(f"--class-map {path} names no class. Write the names of the model's classes, one a line.")
    numbers = {name: number for number, name in enumerate(names)}
    if "" in numbers or len(numbers) < len(names):
        odd = "an empty line" if "" in numbers else repr(next(name for name in names if names.count(name) > 1))
        raise DataError(f"--class-map {path} has {odd} twice or in between. Write each class once, one a line.")
    return numbers
