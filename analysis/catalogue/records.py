"""The rows of an unfinished look at many models, and the pass that fills them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from repshift.analysis.catalogue.checking import PRUNED, Row, looked_at, numbers_of
from repshift.analysis.output.partial import PartialRecords, forget_unfinished, unfinished_folder, versions

# Called before each model with its name, how many are done, and of how many
Observer = Callable[[str, int, int], None]


class PartialRows(PartialRecords[Row]):
    """What was found of each model; behind all models stands what was found on real tensors."""

    def written(self, record: Row) -> list[Any]:
        """Write a row as plain values."""
        return [record]

    def read(self, plain: Any) -> Row:
        """Read a row.

        Raises:
            TypeError: If it is none.
        """
        (row,) = plain
        if not isinstance(row, dict):
            raise TypeError
        return row


def look_at_all(names: Sequence[str], check: bool, results: Path | None, observe: Observer) -> list[Row]:
    """Look at models one by one; with ``check`` also at numbers, of the smallest of each family and class.

    Args:
        names: The models.
        check: See :func:`repshift.analysis.catalogue.checking.looked_at`.
        results: The results file, beside which an unfinished run keeps what it has found.
        observe: Told about the progress.
    """
    settings = {"models": hashlib.sha256("\n".join(names).encode()).hexdigest(), "versions": versions(), "check": check}
    unfinished = unfinished_folder(results)
    if unfinished is None:
        return _look(names, check, None, {}, observe)
    kept = PartialRows(unfinished / "0000", settings)
    done = kept.resume()
    kept.begin()
    with closing(kept):
        try:
            return _look(names, check, kept, done, observe)
        finally:
            kept.forget_if_empty()


def forget_rows(results: Path | None) -> None:
    """Forget what an unfinished run kept: the results are written."""
    if (unfinished := unfinished_folder(results)) is not None:
        forget_unfinished(unfinished)


def _look(
    names: Sequence[str], check: bool, kept: PartialRows | None, done: dict[int, Row], observe: Observer
) -> list[Row]:
    def found(number: int, find: Callable[[], Row]) -> Row:
        if number not in done:
            done[number] = find()
            if kept is not None:
                kept.add({number: done[number]})
        return done[number]

    rows = []
    for number, name in enumerate(names):
        observe(name, number, len(names))
        rows.append(found(number, partial(looked_at, name, check=check)))
    if not check:
        return rows
    chosen = smallest(rows)
    for place, number in enumerate(chosen):
        row = rows[number]
        observe(f"numbers of {row['model']}", place, len(chosen))
        schedule, _, operation = row["schedule"].partition(" by ")
        rows[number] = row | found(len(names) + number, partial(numbers_of, row["model"], schedule, operation or None))
    return rows


def smallest(rows: Sequence[Row]) -> list[int]:
    """Number the model of each family and class that has the fewest parameters, of those that are pruned."""
    least: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows):
        key = row["family"], row["class"]
        if row["state"] == PRUNED:
            least[key] = min(least.get(key, number), number, key=lambda each: rows[each]["params"])
    return sorted(least.values())
