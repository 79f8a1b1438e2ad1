"""Small files of plain values, which are there whole or not at all."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from repshift.errors import RecipeError, first_line


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
    except (OSError, ValueError) as error:
        raise RecipeError(f"Cannot write {path} ({first_line(error)}). Give another name.") from error
    finally:
        with suppress(OSError, ValueError):  # if there is no such folder, nothing is left there
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
    except (OSError, ValueError) as error:  # no text, or no path
        raise RecipeError(
            f"{path} cannot be read ({first_line(error)}). Give a file that Recipe.save wrote."
        ) from error
