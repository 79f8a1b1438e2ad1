"""Training probes on dense features, and measuring each method with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repshift.analysis.output.paired import paired_summary
from repshift.analysis.probe.classifiers import LinearProbe, Neighbours, fit_linear, fit_neighbours
from repshift.analysis.samples.batches import Batch, seed_batch
from repshift.analysis.samples.data import Samples
from repshift.analysis.samples.passes import Found, Passes, told_apart_by
from repshift.analysis.subjects.comparing import Subjects, readable
from repshift.analysis.subjects.features import Reader
from repshift.analysis.subjects.methods import DENSE

# What is measured of each image, in the order of the table; accuracies are in per cent
ACCURACY, LIKELIHOOD, NEAREST = MEASURES = ("top1", "log_likelihood", "knn_top1")


@dataclass(frozen=True)
class Probes:
    """Both classifiers, trained on dense features.

    Attributes:
        linear: The linear probe.
        nearest: Nearest neighbours.
    """

    linear: LinearProbe
    nearest: Neighbours

    def __call__(self, features: Tensor, labels: Tensor) -> Tensor:
        """Measure images: ``(images, 3)`` float64, in the order of :data:`MEASURES`.

        Args:
            features: ``(images, channels)``.
            labels: ``(images,)`` int64.
        """
        found = self.linear(features)
        right, near = found.argmax(1) == labels, self.nearest(features).argmax(1) == labels
        likelihood = found.gather(1, labels[:, None]).squeeze(1)
        return torch.stack([100.0 * right.double(), likelihood, 100.0 * near.double()], dim=1)


def measure_probes(
    subjects: Subjects, train: Samples, validation: Samples, classes: Sequence[str], neighbours: int, passes: Passes
) -> Found:
    """Train probes on the dense features of some images, and measure all methods with them on others.

    Args:
        subjects: The dense model and the methods.
        train: Images with labels.
        validation: Others.
        classes: Names of the classes, by number.
        neighbours: How many vote.
        passes: How it runs.

    Raises:
        RepshiftError: If a model does not run, or a sample cannot be read; what was measured is kept.
        DataError: If there is nothing to learn.
    """
    processes, device = passes.processes, passes.device
    with processes.together():
        facts, dense = subjects.facts(validation.config), Reader(subjects.model)
    identity = subjects.identity(device, (passes.batch_size, processes.count))
    of_dense = {**identity, "methods": None, "batches": None}
    trained = passes.run(
        0, "training images", train, lambda batch: dense(batch.images.to(device, non_blocking=True)).pooled, of_dense
    )
    probes: Probes | None = None
    with processes.together():
        if processes.first:
            linear = fit_linear(trained.values, trained.labels, list(classes), subjects.seed)
            probes = Probes(linear, fit_neighbours(trained.values, trained.labels, len(classes), neighbours))
    probes = processes.exchange(probes)[0]
    measure = _Measure(subjects, probes, device)
    told = {"training": told_apart_by(train, train.config), "trained_on": len(trained.indices)}
    identity |= {**told, "neighbours": neighbours}
    found = passes.run(1, "validation images", validation, measure, identity)
    summary = paired_summary(measure.columns, found.values, subjects.others, measure.drawn, facts)
    rows = [
        {
            "model": subjects.name,
            "method": name,
            **measured,
            "samples": len(found.indices),
            "skipped": len(found.failures),
            "train_samples": len(trained.indices),
            **facts[name],
            "strength": probes.linear.strength,
            "neighbours": min(neighbours, len(trained.indices)),
            "batch_size": passes.batch_size,
            "seed": subjects.seed,
            "checkpoint": subjects.given.checkpoint and str(subjects.given.checkpoint),
        }
        for name, measured in summary.items()
    ]
    notes = [*trained.notes, *found.notes]
    if neighbours > len(trained.indices):
        notes.append(f"{neighbours} neighbours were asked for, and there are {len(trained.indices)} training images.")
    return Found(rows, found.by_image(validation, measure.columns), notes)


class _Measure:
    """Measures the dense model and all methods, batch by batch."""

    def __init__(self, subjects: Subjects, probes: Probes, device: torch.device) -> None:
        self.subjects, self.probes, self.device = subjects, probes, device
        shown = {name: readable(subjects.model, pruned) for name, pruned in subjects.pruned.items()}
        self.readers = {name: Reader(model) for name, model in {DENSE: subjects.model, **shown}.items()}
        self.drawn = {DENSE: (DENSE, 0), **subjects.drawn}
        self.columns = [(own, measure) for own in self.drawn for measure in MEASURES]

    def __call__(self, batch: Batch) -> Tensor:
        images = batch.images.to(self.device, non_blocking=True)
        labels = torch.tensor(batch.labels, device=self.device)
        found = []
        for name, draw in self.drawn.values():
            seed_batch(self.subjects.seed + draw, batch.indices[0])
            found.append(self.probes(self.readers[name](images).pooled, labels))
        return torch.cat(found, 1)
