"""What an evaluation remembers of each sample, and the files that keep it while a run is unfinished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from repshift.analysis.output.files import output_folder, write_text
from repshift.errors import CheckpointError

Row = dict[str, Any]


@dataclass(frozen=True)
class SampleRecord:
    """What was predicted for one sample.

    Attributes:
        label: Its class.
        predicted: The model's five likeliest classes, the likeliest first (fewer if it has fewer).
        dense: The same of the dense model, if it was compared.
    """

    label: int
    predicted: tuple[int, ...]
    dense: tuple[int, ...] | None = None


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
            CheckpointError: If it belongs to another evaluation.
        """
        path = self.folder / "settings.json"
        if not path.is_file():
            return {}
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}). Begin anew: --no-resume.") from error
        names = {*self.settings, *before}
        if changed := sorted(name for name in names if before.get(name) != self.settings.get(name)):
            told = "; ".join(f"{name} was {before.get(name)!r}, is {self.settings.get(name)!r}" for name in changed[:4])
            raise CheckpointError(
                f"The partial results in {self.folder} belong to another evaluation: {told}. Give what was given "
                "then, or begin anew: --no-resume."
            )
        records: Recorded = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                for index, record in _parse(line).items():
                    records.setdefault(index, record)
        return records

    def begin(self) -> None:
        """Write the settings, unless that was done before."""
        output_folder(self.folder)
        if not (self.folder / "settings.json").is_file():
            write_text(self.folder / "settings.json", json.dumps(self.settings, indent=2) + "\n")

    def add(self, records: Recorded) -> None:
        """Keep the records of one batch; when this returns, they are on the disk."""
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / f"{self.rank}.jsonl").open("a", encoding="utf-8")
            self._file.write("\n")  # what a crash left half-written stays a line of its own
        rows = [[index, record.label, record.predicted, record.dense] for index, record in records.items()]
        self._file.write(json.dumps(rows) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close this process's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def forget_if_empty(self) -> None:
        """Delete the settings if nothing was recorded; call it when no process writes any more."""
        if not holds_records(self.folder):
            self.forget()
            with suppress(OSError):  # other models' folders are beside it
                self.folder.parent.rmdir()

    @property
    def row(self) -> Row | None:
        """The model's line of the results, if its evaluation was finished."""
        path = self.folder / "row.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def finish(self, row: Row) -> None:
        """Keep the model's line of the results."""
        output_folder(self.folder)
        write_text(self.folder / "row.json", json.dumps(row, indent=2) + "\n")

    def forget(self) -> None:
        """Delete everything."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def holds_records(folder: Path) -> bool:
    """Say whether anything was evaluated for a model, or for any of several."""
    return any(path.suffix == ".jsonl" or path.name == "row.json" for path in folder.rglob("*"))


def _parse(line: str) -> Recorded:
    """Read one batch; a torn line holds none, and its samples are evaluated again."""
    try:
        rows = json.loads(line) if line else []
        return {
            int(index): SampleRecord(int(label), tuple(predicted), None if dense is None else tuple(dense))
            for index, label, predicted, dense in rows
        }
    except (ValueError, TypeError):
        return {}
