"""The pass of a suite: its cases are measured one after the other, and what was measured is kept at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from repshift import Recipe
from repshift.analysis.output.partial import PartialRecords, forget_unfinished, unfinished_folder, versions
from repshift.analysis.output.results import environment
from repshift.analysis.subjects.devices import choose_device
from repshift.analysis.subjects.methods import FEWER_FRAMES
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.throughput.compared import Asked, compare
from repshift.analysis.throughput.comparison import Comparison, told_without_advice
from repshift.analysis.throughput.roofline import Rates, measured_rates
from repshift.analysis.throughput.setup import PRECISIONS, Setup
from repshift.analysis.throughput.suites import Case, Suite
from repshift.errors import RepshiftError

Row = Mapping[str, Any]
NEEDED = {"model", "method", "schedule", "torchcompile", "matmul_share", "memory_share"}  # of a row that is read again
# Called with what is going on, how many cases are done, and of how many
Observer = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measured:
    """What a suite came to.

    Attributes:
        rows: Those of :class:`repshift.analysis.throughput.comparison.Comparison`, and two more columns,
            ``matmul_share`` and ``memory_share``: of the measured rates of the device.
        failed: Cases, and methods of cases, that do not run here, with why.
        left: How many cases there was no time for.
        environment: With what it was measured, and the rates of the device.
    """

    rows: list[Row]
    failed: Mapping[str, str]
    left: int
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What was found of a case.

    Attributes:
        rows: Of the methods that run.
        missing: Why others have none, by their names; of the whole case by an empty one.
    """

    rows: list[Row]
    missing: dict[str, str]


class PartialCases(PartialRecords[Found]):
    """What was found of each case."""

    def written(self, record: Found) -> list[Any]:
        """Write it as plain values."""
        return [record.rows, record.missing]

    def read(self, plain: Any) -> Found:
        """Read it.

        Raises:
            TypeError: If it is something else.
            ValueError: The same.
        """
        rows, missing = plain
        if not isinstance(missing, dict) or not all(isinstance(row, dict) and row.keys() >= NEEDED for row in rows):
            raise TypeError
        return Found(list(rows), {str(name): str(why) for name, why in missing.items()})


def run_suite(
    suite: Suite,
    results: Path | None = None,
    *,
    minutes: float | None = None,
    memory: bool = True,
    observe: Observer = lambda what, done, total: None,
) -> Measured:
    """Measure the cases of a suite one after the other.

    Args:
        suite: The suite.
        results: The results file, beside which an unfinished run keeps what it has measured.
        minutes: No case is begun after so long, nor one that is compiled if it would end later, were it as long as the
            longest of these before; the same call goes on then, if there is a results file.
        memory: Whether to measure the peak memory, too.
        observe: Told about the progress.

    Raises:
        DataError: If there is no such device.
        CheckpointError: If what an unfinished run has left belongs to another suite, version or device.
    """
    choose_device(suite.device)
    measured = environment(suite.device)
    unfinished = unfinished_folder(results)
    if unfinished is None:
        return _run(suite, None, {}, measured, minutes, memory, observe)
    settings = {"suite": repr(suite), "memory": memory, "versions": versions()}
    kept = PartialCases(unfinished / "0000", settings | {name: measured[name] for name in ("device", "threads")})
    found = kept.resume()
    kept.begin()
    with closing(kept):
        try:
            return _run(suite, kept, found, measured, minutes, memory, observe)
        finally:
            kept.forget_if_empty()


def forget_cases(results: Path | None) -> None:
    """Forget what an unfinished run kept: the results are written, and nothing is left to measure."""
    if (unfinished := unfinished_folder(results)) is not None:
        forget_unfinished(unfinished)


def _run(
    suite: Suite,
    kept: PartialCases | None,
    found: dict[int, Found],
    measured: dict[str, Any],
    minutes: float | None,
    memory: bool,
    observe: Observer,
) -> Measured:
    began = time.monotonic()
    observe("what the device can do", len(found), len(suite.cases))
    rates = measured_rates(suite.device, PRECISIONS[suite.precision][0], torch.get_num_threads())
    measured |= {"matmul_gmacs_per_sec": round(rates.macs / 1e9, 1), "copy_gb_per_sec": round(rates.bytes / 1e9, 1)}
    compiling = 0.0  # seconds that the longest compiled case took
    for number, case in enumerate(suite.cases):
        if number in found:
            continue
        begun = time.monotonic()
        # one that is compiled takes minutes, and would end long after
        if minutes is not None and begun - began + compiling * case.torchcompile > 60 * minutes:
            continue
        observe(str(case), len(found), len(suite.cases))
        missing: dict[str, str] = {}
        try:
            rows = _rows(suite, case, rates, memory, missing)
        except RepshiftError as error:
            rows, missing = [], {"": told_without_advice(error) or ""}
        found[number] = Found(rows, missing)
        if kept is not None:
            kept.add({number: found[number]})
        compiling = max(compiling, (time.monotonic() - begun) * case.torchcompile)
    failed = {
        f"{suite.cases[number]}{f', {name}' if name else ''}": why
        for number in sorted(found)
        for name, why in found[number].missing.items()
    }
    return Measured(
        [row for number in sorted(found) for row in found[number].rows],
        failed,
        len(suite.cases) - len(found),
        measured,
    )


def _rows(suite: Suite, case: Case, rates: Rates, memory: bool, missing: dict[str, str]) -> list[Row]:
    """Measure a case; what of it does not run is noted."""
    options = {} if case.frames is None else {"frames": case.frames}
    setup = Setup(
        case.model,
        ModelOptions(options=options),
        suite.precision,
        channels_last=case.channels_last,
        attention=suite.attention if case.attends else None,
        torchcompile=case.torchcompile,
        device=suite.device,
    )
    dense = setup.load()
    methods = [name for name in case.methods if name != FEWER_FRAMES]
    asked = Asked(methods, plain=case.attends and case.plain, fewer=FEWER_FRAMES in case.methods)
    made = compare(dense, Recipe(case.schedule), asked, setup.input_size(dense))
    comparison = Comparison(
        setup,
        made.models,
        suite.rounds,
        suite.warm_up,
        torch.get_num_threads(),
        memory=memory,
        frames=made.frames,
        count_bytes=True,
    )
    return [row | _shares(row, rates) for row in comparison.run(case.batch_size, leave_out=missing.__setitem__)]


def _shares(row: Row, rates: Rates) -> dict[str, float | None]:
    """Say which share of the device's rates a row comes to."""
    seconds, moved = row["step_time"] / 1e3, row["bytes_moved"]
    return {
        "matmul_share": round(1e9 * row["macs_per_sec"] / rates.macs, 4),
        "memory_share": None if moved is None else round(moved / seconds / rates.bytes, 4),
    }
