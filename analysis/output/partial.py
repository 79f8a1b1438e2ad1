"""What is recorded of each sample while a run is unfinished, and the files that keep it: only added to, and proved."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

import torch

from repshift.analysis.output.files import output_folder, write_text
from repshift.errors import CheckpointError, DataError, first_line
from repshift.files import reason

SETTINGS, ROW = "settings.json", "row.json"
ANEW = "Give what was given then, or begin anew: --no-resume."
Record = TypeVar("Record")


class PartialRecords(Generic[Record]):
    """The records of one unfinished pass over samples: a folder with one file for each process, only added to.

    Each line holds a batch and is on the disk before the next batch is begun. A line that was torn by a crash is
    passed over. A command says in a subclass what it records of a sample, and how that is written as plain values.

    Args:
        folder: Belongs to this pass alone.
        settings: Plain values that must be the same when the run is resumed.
        rank: This process.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # as it will be read
        self._file: TextIO | None = None

    def written(self, record: Record) -> list[Any]:
        """Write what is recorded of one sample as plain values."""
        raise NotImplementedError

    def read(self, plain: Any) -> Record:
        """Read what :meth:`written` wrote.

        Raises:
            TypeError: If it is something else; a ``ValueError`` is as good.
        """
        raise NotImplementedError

    def resume(self) -> dict[int, Record]:
        """Read what was recorded, if anything was.

        Raises:
            CheckpointError: If it belongs to another evaluation, or which one it belongs to cannot be told.
        """
        check_partial(self.folder)
        path = self.folder / SETTINGS
        if not path.exists():
            if holds_records(self.folder):
                raise CheckpointError(
                    f"{self.folder} holds records without {SETTINGS}, so which run they belong to cannot be "
                    "told. Begin anew: --no-resume."
                )
            return {}
        before = read_mapping(path)
        names = {*self.settings, *before}
        if changed := sorted(name for name in names if before.get(name) != self.settings.get(name)):
            told = "; ".join(f"{name} was {before.get(name)!r}, is {self.settings.get(name)!r}" for name in changed[:4])
            raise CheckpointError(f"The partial results in {self.folder} belong to another run: {told}. {ANEW}")
        records: dict[int, Record] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in _read_lines(file):
                for index, record in self._parse(line, file).items():
                    records.setdefault(index, record)
        return records

    def begin(self) -> None:
        """Write the settings, unless that was done before."""
        output_folder(self.folder)
        if not (self.folder / SETTINGS).is_file():
            write_text(self.folder / SETTINGS, json.dumps(self.settings, indent=2) + "\n")

    def add(self, records: Mapping[int, Record]) -> None:
        """Keep the records of one batch; when this returns, they are on the disk.

        Raises:
            DataError: If they cannot be kept; those of the batches before are.
        """
        rows = [[index, *self.written(record)] for index, record in records.items()]
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = (self.folder / f"{self.rank}.jsonl").open("a", encoding="utf-8")
                self._file.write("\n")  # what a crash left half-written stays a line of its own
            self._file.write(json.dumps(rows) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(
                f"What was evaluated cannot be kept in {self.folder} ({reason(error)}). Make room; the same command "
                "with --resume goes on."
            ) from error

    def close(self) -> None:
        """Close this process's file."""
        if self._file is not None:
            with suppress(OSError):  # what could not be written before cannot be now
                self._file.close()
            self._file = None

    def forget_if_empty(self) -> None:
        """Delete the settings if nothing was recorded; call it when no process writes any more."""
        if not holds_records(self.folder):
            self.close()
            forget_records(self.folder)
            with suppress(OSError):  # other models' folders are beside it
                self.folder.parent.rmdir()

    def _parse(self, line: str, file: Path) -> dict[int, Record]:
        """Read one batch; a torn line holds none, and its samples are looked at again.

        Raises:
            CheckpointError: If it is whole and holds something else.
        """
        try:
            rows = json.loads(line) if line else []
        except (ValueError, RecursionError):
            return {}
        try:
            found = {whole_number(index): self.read(plain) for index, *plain in rows}
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{file} holds a line that is no record of such a run. {ANEW}") from error
        return found


def whole_number(value: Any) -> int:
    """Return a whole number of a record.

    Raises:
        TypeError: If it is none.
    """
    if type(value) is not int:
        raise TypeError
    return value


def check_partial(folder: Path) -> None:
    """Check the place of an unfinished run's records.

    Raises:
        DataError: If it is a link or no folder, whose content is nobody's to delete.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise DataError(
            f"{folder} is {'a link' if folder.is_symlink() else 'no folder'}, and the records of an unfinished run "
            "need a folder of their own there. Remove it, or give another --results-file."
        )


def holds_records(folder: Path) -> bool:
    """Say whether anything was evaluated for a model, or for any of several."""
    return any(path.suffix == ".jsonl" or path.name == ROW for path in folder.rglob("*"))


def forget_unfinished(folder: Path) -> None:
    """Delete what an unfinished run has left for all of its models, and nothing else.

    Raises:
        DataError: If it cannot be deleted.
    """
    for model in sorted(folder.glob("*")) if folder.is_dir() else ():
        if model.name.isdecimal() and not model.is_symlink() and model.is_dir():
            forget_records(model)
    with suppress(OSError):
        folder.rmdir()
    if holds_records(folder):
        raise DataError(
            f"{folder} holds more than an unfinished run has left. Remove it, or give another --results-file."
        )


def forget_records(folder: Path) -> None:
    """Delete what one model's unfinished evaluation has left.

    The settings go last: records that are left by a deletion that was stopped can still be told to be whose they are.

    Raises:
        DataError: If it cannot be deleted.
    """
    try:
        for path in (*folder.glob("*.jsonl"), folder / ROW, *folder.glob(".unfinished-*"), folder / SETTINGS):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"Cannot delete {error.filename} ({reason(error)}). Delete {folder} yourself.") from error
    with suppress(OSError):  # what is not ours stays
        folder.rmdir()


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a small file of plain values.

    Raises:
        CheckpointError: If it holds none.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is no file. {ANEW}")
        plain = json.loads(path.read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}). {ANEW}") from error
    if not isinstance(plain, dict):
        raise CheckpointError(f"{path} holds no settings by name. {ANEW}")
    return plain


def _read_lines(file: Path) -> Iterator[str]:
    if file.is_symlink() or not file.is_file():
        raise CheckpointError(f"{file} is no file of records. Remove it, or give another --results-file.")
    try:
        yield from file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({reason(error)}). {ANEW}") from error


def unfinished_folder(results: Path | None) -> Path | None:
    """Say where an unfinished run keeps what it has recorded: beside its results file, or nowhere."""
    return results and results.with_name(f"{results.name}.partial")


def settle_unfinished(folder: Path | None, resume: bool | None) -> None:
    """Decide what becomes of what an earlier run has left, before a run begins.

    Args:
        folder: From :func:`unfinished_folder`.
        resume: Go on with it; ``False`` deletes it; by default it is an error.

    Raises:
        DataError: If there is something and nothing was decided, or there can be nothing to go on with.
    """
    if folder is None:
        if resume:
            raise DataError("--resume goes on beside a results file. Give the --results-file of the unfinished run.")
        return
    check_partial(folder)
    if not folder.exists() or resume:
        return
    if resume is None and holds_records(folder):
        raise DataError(
            f"{folder} holds what an unfinished run has evaluated. Go on with it: --resume; or begin anew: --no-resume."
        )
    forget_unfinished(folder)


def content_of(path: Path) -> str:
    """Return a digest of a file's content, to tell whether it has changed; of what is no file, its name."""
    # a class map may be named by its place in the data folder, where timm looks for it
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else str(path)


def versions() -> list[str]:
    """Name the versions that results depend on: of torch, timm and repshift."""
    import timm

    from repshift import __version__

    return [torch.__version__, timm.__version__, __version__]
