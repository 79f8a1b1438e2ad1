"""Files that are there whole or not at all: written beside their place, and moved there when they are complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from repshift.errors import DataError, RecipeError, RepshiftError, first_line

LONGEST = 255  # bytes of a file's name, on most systems
# Files that are complete and wait for others, with their places; None where none waits
_waiting: ContextVar[list[tuple[Path, Path]] | None] = ContextVar("waiting", default=None)


def as_path(given: str | PathLike[str], error: type[RepshiftError] = RecipeError) -> Path:
    """Return what names a file or folder as a path.

    Raises:
        RepshiftError: Of the given kind, if it can name none.
    """
    if isinstance(given, (str, PathLike)) and isinstance(named := fspath(given), str) and "\0" not in named:
        return Path(named)
    raise error(f"A file or folder is named by a string or a pathlib.Path, got {given!r}. Give its name.")


def reason(error: OSError) -> str:
    """Say in a word why the system refused something."""
    return error.strerror or first_line(error)


def place_of(path: Path) -> Path:
    """Return the regular file that a path leads to, through links, whether it is there yet or not.

    Raises:
        OSError: If something else is there: a folder, a device, a pipe, a link to itself.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return Path(os.path.realpath(path))


def check_place(path: Path) -> Path:
    """Check that a file can be written, and change nothing but that its folder is made.

    Returns:
        Where it will stand, behind all links.

    Raises:
        OSError: If it cannot be written.
    """
    place = place_of(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        os.close(os.open(place, os.O_WRONLY))
    unfinished = _beside(place)
    unfinished.unlink(missing_ok=True)
    unfinished.touch()
    unfinished.unlink()
    return place


def _beside(place: Path) -> Path:
    """Name the unfinished file; its ending is the same."""
    name = f".unfinished-{place.name}"
    if len(os.fsencode(name)) > LONGEST:
        name = f".unfinished-{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}{place.suffix[:16]}"
    return place.with_name(name)


def write_whole(path: Path, write: Callable[[Path], object], error: type[RepshiftError] = DataError) -> None:
    """Write a file beside its place and move it there when it is complete; its folder is made if needed.

    A link stays, and the file that it leads to is replaced. Until the new file is on the disk, the old one is as it
    was; if anything goes wrong, it stays so, and nothing else is left.

    Args:
        path: Where the file belongs.
        write: Writes it to the path it is given, which has the same ending.
        error: What is raised.

    Raises:
        RepshiftError: If it cannot be written, or something that is no regular file is in its place.
    """
    waiting = _waiting.get()
    unfinished = None
    try:
        place = check_place(path)
        unfinished = _beside(place)
        write(unfinished)
        with unfinished.open("r+b") as file:
            os.fsync(file.fileno())
        if place.exists():
            shutil.copymode(place, unfinished)
        if waiting is None:
            unfinished.replace(place)
        else:
            waiting.append((unfinished, place))
            unfinished = None
    except OSError as problem:
        raise error(f"Cannot write to {path} ({reason(problem)}). {_advice(problem)}") from problem
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)


@contextmanager
def all_or_none() -> Iterator[None]:
    """Let files that belong together appear together: those that :func:`write_whole` writes inside.

    They take their places when all are complete; if one cannot be written, none does.

    Raises:
        DataError: If they cannot take their places.
    """
    waiting: list[tuple[Path, Path]] = []
    token = _waiting.set(waiting)
    try:
        yield
        for unfinished, place in waiting:
            unfinished.replace(place)
    except OSError as problem:
        raise DataError(f"Cannot write ({first_line(problem)}). {_advice(problem)}") from problem
    finally:
        _waiting.reset(token)
        for unfinished, _ in waiting:
            unfinished.unlink(missing_ok=True)


def _advice(problem: OSError) -> str:
    if problem.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return "Make room, or give another place."
    return "Give the name of a file in a folder that can be written to."


def write_json(path: Path, plain: Any) -> None:
    """Write plain values to a file, which is there whole or not at all; its folder is made if needed.

    Raises:
        RecipeError: If they are not plain, or the file cannot be written.
    """
    try:
        text = json.dumps(plain, indent=2)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path.name} holds plain values only ({error}). Leave out what is none.") from error
    write_whole(path, lambda unfinished: unfinished.write_text(f"{text}\n", encoding="utf-8"), RecipeError)


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
