"""Evaluation of dense and pruned models on labelled images, on one process or several: every sample exactly once.

What is predicted for each sample is recorded by its number, on the disk, before the next batch is begun; all numbers
of the result are computed from these records, in order. So a run that is stopped at any moment and resumed ends with
the result of an uninterrupted one, with any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from repshift.analysis.evaluation.loop import EvaluationLoop, Part
from repshift.analysis.evaluation.models import Subject, build_subject, load_classifier
from repshift.analysis.evaluation.records import PartialResults, Recorded, Row
from repshift.analysis.evaluation.rows import Measured, make_rows
from repshift.analysis.evaluation.settings import EvaluationSettings, read_valid_labels
from repshift.analysis.evaluation.summary import read_real_labels, real_answers
from repshift.analysis.output.files import output_file
from repshift.analysis.output.partial import forget_unfinished, settle_unfinished, unfinished_folder
from repshift.analysis.output.results import Results, environment, results_format, write_results
from repshift.analysis.samples.batches import Failure, Share
from repshift.analysis.samples.canvases import CANVASES
from repshift.analysis.samples.data import Samples, open_samples
from repshift.analysis.samples.passes import told_apart_by
from repshift.analysis.samples.processes import Processes
from repshift.analysis.samples.sources import STREAMS, check_source
from repshift.analysis.samples.streams import Stream, open_stream
from repshift.errors import DataError, first_line

# Called after every batch with the model, how many samples are done, of how many if that is known, and the accuracy
Observer = Callable[[str, int, "int | None", float], None]


class Evaluation:
    """One run of the command: some models, one results file.

    Args:
        settings: How the models are evaluated.
        processes: All processes; each one makes an evaluation of its own and calls the same methods.
        results: The results file; ``None`` writes none, and keeps nothing to resume from.
        wanted_format: ``csv``, ``json`` or ``md``; by default what the file's ending says.
        observe: Called after every batch of this process.

    Raises:
        DataError: If the device, the data or the place of the results are not there.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        processes: Processes,
        results: Path | None = None,
        wanted_format: str | None = None,
        observe: Observer = lambda model, done, total, accuracy: None,
    ) -> None:
        self.settings, self.processes, self.observe = settings, processes, observe
        self.results, self.wanted_format = results, wanted_format
        self.notes: dict[str, None] = {}  # of how files were found and labelled, each once
        self.device = processes.device(settings.device)
        self.stream = False
        if settings.data != CANVASES or settings.dataset:
            self.stream = check_source(settings.data, settings.dataset, settings.split) in STREAMS
        self.valid_labels = read_valid_labels(settings.valid_labels)
        self.real_labels = None if settings.real_labels is None else read_real_labels(settings.real_labels)
        if self.stream and self.real_labels is not None:
            raise DataError("--real-labels needs the names of files, which a stream does not have. Give a folder.")
        results_format(results, wanted_format)
        if results is not None and processes.first:
            output_file(results)

    @property
    def partial_folder(self) -> Path | None:
        """Where an unfinished run keeps what it has evaluated: beside the results file."""
        return unfinished_folder(self.results)

    def run(self, models: Sequence[str], resume: bool | None = None) -> list[Row]:
        """Evaluate models one after the other and write the results after each.

        Args:
            models: Their names. Of several models, one that fails has its ``error`` in its row, and the others go on.
            resume: Go on with an unfinished run; ``False`` begins anew; by default an unfinished run is an error.

        Returns:
            One row for each model, and for each method of it if there are several; a dense model first.

        Raises:
            RepshiftError: If the only model fails; what was evaluated is kept.
        """
        with self.processes.together():
            if self.processes.first or self.results is None:
                settle_unfinished(self.partial_folder, resume)
            chosen = [self.settings.of_model(name) for name in models]
        rows: list[Row] = []
        for number, (name, settings) in enumerate(zip(models, chosen, strict=True)):
            try:
                rows += self._finished(name, number, settings) or self._evaluate(name, number, settings)
            except Exception as error:
                if len(models) == 1:
                    raise
                rows.append({"model": name, "error": f"{type(error).__name__}: {first_line(error)}"})
            with self.processes.together():
                if self.results is not None and self.processes.first:
                    write_results(self.results, Results("eval", rows, environment(self.device)), self.wanted_format)
        complete = not any("error" in row for row in rows)
        if self.partial_folder is not None and self.processes.first and complete:
            forget_unfinished(self.partial_folder)
        return rows

    def _partial(self, number: int, settings: dict[str, Any]) -> PartialResults | None:
        if self.partial_folder is None:
            return None
        return PartialResults(self.partial_folder / f"{number:04d}", settings, self.processes.rank)

    def _finished(self, name: str, number: int, settings: EvaluationSettings) -> list[Row] | None:
        """Return the rows of a model that was finished before the run was interrupted."""
        rows = None
        with self.processes.together():
            partial = self._partial(number, {})
            if partial is not None and self.processes.first and (rows := partial.rows(name)) is not None:
                model, config = load_classifier(name, settings)
                identity = self._identity(name, settings, config, self._open(model, config))
                PartialResults(partial.folder, identity).resume()
        found: list[Row] | None = self.processes.exchange(rows)[0]
        return found

    def _evaluate(self, name: str, number: int, settings: EvaluationSettings) -> list[Row]:
        records: Recorded = {}
        with self.processes.together():
            subject = build_subject(name, settings, self.device)
            self.notes.update(dict.fromkeys(subject.remarks))
            samples = self._open(subject.classifier, subject.config)
            partial = self._partial(number, self._identity(name, settings, subject.config, samples))
            if partial is not None and self.processes.first:
                records = partial.resume()
                partial.begin()
        records = self.processes.exchange(records if self.processes.first else None)[0]
        part = Part()
        loop = EvaluationLoop(subject, samples, settings, self.device, partial)
        share = Share(self.processes.rank, self.processes.count, frozenset(records))
        try:
            with self.processes.together():
                part = loop.run(share, lambda *done: self.observe(name, *done), lambda: self.processes.failing)
        finally:
            if partial is not None:
                partial.close()
                if self.processes.first:
                    partial.forget_if_empty()
        parts = self.processes.exchange(part)
        with self.processes.together():
            rows = self._rows(name, settings, subject, samples, records, parts)
            if partial is not None and self.processes.first:
                partial.finish(rows)
        return rows

    def _open(self, model: nn.Module, config: Mapping[str, Any]) -> Samples | Stream:
        settings = self.settings
        options = {
            "split": settings.split,
            "class_map": settings.class_map,
            "valid_labels": self.valid_labels,
            "num_samples": settings.num_samples,
            "config": config,
            **settings.dataset_options,
        }
        if self.stream:
            return open_stream(model, settings.data, settings.dataset, **options)
        options |= {name: getattr(settings, name) for name in ("labels", "suffixes", "skip_other_files")}
        samples = open_samples(model, settings.data, dataset=settings.dataset, **options)
        self.notes.update(dict.fromkeys(samples.notes))
        return samples

    def _identity(
        self, name: str, settings: EvaluationSettings, config: Mapping[str, Any], samples: Samples | Stream
    ) -> dict[str, Any]:
        """Return what must not have changed when an evaluation is resumed: the settings, and the data found."""
        fingerprint = settings.fingerprint(name, self.device, self.processes.count)
        return {**fingerprint, **told_apart_by(samples, config)}

    def _rows(
        self,
        name: str,
        settings: EvaluationSettings,
        subject: Subject,
        samples: Samples | Stream,
        before: Recorded,
        parts: Sequence[Part],
    ) -> list[Row]:
        records, failures = self._merge(samples, before, parts)
        answers = None
        if self.real_labels is not None:
            answers = real_answers(self.real_labels, {index: samples.file_name(index) for index in records})
        classes = subject.classes if self.valid_labels is None else len(self.valid_labels)
        return make_rows(name, settings, subject, Measured(records, failures, answers, classes, parts))

    def _merge(
        self, samples: Samples | Stream, before: Recorded, parts: Sequence[Part]
    ) -> tuple[Recorded, dict[int, Failure]]:
        """Put the records of all processes together, and count that no sample is missing or there twice."""
        records = dict(before)
        failures: dict[int, Failure] = {}
        for part in parts:
            records |= part.records
            failures |= part.failures
        told = len(before) + sum(len(part.records) + len(part.failures) for part in parts)
        expected = told if samples.count is None else samples.count
        if not told == len(records.keys() | failures.keys()) == expected:
            raise DataError(
                f"{told} samples were evaluated, {len(records.keys() | failures.keys())} of them different, of "
                f"{expected}. The data changed meanwhile, or are not the same for every process: begin anew "
                "(--no-resume)."
            )
        return records, failures
