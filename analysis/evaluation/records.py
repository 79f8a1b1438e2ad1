"""What an evaluation remembers of each sample, and the files that keep it while a run is unfinished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repshift.analysis.output.files import output_folder, write_text
from repshift.analysis.output.partial import ANEW, ROW, PartialRecords, check_partial, read_mapping, whole_number
from repshift.errors import CheckpointError

Row = dict[str, Any]
# What a model's line must hold to be shown: numbers, and of a comparison with the dense model more of them
NUMBERS = ("samples", "skipped", "top1", "top1_err", "top5", "top5_err", "gmacs")
COMPARED = ("dense_top5", "dense_gmacs", "delta_top1", "delta_top5", "agreement")


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


class PartialResults(PartialRecords[SampleRecord]):
    """The records of one model's unfinished evaluation, and in the end the model's lines of the results."""

    def written(self, record: SampleRecord) -> list[Any]:
        """Write a record as plain values."""
        return [record.label, record.predicted, record.dense, *record.others]

    def read(self, plain: Any) -> SampleRecord:
        """Read a record.

        Raises:
            TypeError: If it is none.
        """
        label, predicted, dense, *others = plain
        return SampleRecord(
            whole_number(label),
            _numbers(predicted),
            None if dense is None else _numbers(dense),
            tuple(_numbers(each) for each in others),
        )

    def rows(self, name: str) -> list[Row] | None:
        """Read the lines of a model in the results, one for each method, if its evaluation was finished.

        Raises:
            CheckpointError: If they are none.
        """
        check_partial(self.folder)
        path = self.folder / ROW
        if not path.exists():
            return None
        rows = read_mapping(path).get("rows")
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


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
        raise TypeError
    return tuple(values)
