"""The paper's toy studies: what one choice of the method, varied at one block at a time, costs in accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repshift import DataError, Recipe
from repshift.analysis.ablation.settings import CONTROLS, StudySetting, device_of
from repshift.analysis.ablation.shared_blocks import SharedBlocks
from repshift.analysis.output.paired import gain
from repshift.analysis.samples.data import Samples, loader
from repshift.analysis.subjects.recipes import apply, whole_recipe
from repshift.finding import require_structure

DENSE = None  # no recipe


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
        recipe: All that the model was pruned by, see :meth:`repshift.Recipe.to_dict`.
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
    recipe: dict[str, Any] | None = None


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
    models: dict[Recipe | None, nn.Module] = {DENSE: model}
    for recipe, block in _recipes_at(settings).items():
        models[recipe] = apply(recipe, model)
        shared.take_over(models[recipe], block)
    with shared.remembered(), torch.random.fork_rng(), torch.inference_mode():
        right = _judge(models, batches, seed, observe)
    return [_dense_point(right[DENSE]), *(_point(setting, right, models) for setting in settings)]


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
    return 1 + len(_recipes_at(settings))


def _recipes_at(settings: Sequence[StudySetting]) -> dict[Recipe, int]:
    """List the distinct recipes, controls included, with the block at which each drops."""
    return {
        recipe: setting.block
        for setting in settings
        for recipe in (setting.recipe, *(setting.control(score) for score in CONTROLS))
    }


def _judge(
    models: Mapping[Recipe | None, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    seed: int,
    observe: Callable[[int], None],
) -> dict[Recipe | None, Tensor]:
    """Say which images each model classifies rightly, ``(images,)`` bool; the dense model goes first."""
    right: dict[Recipe | None, list[Tensor]] = {recipe: [] for recipe in models}
    for number, (images, labels) in enumerate(batches):
        for recipe, model in models.items():
            # the same draw for all: what random keeps at the top and at the bottom are each other's complement
            torch.manual_seed(1_000_003 * seed + number)
            logits = model(images)
            if recipe is DENSE:
                _check_labels(labels, logits.shape[1])
            right[recipe].append((logits.argmax(1) == labels).cpu())
            observe(len(labels))
    if not right[DENSE]:
        raise DataError("There are no images to compare on. Give data that has some.")
    return {recipe: torch.cat(parts) for recipe, parts in right.items()}


def _check_labels(labels: Tensor, classes: int) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"The data have labels from {int(labels.min())} to {int(labels.max())} (-1: none), the model tells "
            f"{classes} classes apart, from 0. Give the data that it was trained for."
        )


def _dense_point(right: Tensor) -> Point:
    return Point(
        study="dense",
        block=None,
        setting="dense",
        operation=None,
        distance=None,
        residual=None,
        score=None,
        keep=None,
        drop=None,
        dropped=0,
        **_accuracy(right),
        delta=0.0,
        over_random=None,
        over_random_error=None,
        over_norm=None,
        over_norm_error=None,
    )


def _point(
    setting: StudySetting, right: Mapping[Recipe | None, Tensor], models: Mapping[Recipe | None, nn.Module]
) -> Point:
    recipe, own, shift = setting.recipe, right[setting.recipe], setting.recipe.score == "shift"
    over_random, over_norm = (gain(own, right[setting.control(score)]) for score in CONTROLS)
    return Point(
        study=setting.study,
        block=setting.block,
        setting=setting.label,
        operation=recipe.operation if shift or recipe.score == "norm" else None,
        distance=str(recipe.distance) if shift else None,
        residual=recipe.residual if shift else None,
        score=str(recipe.score),
        keep=recipe.keep,
        drop=str(recipe.schedule),
        dropped=setting.dropped,
        **_accuracy(own),
        delta=100 * (_share(own) - _share(right[DENSE])),
        over_random=over_random[0],
        over_random_error=over_random[1],
        over_norm=over_norm[0],
        over_norm_error=over_norm[1],
        recipe=whole_recipe(models[recipe]),
    )


def _accuracy(right: Tensor) -> dict[str, Any]:
    share = _share(right)
    error = math.sqrt(share * (1 - share) / len(right))
    return {"top1": 100 * share, "top1_error": 100 * error, "samples": len(right)}


def _share(right: Tensor) -> float:
    return int(right.sum()) / len(right)
