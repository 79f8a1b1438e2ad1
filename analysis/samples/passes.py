"""One pass over samples that measures numbers of each: every sample once, on one process or several, resumable.

What was measured of a batch is on the disk before the next one is begun, and results are computed from all numbers in
the order of the samples, as in :mod:`repshift.analysis.evaluation`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repshift.analysis.output.partial import (
    PartialRecords,
    forget_unfinished,
    settle_unfinished,
    unfinished_folder,
    whole_number,
)
from repshift.analysis.samples.batches import Batch, Failure, Share, unreadable
from repshift.analysis.samples.data import Samples, loader
from repshift.analysis.samples.processes import Processes
from repshift.analysis.samples.streams import Stream
from repshift.analysis.subjects.memory import fitting
from repshift.errors import DataError, UnknownNameError

ON_ERROR = ("stop", "skip")

# Measures a batch: (batch, numbers), of each image
Measure = Callable[[Batch], Tensor]
# Called after every batch of this process with what is going on, how many samples are done, and of how many
Observer = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Numbers:
    """What was measured of one sample.

    Attributes:
        label: Its class, -1 where the data have none.
        values: The numbers, in the order of the measure.
    """

    label: int
    values: tuple[float, ...]


class PartialNumbers(PartialRecords[Numbers]):
    """The numbers of one unfinished pass."""

    def written(self, record: Numbers) -> list[Any]:
        """Write a record as plain values; JSON keeps every digit."""
        return [record.label, record.values]

    def read(self, plain: Any) -> Numbers:
        """Read a record.

        Raises:
            TypeError: If it is none.
        """
        label, values = plain
        if not isinstance(values, list) or not all(type(value) is float for value in values):
            raise TypeError
        return Numbers(whole_number(label), tuple(values))


@dataclass(frozen=True)
class Measured:
    """What a pass found, in the order of the samples.

    Attributes:
        indices: Numbers of the samples that could be read.
        labels: ``(samples,)`` int64, their classes.
        values: ``(samples, numbers)`` float64.
        failures: Samples that could not be read and were left out.
    """

    indices: list[int]
    labels: Tensor
    values: Tensor
    failures: list[Failure] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Which samples were left out, a line each."""
        return [f"skipped {failure.name} ({failure.reason})" for failure in self.failures]

    def by_image(self, samples: Samples, columns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Lay out the numbers of each sample: a row for each method.

        Args:
            samples: What was measured.
            columns: Method and measure of each number.
        """
        rows: list[dict[str, Any]] = []
        for index, values in zip(self.indices, self.values.tolist(), strict=True):
            found: dict[str, dict[str, Any]] = {}
            for (method, measure), value in zip(columns, values, strict=True):
                found.setdefault(method, {"file": samples.file_name(index), "method": method})[measure] = value
            rows += found.values()
        return rows


@dataclass(frozen=True)
class Found:
    """What a command found by its passes.

    Attributes:
        rows: A line of the results a method.
        images: A line an image and method.
        notes: On samples that were left out.
    """

    rows: list[dict[str, Any]]
    images: list[dict[str, Any]]
    notes: list[str]


class Passes:
    """The passes of one run of a command: they share its processes, its results file and what is kept beside it.

    Args:
        processes: All processes; each one calls the same methods.
        results: The results file; ``None`` keeps nothing to resume from.
        batch_size: Images a process and step.
        workers: Processes that load images.
        device: Where the images go.
        on_error: ``stop`` at a sample that cannot be read, or ``skip`` and name it.
        observe: Told about the progress.

    Raises:
        UnknownNameError: If ``on_error`` is neither.
    """

    def __init__(
        self,
        processes: Processes,
        results: Path | None,
        batch_size: int,
        workers: int | None,
        device: torch.device,
        on_error: str = "stop",
        observe: Observer = lambda what, done, total: None,
    ) -> None:
        if on_error not in ON_ERROR:
            raise UnknownNameError(f"Unknown --on-error {on_error!r}. Give {' or '.join(ON_ERROR)}.")
        self.processes, self.folder = processes, unfinished_folder(results)
        self.batch_size, self.workers, self.device = batch_size, workers, device
        self.on_error, self.observe = on_error, observe

    def begin(self, resume: bool | None) -> None:
        """Decide what becomes of what an earlier run has left; see :func:`settle_unfinished`.

        Raises:
            DataError: If that is not decided.
        """
        if self.processes.first or self.folder is None:
            settle_unfinished(self.folder, resume)

    def end(self) -> None:
        """Forget what was kept: the results are written."""
        if self.folder is not None and self.processes.first:
            forget_unfinished(self.folder)

    def run(self, number: int, what: str, samples: Samples, measure: Measure, identity: Mapping[str, Any]) -> Measured:
        """Measure all samples; afterwards every process has the numbers of all of them.

        Args:
            number: Of the pass within the run, by which it is resumed.
            what: What is going on, in a word.
            samples: The images.
            measure: What is measured of a batch, whose images are on the device.
            identity: Plain values that must be the same for a resumed pass to end with the same numbers, beside the
                data.

        Raises:
            DataError: If a sample cannot be read and is not to be skipped, or a number is none.
            CheckpointError: If what is resumed is of another run.
            MemoryExhaustedError: If a batch does not fit into memory.
        """
        processes, partial = self.processes, None
        records: dict[int, Numbers] = {}
        with processes.together():
            if self.folder is not None:
                said = {**identity, **told_apart_by(samples, samples.config)}
                partial = PartialNumbers(self.folder / f"{number:04d}", said, processes.rank)
            if partial is not None and processes.first:
                records = partial.resume()
                partial.begin()
        records = processes.exchange(records if processes.first else None)[0]
        share = Share(processes.rank, processes.count, frozenset(records))
        own: dict[int, Numbers] = {}
        failures: list[Failure] = []
        try:
            with processes.together(), fitting(self.batch_size, str(self.device), retry=False):
                self._run(what, samples, measure, share, partial, own, failures)
        finally:
            if partial is not None:
                partial.close()
                if processes.first:
                    partial.forget_if_empty()
        parts = processes.exchange((own, failures))
        for measured, failed in parts if processes.count > 1 else [(own, failures)]:
            records = records | measured
            failures = failures if failed is failures else [*failures, *failed]
        return _in_order(records, failures, len(samples))

    def _run(
        self,
        what: str,
        samples: Samples,
        measure: Measure,
        share: Share,
        partial: PartialNumbers | None,
        own: dict[int, Numbers],
        failures: list[Failure],
    ) -> None:
        total = len(range(share.rank, len(samples), share.processes))
        done = sum(index % share.processes == share.rank for index in share.done)
        pinned = self.device.type == "cuda"
        for batch in loader(samples, self.batch_size, self.workers, share=share, pin_memory=pinned):
            if batch.failures and self.on_error == "stop":
                raise DataError(
                    f"{unreadable(batch.failures)} Or leave such samples out and count them: --on-error skip."
                )
            failures += batch.failures
            if batch.indices:
                new = self._measure(batch, measure)
                if partial is not None:
                    partial.add(new)
                own |= new
            done += len(batch.indices) + len(batch.failures)
            self.observe(what, done, total)
            if self.processes.failing:
                return

    def _measure(self, batch: Batch, measure: Measure) -> dict[int, Numbers]:
        with torch.inference_mode():
            values = measure(batch).double().cpu()
        if not bool(values.isfinite().all()):
            raise DataError("The model's outputs are not numbers (NaN or infinite). Give other weights.")
        rows = zip(batch.indices, batch.labels, values.tolist(), strict=True)
        return {index: Numbers(label, tuple(row)) for index, label, row in rows}


def _in_order(records: Mapping[int, Numbers], failures: Sequence[Failure], expected: int) -> Measured:
    """Put numbers into the order of the samples, and count that none is missing or there twice."""
    failed = {failure.index: failure for failure in failures}
    indices = sorted(records)
    if len(records.keys() | failed.keys()) != expected or records.keys() & failed.keys():
        raise DataError(
            f"{len(records) + len(failed)} samples were looked at, of {expected}. The data changed meanwhile, or are "
            "not the same for every process: begin anew (--no-resume)."
        )
    if not indices:
        raise DataError(f"None of the {expected} images can be read. Give others.")
    if len({len(records[index].values) for index in indices}) != 1:
        raise DataError("What is resumed has other numbers of each sample. Begin anew: --no-resume.")
    labels = torch.tensor([records[index].label for index in indices])
    values = torch.tensor([records[index].values for index in indices], dtype=torch.float64)
    return Measured(indices, labels, values, [failed[index] for index in sorted(failed)])


def told_apart_by(samples: Samples | Stream, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values that tell these data, preprocessed so, from others.

    Args:
        samples: The data.
        config: timm's data configuration.
    """
    files = samples.labelled_files if isinstance(samples, Samples) else None
    return {
        "preprocessed": {key: value if isinstance(value, str) else str(value) for key, value in config.items()},
        "samples": samples.count,
        "files": files and hashlib.sha256("\n".join(files).encode("utf-8", "surrogateescape")).hexdigest(),
    }
