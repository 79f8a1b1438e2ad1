"""What an evaluation remembers of each sample, and the files that keep it while a run is unfinished."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from repshift.analysis.output.files import output_folder, write_text
from repshift.errors import CheckpointError, DataError, first_line
from repshift.files import reason

Row = dict[str, Any]
SETTINGS, ROW = "settings.json", "row.json"
# What a model's line must hold to be shown: numbers, and of a comparison with the dense model more of them
NUMBERS = ("samples", "skipped", "top1", "top1_err", "top5", "top5_err", "gmacs")
COMPARED = ("dense_top5", "dense_gmacs", "delta_top1", "delta_top5", "agreement")
ANEW = "Give what was given then, or begin anew: --no-resume."


@dataclass(frozen=True)
class SampleRecord:
    """What was predicted for one sample.

    Attributes:
        label: Its class.
        predicted: The model's five likeliest classes, the likeliest first (fewer if it has fewer).
        dense: The same of the dense model, if it was compared.
        others: The same of further methods, and of further draws of a random one.
    """

    label: int
    predicted: tuple[int, ...]
    dense: tuple[int, ...] | None = None
    others: tuple[tuple[int, ...], ...] = ()

    def of(self, column: int) -> SampleRecord:
        """Return the record of one method or draw alone, by its number."""
        return SampleRecord(self.label, (self.predicted, *self.others)[column], self.dense)


Recorded = dict[int, SampleRecord]  # by the number of the sample, so that none counts twice


class PartialResults:
    """The records of one model's unfinished evaluation: a folder with one file for each process, only added to.

    Each line holds a batch and is on the disk before the next batch is begun. A line that was torn by a crash is
    passed over.

    Args:
        folder: Belongs to this model alone.
        settings: Plain values that must be the same when the evaluation is resumed.
        rank: This process.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # as it will be read
        self._file: TextIO | None = None

    def resume(self) -> Recorded:
        """Read what was recorded, if anything was.

        Raises:
            CheckpointError: If it belongs to another evaluation, or which one it belongs to cannot be told.
        """
        check_partial(self.folder)
        path = self.folder / SETTINGS
        if not path.exists():
            if holds_records(self.folder):
                raise CheckpointError(
                    f"{self.folder} holds records without {SETTINGS}, so which evaluation they belong to cannot be "
                    "told. Begin anew: --no-resume."
                )
            return {}
        before = _read_mapping(path)
        names = {*self.settings, *before}
        if changed := sorted(name for name in names if before.get(name) != self.settings.get(name)):
            told = "; ".join(f"{name} was {before.get(name)!r}, is {self.settings.get(name)!r}" for name in changed[:4])
            raise CheckpointError(f"The partial results in {self.folder} belong to another evaluation: {told}. {ANEW}")
        records: Recorded = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in _read_lines(file):
                for index, record in _parse(line, file).items():
                    records.setdefault(index, record)
        return records

    def begin(self) -> None:
        """Write the settings, unless that was done before."""
        output_folder(self.folder)
        if not (self.folder / SETTINGS).is_file():
            write_text(self.folder / SETTINGS, json.dumps(self.settings, indent=2) + "\n")

    def add(self, records: Recorded) -> None:
        """Keep the records of one batch; when this returns, they are on the disk.

        Raises:
            DataError: If they cannot be kept; those of the batches before are.
        """
        rows = [
            [index, record.label, record.predicted, record.dense, *record.others] for index, record in records.items()
        ]
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

    def rows(self, name: str) -> list[Row] | None:
        """Read the lines of a model in the results, one for each method, if its evaluation was finished.

        Raises:
            CheckpointError: If they are none.
        """
        check_partial(self.folder)
        path = self.folder / ROW
        if not path.exists():
            return None
        rows = _read_mapping(path).get("rows")
        if not isinstance(rows, list) or not rows or not all(_is_row(row, name) for row in rows):
            raise CheckpointError(f"{path} holds no lines of the results of {name}. {ANEW}")
        return [{"schedule": None, "method": None, **row} for row in rows]

    def finish(self, rows: Sequence[Row]) -> None:
        """Keep the model's lines of the results."""
        output_folder(self.folder)
        write_text(self.folder / ROW, json.dumps({"rows": list(rows)}, indent=2) + "\n")


def _is_row(row: Any, name: str) -> bool:
    if not isinstance(row, dict) or row.get("model") != name:
        return False
    wanted = [*NUMBERS, *(COMPARED if row.get("dense_top1") is not None else ())]
    return all(type(row.get(key)) in (int, float) for key in wanted)


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


def _read_mapping(path: Path) -> dict[str, Any]:
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


def _parse(line: str, file: Path) -> Recorded:
    """Read one batch; a torn line holds none, and its samples are evaluated again.

    Raises:
        CheckpointError: If it is whole and holds something else.
    """
    try:
        rows = json.loads(line) if line else []
    except (ValueError, RecursionError):
        return {}
    try:
        found = {
            index: SampleRecord(
                label,
                _numbers(predicted),
                None if dense is None else _numbers(dense),
                tuple(_numbers(other) for other in others),
            )
            for index, label, predicted, dense, *others in rows
        }
        _numbers([*found, *(record.label for record in found.values()), 0])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file} holds a line that is no record of an evaluation. {ANEW}") from error
    return found


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
        raise TypeError
    return tuple(values)
