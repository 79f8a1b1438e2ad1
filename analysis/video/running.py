"""What ``repshift retrieve`` and ``repshift answer`` have in common: from options to models, features, and results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from repshift.analysis.output.partial import forget_unfinished, settle_unfinished, unfinished_folder
from repshift.analysis.output.results import check_results_files, write_with_images
from repshift.analysis.output.terminal import progress_bar
from repshift.analysis.samples.passes import Found
from repshift.analysis.samples.processes import Processes, as_one_command
from repshift.analysis.subjects.limits import check_batch, check_seed, check_seeds, check_workers
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.subjects.recipes import chosen_recipe
from repshift.analysis.video.encoding import Encoding, Observer
from repshift.analysis.video.features import features_folder
from repshift.analysis.video.subjects import VideoSubjects, build_video_subjects
from repshift.errors import DataError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
Asked = TypeVar("Asked")


@dataclass(frozen=True)
class VideoOptions:
    """What the options of both commands say; see :mod:`repshift.analysis.output.options`.

    Attributes:
        kind: The command, for its results.
        task: What its model can do; see :func:`repshift.analysis.video.subjects.require_task`.
        model: Of ``--model``.
        built: How it is built.
        drop, drop_r, recipe: What is pruned.
        scored: ``score``, ``operation``, ``distance``, ``residual``, ``pruner`` and ``keep``.
        compared: ``methods``, ``files``, ``compare_dense``, ``against`` and ``seeds``.
        frames, seconds: What a model is given of a video.
        batch_size, workers, device, amp, amp_dtype, seed, on_error: How it runs.
        features, results_file, results_format, per_query, resume: What is kept and written.
    """

    kind: str
    task: str
    model: str
    built: ModelOptions
    drop: str | None = None
    drop_r: str | None = None
    recipe: Path | None = None
    scored: Mapping[str, Any] = field(default_factory=dict)
    compared: Mapping[str, Any] = field(default_factory=dict)
    frames: int | None = None
    seconds: float | None = None
    batch_size: int = 8
    workers: int | None = None
    device: str | None = None
    amp: bool = False
    amp_dtype: str = "float16"
    seed: int = 0
    on_error: str = "stop"
    features: Path | None = None
    results_file: Path | None = None
    results_format: str | None = None
    per_query: Path | None = None
    resume: bool | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """That of mixed precision, if it was asked for.

        Raises:
            DataError: If there is no such one.
        """
        if self.amp and self.amp_dtype not in DTYPES:
            raise DataError(f"Unknown --amp-dtype {self.amp_dtype!r}. Give {' or '.join(DTYPES)}.")
        return DTYPES[self.amp_dtype] if self.amp else None

    def check(self) -> None:
        """Check what can be checked before anything is read.

        Raises:
            DataError: If a number means nothing.
        """
        check_seed(self.seed)
        check_seeds(self.compared.get("seeds"))
        check_batch(self.batch_size)
        check_workers(self.workers)

    def subjects(self, device: torch.device) -> VideoSubjects:
        """Build the models."""
        pruned = chosen_recipe(self.recipe, self.drop, self.drop_r, model=self.model, **self.scored)
        return build_video_subjects(
            self.model,
            self.built,
            pruned,
            self.frames,
            self.seconds,
            self.task,
            seed=self.seed,
            device=device,
            **self.compared,
        )


def run_on_videos(
    given: VideoOptions,
    prepare: Callable[[VideoSubjects, Path | None], Asked],
    measure: Callable[[VideoSubjects, Asked, Encoding], Found],
) -> tuple[Found, Sequence[str]] | None:
    """Run a command.

    Args:
        given: Its options.
        prepare: Given the models, and where what was matched is kept, reads what is asked of the videos.
        measure: Measures it.

    Returns:
        What was found, and notes on what was left out; ``None`` in all processes but the first.

    Raises:
        RepshiftError: If anything is not as it should be.
    """
    given.check()
    with as_one_command(given.results_file is not None) as processes:
        with progress_bar(shown=processes.first) as progress:
            task = progress.add_task("loading", total=None)

            def observe(what: str, done: int, total: int) -> None:
                progress.update(task, description=what, completed=done, total=total)

            found, notes = _run(given, processes, prepare, measure, observe)
        return (found, notes) if processes.first else None


def _run(
    given: VideoOptions,
    processes: Processes,
    prepare: Callable[[VideoSubjects, Path | None], Asked],
    measure: Callable[[VideoSubjects, Asked, Encoding], Found],
    observe: Observer,
) -> tuple[Found, Sequence[str]]:
    partial = unfinished_folder(given.results_file)
    with processes.together():
        if processes.first:
            one = "query" if given.kind == "retrieve" else "question"
            check_results_files(given.results_file, given.results_format, given.per_query, f"--per-{one}")
            settle_unfinished(partial, given.resume)
        device, dtype = processes.device(given.device), given.dtype
        subjects = given.subjects(device)
        asked = prepare(subjects, partial)
    with features_folder(given.features, given.results_file, processes) as folder:
        found = measure(
            subjects,
            asked,
            Encoding(processes, folder, given.batch_size, given.workers, device, dtype, given.on_error, observe),
        )
        with processes.together():
            if processes.first:
                results = given.results_file, given.results_format, given.per_query
                write_with_images(given.kind, found.rows, found.images, device, *results)
                if partial is not None:
                    forget_unfinished(partial)
    return found, subjects.subjects.notes
