"""The paper's toy studies: what one choice of the method, varied at one block at a time, costs in accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repshift import DataError
from repshift.analysis.ablation.settings import CONTROLS, StudySetting, device_of
from repshift.analysis.ablation.shared_blocks import SharedBlocks
from repshift.analysis.output.paired import gain
from repshift.analysis.samples.data import Samples, loader
from repshift.analysis.subjects.variants import Variant
from repshift.finding import require_structure

DENSE = Variant()


@dataclass(frozen=True)
class Point:
    """One line of the results: what one setting of a study comes to at one block.

    Attributes:
        study: One of :data:`STUDIES`; ``dense`` for the model as it is.
        block: After which block, stage or layer, counted from zero.
        setting: What is varied; of a control its score.
        operation: Whose change is scored, or at whose input the norm is read; ``None`` where neither is.
        distance: Of the shift.
        residual: Of the shift.
        score: By which score.
        keep: Which end of its ranking stays, ``top`` or ``bottom``.
        drop: The schedule; of a map it speaks of rows and columns.
        dropped: How many tokens go, of a map how many positions.
        top1: Accuracy in percent.
        top1_error: Its standard error.
        delta: Points of accuracy above the dense model.
        over_random: Points of accuracy above dropping as many at this block at random, on the same images.
        over_random_error: Standard error of this paired difference.
        over_norm: The same against keeping the tokens of the largest norm.
        over_norm_error: Its standard error.
        samples: How many images.
    """

    study: str
    block: int | None
    setting: str
    operation: str | None
    distance: str | None
    residual: bool | None
    score: str | None
    keep: str | None
    drop: str | None
    dropped: int
    top1: float
    top1_error: float
    delta: float
    over_random: float | None
    over_random_error: float | None
    over_norm: float | None
    over_norm_error: float | None
    samples: int


def run_ablation(
    model: nn.Module,
    settings: Sequence[StudySetting],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    seed: int = 0,
    observe: Callable[[int], None] = lambda images: None,
) -> list[Point]:
    """Measure all settings on the same images, in one pass over them.

    Args:
        model: In evaluation mode.
        settings: What :func:`plan` returns; what several studies share is computed once.
        batches: Images as the model takes them and labels ``(batch,)``, both on its device.
        seed: Of the random control, which draws anew for each batch: another batch size is another draw.
        observe: Called with the number of images after each model that has seen a batch.

    Returns:
        The dense model first, then one point a setting.

    Raises:
        DataError: If there are no images, or the labels are not those of the model's classes.
        ScheduleError: If a network cannot spare so many lines.
    """
    structure = require_structure(model)
    shared = SharedBlocks(model, structure, max(setting.block for setting in settings))
    models = {DENSE: model}
    for variant, block in _variants_at(settings).items():
        models[variant] = variant.apply(model)
        shared.take_over(models[variant], block)
    with shared.remembered(), torch.random.fork_rng(), torch.inference_mode():
        right = _judge(models, batches, seed, observe)
    dense = StudySetting("dense", -1, "dense", DENSE, DENSE, 0)
    return [_point(setting, right) for setting in (dense, *settings)]


def labelled_batches(
    model: nn.Module, samples: Samples, batch_size: int, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Load images and labels to where a model is.

    Raises:
        DataError: If an image cannot be read; the message names it.
    """
    device = device_of(model)
    for batch in loader(samples, batch_size, workers, pin_memory=device.type == "cuda"):
        if batch.failures:
            raise DataError(f"Cannot read {batch.failures[0].name} ({batch.failures[0].reason}). Replace or remove it.")
        yield batch.images.to(device), torch.tensor(batch.labels, device=device)


def count_models(settings: Sequence[StudySetting]) -> int:
    """Say how many models :func:`run_ablation` compares, the dense one included."""
    return 1 + len(_variants_at(settings))


def _variants_at(settings: Sequence[StudySetting]) -> dict[Variant, int]:
    """List the distinct variants, controls included, with the block at which each drops."""
    return {
        variant: setting.block
        for setting in settings
        for variant in (setting.variant, *(setting.control(score) for score in CONTROLS))
    }


def _judge(
    models: Mapping[Variant, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    seed: int,
    observe: Callable[[int], None],
) -> dict[Variant, Tensor]:
    """Say which images each model classifies rightly, ``(images,)`` bool; the dense model goes first."""
    right: dict[Variant, list[Tensor]] = {variant: [] for variant in models}
    for number, (images, labels) in enumerate(batches):
        for variant, model in models.items():
            # the same draw for all: what random keeps at the top and at the bottom are each other's complement
            torch.manual_seed(1_000_003 * seed + number)
            logits = model(images)
            if variant == DENSE:
                _check_labels(labels, logits.shape[1])
            right[variant].append((logits.argmax(1) == labels).cpu())
            observe(len(labels))
    if not right[DENSE]:
        raise DataError("There are no images to compare on. Give data that has some.")
    return {variant: torch.cat(parts) for variant, parts in right.items()}


def _check_labels(labels: Tensor, classes: int) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"The data have labels from {int(labels.min())} to {int(labels.max())} (-1: none), the model tells "
            f"{classes} classes apart, from 0. Give the data that it was trained for."
        )


def _point(setting: StudySetting, right: Mapping[Variant, Tensor]) -> Point:
    variant, own = setting.variant, right[setting.variant]
    dense = variant.drop is None
    share, share_of_dense = _share(own), _share(right[DENSE])
    pairs = [(None, None)] * 2 if dense else [gain(own, right[setting.control(score)]) for score in CONTROLS]
    shift = not dense and variant.score == "shift"
    return Point(
        study=setting.study,
        block=None if dense else setting.block,
        setting=setting.label,
        operation=variant.operation if shift or variant.score == "norm" else None,
        distance=variant.distance if shift else None,
        residual=variant.residual if shift else None,
        score=None if dense else variant.score,
        keep=None if dense else variant.keep,
        drop=variant.drop,
        dropped=setting.dropped,
        top1=100 * share,
        top1_error=100 * math.sqrt(share * (1 - share) / len(own)),
        delta=100 * (share - share_of_dense),
        over_random=pairs[0][0],
        over_random_error=pairs[0][1],
        over_norm=pairs[1][0],
        over_norm_error=pairs[1][1],
        samples=len(own),
    )


def _share(right: Tensor) -> float:
    return int(right.sum()) / len(right)
