"""Running a study over the images, on one process or several, and writing what came out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from repshift.analysis.output.figures import save_figure
from repshift.analysis.output.files import all_or_none, write_text
from repshift.analysis.output.results import environment
from repshift.analysis.samples.batches import Share, unreadable
from repshift.analysis.samples.data import Samples, loader
from repshift.analysis.samples.processes import Processes
from repshift.analysis.statistics.masks import Masks
from repshift.analysis.statistics.plots import (
    draw_agreement,
    draw_distributions,
    draw_foreground,
    draw_removal,
)
from repshift.analysis.statistics.study import VERSION, Study
from repshift.errors import DataError

FIGURES = ("distributions", "agreement", "foreground", "removal")

# Called with what is going on, how much of it is done, and of how much
Observer = Callable[[str, int, int], None]


def measure(
    study: Study,
    samples: Samples,
    masks: Masks | None,
    curve_samples: int,
    batch_size: int,
    workers: int | None,
    seed: int,
    processes: Processes,
    observe: Observer = lambda what, done, total: None,
) -> None:
    """Take in all samples; afterwards every process has the study of all of them.

    Args:
        study: Of a model on this process's device.
        samples: The images.
        masks: Where their objects are, if that is known.
        curve_samples: From how many images pixels are removed: the first of the samples.
        batch_size: Images a process and step.
        workers: Processes that load images.
        seed: Of the random score and of the noise in filled-in pixels.
        processes: All of them; each one makes a study of its own and calls this.
        observe: Told about the progress.

    Raises:
        DataError: If an image or a mask cannot be read, or no mask says anything.
    """
    torch.manual_seed(seed + processes.rank)
    device = next(study.model.parameters()).device
    with processes.together():
        own = range(processes.rank, len(samples), processes.count)
        share, for_curves = Share(processes.rank, processes.count), [place for place in own if place < curve_samples]
        done = 0
        for batch in loader(samples, batch_size, workers, share=share):
            if batch.failures:
                raise unreadable(batch.failures)
            study.update(batch.images.to(device), None if masks is None else masks(batch.indices))
            done += len(batch.indices)
            observe("scoring", done, len(own))
        done, left_out = 0, frozenset(set(own) - set(for_curves))
        curves = -(-len(for_curves) // batch_size) * study.curves_for_each_batch()

        def step() -> None:
            nonlocal done
            done += 1
            observe("removing pixels", done, curves)

        for batch in loader(samples, batch_size, 0, share=Share(processes.rank, processes.count, left_out)):
            study.update_removal(batch.images.to(device), step)
    for rank, other in enumerate(processes.exchange(study.measured())):
        if rank != processes.rank:
            study.merge(other)
    if masks is not None and not any(tally.images for tally in study.foreground.tallies.values()):
        raise DataError(
            f"None of the {len(samples)} masks says where an object is: as the model sees them, they are black, or not "
            "black, everywhere. Give others, or leave out --masks."
        )


def write_study(study: Study, output: Path, model: str, data: str, device: torch.device) -> list[Path]:
    """Write the numbers and the figures, all of them or none; returns the files.

    Figures that an earlier run has left there, and this one does not make, are removed: they would not belong to the
    numbers.

    Raises:
        DataError: If a file cannot be written or removed.
    """
    content = {
        "repshift_statistics": VERSION,
        "model": model,
        "data": data,
        "environment": environment(device),
        **study.results(),
    }
    figures = {"distributions": draw_distributions(study), "agreement": draw_agreement(study)}
    if study.foreground.tallies:
        figures["foreground"] = draw_foreground(study)
    if study.removal.images:
        figures["removal"] = draw_removal(study)
    numbers = output / "statistics.json"
    written = [numbers]
    with all_or_none():
        write_text(numbers, json.dumps(content, indent=1, allow_nan=False) + "\n")
        for name, figure in figures.items():
            written.append(output / f"{name}.png")
            save_figure(figure, written[-1])
    _remove(output / f"{name}.png" for name in FIGURES if name not in figures)
    return written


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(
                f"Cannot remove {path}, a figure of an earlier run ({error.strerror}). Give another folder (--output)."
            ) from error
