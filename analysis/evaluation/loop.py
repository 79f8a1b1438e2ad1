"""One process's part of an evaluation: batch by batch, each on the disk before the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.utils.decay_batch import decay_batch_step
from torch import Tensor, nn

from repshift.analysis.evaluation.models import Subject
from repshift.analysis.evaluation.records import PartialResults, Recorded, SampleRecord
from repshift.analysis.evaluation.settings import DTYPES, EvaluationSettings
from repshift.analysis.samples.batches import Batch, Failure, Share, seed_batch, unreadable
from repshift.analysis.samples.data import Samples, loader
from repshift.analysis.samples.streams import Stream
from repshift.analysis.subjects.memory import fitting, is_out_of_memory
from repshift.errors import DataError

# Called after every batch with how many samples are done, of how many if that is known, and the accuracy in per cent
Observer = Callable[[int, "int | None", float], None]


@dataclass
class Timing:
    """How long forwards took; the first batch, which compiles and allocates, counts only if there is no other.

    Attributes:
        samples: How many were timed.
        seconds: For how long.
    """

    samples: int = 0
    seconds: float = 0.0
    batches: int = 0

    def add(self, samples: int, seconds: float) -> None:
        """Count one batch."""
        if self.batches == 1:
            self.samples, self.seconds = 0, 0.0
        self.samples, self.seconds, self.batches = self.samples + samples, self.seconds + seconds, self.batches + 1

    @property
    def rate(self) -> float | None:
        """Samples a second; ``None`` if nothing was timed."""
        return self.samples / self.seconds if self.seconds else None


@dataclass
class Part:
    """What one process did.

    Attributes:
        records: Of the samples that it evaluated, without those done before.
        failures: Samples that could not be read, by number.
        rates: Samples a second of each method's forward, loading not counted; ``None`` if nothing was left to time.
        dense_rate: The same of the dense model.
        batch_size: The last one, smaller than asked for if memory ran out.
    """

    records: Recorded = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    rates: tuple[float | None, ...] = ()
    dense_rate: float | None = None
    batch_size: int = 0


class EvaluationLoop:
    """Evaluates one process's share of the samples.

    Args:
        subject: The methods, and the dense model if they are compared with it.
        samples: Data that are read by number, or a stream.
        settings: Batch size, precision, and what happens when something goes wrong.
        device: Where the model is.
        partial: Keeps every batch; ``None`` keeps nothing.
    """

    def __init__(
        self,
        subject: Subject,
        samples: Samples | Stream,
        settings: EvaluationSettings,
        device: torch.device,
        partial: PartialResults | None = None,
    ) -> None:
        self.subject, self.samples, self.settings = subject, samples, settings
        self.device, self.partial = device, partial
        self.part = Part(batch_size=settings.batch_size)
        self._timings, self._dense_timing = tuple(Timing() for _ in subject.candidates), Timing()
        self._right = 0
        valid = samples.valid_labels
        self._valid = None if valid is None else torch.tensor(valid, device=device)

    def run(self, share: Share, observe: Observer, stopped: Callable[[], bool] = lambda: False) -> Part:
        """Evaluate a share; stops early when ``stopped`` says so.

        Raises:
            DataError: If a sample cannot be read and is not to be skipped, or a label is none of the model's.
            MemoryExhaustedError: If a batch does not fit into memory.
        """
        while True:
            finished = {*share.done, *self.part.records, *self.part.failures}
            try:
                with fitting(self.part.batch_size, str(self.device)):
                    self._run(replace(share, done=finished), observe, stopped)
                break
            except Exception as error:
                smaller = decay_batch_step(self.part.batch_size)
                if not (self.settings.retry and smaller and is_out_of_memory(error.__cause__ or error)):
                    raise
            # outside of the handler, whose traceback holds the batch
            self.part.batch_size = smaller
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.part.rates = tuple(timing.rate for timing in self._timings)
        self.part.dense_rate = self._dense_timing.rate
        return self.part

    def _run(self, share: Share, observe: Observer, stopped: Callable[[], bool]) -> None:
        count = self.samples.count
        total = None if count is None else len(range(share.rank, count, share.processes))
        before = sum(index % share.processes == share.rank for index in share.done)
        seen = 0
        for batch in loader(
            self.samples,
            self.part.batch_size,
            self.settings.workers,
            share=share,
            pin_memory=self.device.type == "cuda",
        ):
            self._evaluate(batch)
            seen += len(batch.indices) + len(batch.failures)
            observe(before + seen, total, 100 * self._right / max(1, len(self.part.records)))
            if stopped():
                return

    def _evaluate(self, batch: Batch) -> None:
        if batch.failures and self.settings.on_error == "stop":
            raise DataError(f"{unreadable(batch.failures)} Or leave such samples out and count them: --on-error skip.")
        self.part.failures |= {failure.index: failure for failure in batch.failures}
        for index, label in zip(batch.indices, batch.labels, strict=True):
            if not 0 <= label < self.subject.classes:
                raise DataError(
                    f"{self.samples.file_name(index)} has the label {label}, the model's classes are 0 to "
                    f"{self.subject.classes - 1}. Give the data that the model was trained for, or --class-map."
                )
        if not batch.indices:
            return
        images = batch.images.to(self.device, DTYPES[self.settings.model_dtype], non_blocking=True)
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        first = batch.indices[0]
        predicted = [
            self._predict(self.subject.candidates[place].model, images, (first, draw), self._timings[place])
            for place, draw in self.subject.columns
        ]
        dense: list[Any] = [None] * len(images)
        if self.subject.dense is not None:
            dense = self._predict(self.subject.dense, images, (first, 0), self._dense_timing)
        made = zip(batch.indices, batch.labels, dense, *predicted, strict=True)
        records = {
            index: SampleRecord(label, ours, theirs, tuple(others)) for index, label, theirs, ours, *others in made
        }
        if self.partial is not None:
            self.partial.add(records)
        self.part.records |= records
        self._right += sum(record.predicted[0] == record.label for record in records.values())

    def _predict(
        self, model: nn.Module, images: Tensor, draw: tuple[int, int], timing: Timing
    ) -> list[tuple[int, ...]]:
        """Return the five likeliest classes of each image; a draw is of a first sample and has a number."""
        if self.settings.draws:
            seed_batch(self.settings.seed + draw[1], draw[0])
        start = time.perf_counter()
        with torch.inference_mode(), self._precision():
            outputs = model(images)
            if not isinstance(outputs, Tensor) or outputs.shape != (len(images), self.subject.classes):
                got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
                raise DataError(
                    f"The model returned {got} for {len(images)} images of {self.subject.classes} classes. Give a "
                    "classifier."
                )
            if self._valid is not None:
                outputs = outputs[:, self._valid]
            best = outputs.topk(min(5, outputs.shape[1])).indices
            if self._valid is not None:
                best = self._valid[best]
            unknown = outputs.isnan().any()
        predicted = [tuple(classes) for classes in best.tolist()]  # waits for the GPU
        timing.add(len(images), time.perf_counter() - start)
        if bool(unknown):
            raise DataError("The model's outputs are not numbers (NaN). Give --amp-dtype bfloat16, or leave out --amp.")
        return predicted

    def _precision(self) -> AbstractContextManager[Any]:
        if not self.settings.amp:
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.settings.amp_dtype])
