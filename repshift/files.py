"""Small files of plain values, which are there whole or not at all."""

from __future__ import annotations

import json
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from repshift.errors import RecipeError, RepshiftError, first_line


def as_path(given: str | PathLike[str], error: type[RepshiftError] = RecipeError) -> Path:
    """Return what names a file or folder as a path.

    Raises:
        RepshiftError: Of the given kind, if it can name none.
    """
    if isinstance(given, (str, PathLike)) and isinstance(named := fspath(given), str) and "\0" not in named:
        return Path(named)
    raise error(f"A file or folder is named by a string or a pathlib.Path, got {given!r}. Give its name.")


def write_json(path: Path, plain: Any) -> None:
    """Write plain values to a file, which is there whole or not at all; its folder is made if needed.

    Raises:
        RecipeError: If they are not plain, or the file cannot be written.
    """
    try:
        text = json.dumps(plain, indent=2)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{path.name} holds plain values only ({error}). Leave out what is none.") from error
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise RecipeError(f"{path} is no regular file, so it is not replaced. Give another name.")
        unfinished.write_text(f"{text}\n", encoding="utf-8")
        unfinished.replace(path.resolve())
    except OSError as error:
        raise RecipeError(f"Cannot write {path} ({error.strerror}). Give another name.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        RecipeError: If there is none, or it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path} does not exist. Give a file that Recipe.save wrote.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read ({first_line(error)}). Give a file that Recipe.save wrote."
        ) from error
