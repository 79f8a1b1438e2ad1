"""What is measured of each image: how far each method's features and predictions are from the dense model's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repshift.analysis.output.paired import paired_summary
from repshift.analysis.samples.batches import Batch, seed_batch
from repshift.analysis.samples.data import Samples
from repshift.analysis.samples.passes import Found, Passes
from repshift.analysis.subjects.comparing import Subjects, readable, reads_one_token, restoring
from repshift.analysis.subjects.features import Features, Reader, cosine_distance
from repshift.analysis.subjects.methods import DENSE

# What is measured, in the order of the table; agreement is in per cent
FEATURES, TOKENS, AGREEMENT, DIVERGENCE = MEASURES = ("feature_distance", "token_distance", "agreement", "kl")


class Fidelity:
    """Measures how far methods are from the dense model, batch by batch.

    Which measures a method has is settled with one image of noise: tokens can be compared where every token has its
    place back, predictions where there is a head.

    Args:
        subjects: The dense model and the methods, on their device.
        input_size: Channels, rows and columns of the images.
    """

    def __init__(self, subjects: Subjects, input_size: Sequence[int]) -> None:
        self.subjects, self.device = subjects, _device(subjects.model)
        self.dense = Reader(subjects.model)
        # where the head reads the class token alone, one forward tells what the head reads and every token
        shared = reads_one_token(subjects.model)
        self.readers: dict[str, tuple[Reader, Reader | None]] = {}
        for name, pruned in subjects.pruned.items():
            shown = readable(subjects.model, pruned)
            whole = restoring(subjects.model, shown)
            reader = Reader(whole if shared and whole is not None else shown)
            same = whole is None or shared or whole is shown
            self.readers[name] = reader, None if whole is None else reader if same else Reader(whole)
        noise = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0)).to(self.device)
        with torch.inference_mode():
            dense = self.dense(noise)
            self.measures = {name: list(self._compare(name, dense, noise, 0, 0)) for name in self.readers}

    @property
    def columns(self) -> list[tuple[str, str]]:
        """What is measured, see :attr:`Subjects.drawn`, and the measure, of each number."""
        return [(own, measure) for own, (name, _) in self.subjects.drawn.items() for measure in self.measures[name]]

    def __call__(self, batch: Batch) -> Tensor:
        """Measure a batch: ``(batch, numbers)`` float64, in the order of :attr:`columns`."""
        images = batch.images.to(self.device, non_blocking=True)
        dense = self.dense(images)
        first, drawn = batch.indices[0], self.subjects.drawn
        found = {own: self._compare(name, dense, images, first, draw) for own, (name, draw) in drawn.items()}
        return torch.stack([found[name][measure] for name, measure in self.columns], dim=1)

    def _compare(self, name: str, dense: Features, images: Tensor, first: int, draw: int) -> dict[str, Tensor]:
        reader, restored = self.readers[name]
        seed_batch(self.subjects.seed + draw, first)
        ours = reader(images)
        tokens = ours.tokens if restored is reader else None
        if restored is not None and restored is not reader:
            seed_batch(self.subjects.seed + draw, first)  # the same tokens go
            tokens = restored(images).tokens
        found = {FEATURES: cosine_distance(ours.pooled, dense.pooled)}
        if tokens is not None and dense.tokens is not None and tokens.shape == dense.tokens.shape:
            found[TOKENS] = cosine_distance(tokens, dense.tokens).mean(1)
        if ours.logits is not None and dense.logits is not None:
            found[AGREEMENT] = 100.0 * (ours.logits.argmax(1) == dense.logits.argmax(1)).double()
            found[DIVERGENCE] = divergence(dense.logits, ours.logits)
        return found


def divergence(dense: Tensor, ours: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of predictions from the dense model's, ``KL(dense || ours)`` in nats.

    Args:
        dense: Logits ``(batch, classes)``.
        ours: The same of the other model.

    Returns:
        ``(batch,)`` float64.
    """
    theirs, mine = dense.double().log_softmax(1), ours.double().log_softmax(1)
    return (theirs.exp() * (theirs - mine)).sum(1).clamp_min(0)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def measure_fidelity(subjects: Subjects, samples: Samples, passes: Passes) -> Found:
    """Compare all methods with the dense model on all samples.

    Raises:
        RepshiftError: If a model does not run, or a sample cannot be read; what was measured is kept.
    """
    with passes.processes.together():
        facts, measure = subjects.facts(samples.config), Fidelity(subjects, samples.config["input_size"])
    identity = subjects.identity(passes.device, (passes.batch_size, passes.processes.count))
    found = passes.run(0, "comparing", samples, measure, identity)
    summary = paired_summary(measure.columns, found.values, subjects.others, subjects.drawn, facts)
    rows = [
        {
            "model": subjects.name,
            "method": name,
            **summary[name],
            "samples": len(found.indices),
            "skipped": len(found.failures),
            **facts[name],
            "dense_gmacs": facts[DENSE]["gmacs"],
            "batch_size": passes.batch_size,
            "seed": subjects.seed,
            "checkpoint": subjects.given.checkpoint and str(subjects.given.checkpoint),
        }
        for name in subjects.pruned
    ]
    return Found(rows, found.by_image(samples, measure.columns), found.notes)
