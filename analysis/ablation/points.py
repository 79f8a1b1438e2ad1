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
from repshift.analysis.subjects.methods import RANDOM, SHIFT
from repshift.analysis.subjects.recipes import apply, measured_columns, schedule_of, whole_recipe
from repshift.finding import require_structure

DENSE = None  # no recipe


@dataclass(frozen=True)
class Point:
    """One line of the results: what one setting of a study comes to at one block.

    Attributes:
        study: One of :data:`STUDIES`; ``dense`` for the model as it is.
        block: After which block, stage or layer, counted from zero.
        setting: What is varied; of a control its score, or ``lowres``, the dense model on a smaller input.
        operation: Whose change is scored, or at whose input the norm is read; ``None`` where neither is.
        distance: Of the shift.
        residual: Of the shift.
        score: By which score.
        keep: Which end of its ranking stays, ``top`` or ``bottom``.
        drop: The schedule; of a map it speaks of rows and columns.
        dropped: How many tokens go, of a map how many positions.
        input_size: Pixels a side of the smaller input, or rows and columns; ``None`` if it is not made smaller.
        top1: Accuracy in percent; at random its mean over the draws.
        top1_error: Its standard error.
        top1_spread: Standard deviation of the accuracy over several draws at random.
        delta: Points of accuracy above the dense model.
        over_random: Points of accuracy above dropping as many at this block at random, on the same images.
        over_random_error: Standard error of this paired difference.
        over_norm: The same against keeping the tokens of the largest norm.
        over_norm_error: Its standard error.
        over_lowres: The same against the dense model on a smaller input, for at most the work of dropping by the
            shift; ``None`` if there is none.
        over_lowres_error: Its standard error.
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
    over_lowres: float | None = None
    over_lowres_error: float | None = None
    input_size: int | list[int] | None = None
    top1_spread: float | None = None
    recipe: dict[str, Any] | None = None


def run_ablation(
    model: nn.Module,
    settings: Sequence[StudySetting],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    seed: int = 0,
    draws: int = 1,
    observe: Callable[[int], None] = lambda images: None,
) -> list[Point]:
    """Measure all settings on the same images, in one pass over them.

    Args:
        model: In evaluation mode.
        settings: What :func:`plan` returns; what several studies share is computed once.
        batches: Images as the model takes them and labels ``(batch,)``, both on its device.
        seed: Of the random control, which draws anew for each batch: another batch size is another draw.
        draws: How often it draws; its accuracy is the mean.
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
        right = _judge(models, batches, range(seed, seed + draws), observe)
    return [_dense_point(right[DENSE]), *(_point(setting, right, models) for setting in settings)]


def labelled_batches(
    model: nn.Module, samples: Samples, batch_size: int, workers: int | None = None
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


def count_models(settings: Sequence[StudySetting], draws: int = 1) -> int:
    """Say how many models :func:`run_ablation` compares, the dense one and every draw included."""
    return 1 + sum(draws if _drawn(recipe) else 1 for recipe in _recipes_at(settings))


def _recipes_at(settings: Sequence[StudySetting]) -> dict[Recipe, int]:
    """List the distinct recipes, controls included, with the block at which each drops."""
    return {
        recipe: setting.block
        for setting in settings
        for recipe in (setting.recipe, *(setting.control(score) for score in CONTROLS))
        if recipe != setting.lowres
    } | {setting.lowres: 0 for setting in settings if setting.lowres is not None}  # which shares no block


def _drawn(recipe: Recipe | None) -> bool:
    return recipe is not None and recipe.score == RANDOM


def _judge(
    models: Mapping[Recipe | None, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    seeds: Sequence[int],
    observe: Callable[[int], None],
) -> dict[Recipe | None, Tensor]:
    """Say which images each model classifies rightly, ``(draws, images)`` float; the dense model goes first."""
    right: dict[Recipe | None, list[Tensor]] = {recipe: [] for recipe in models}
    for number, (images, labels) in enumerate(batches):
        for recipe, model in models.items():
            draws = []
            for seed in seeds if _drawn(recipe) else seeds[:1]:
                # the same draw for all: what random keeps at the top and at the bottom are each other's complement
                torch.manual_seed(1_000_003 * seed + number)
                logits = model(images)
                if recipe is DENSE:
                    _check_labels(labels, logits.shape[1])
                draws.append((logits.argmax(1) == labels).float().cpu())
                observe(len(labels))
            right[recipe].append(torch.stack(draws))
    if not right[DENSE]:
        raise DataError("There are no images to compare on. Give data that has some.")
    return {recipe: torch.cat(parts, 1) for recipe, parts in right.items()}


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
    recipe, own = setting.recipe, right[setting.recipe]
    drops = recipe.schedule is not None and recipe.scores
    shift = drops and recipe.score == SHIFT
    over_random, over_norm = (gain(own.mean(0), right[setting.control(score)].mean(0)) for score in CONTROLS)
    over_lowres: tuple[float | None, float | None] = (None, None)
    if setting.lowres is not None and recipe != setting.lowres:
        over_lowres = gain(own.mean(0), right[setting.lowres].mean(0))
    columns = measured_columns(models[recipe])
    return Point(
        study=setting.study,
        block=setting.block,
        setting=setting.label,
        operation=recipe.operation if shift or (drops and recipe.score == "norm") else None,
        distance=str(recipe.distance) if shift else None,
        residual=recipe.residual if shift else None,
        score=str(recipe.score) if drops else None,
        keep=recipe.keep if drops else None,
        drop=schedule_of(recipe),
        dropped=setting.dropped,
        **_accuracy(own),
        delta=100 * (_share(own) - _share(right[DENSE])),
        over_random=over_random[0],
        over_random_error=over_random[1],
        over_norm=over_norm[0],
        over_norm_error=over_norm[1],
        over_lowres=over_lowres[0],
        over_lowres_error=over_lowres[1],
        input_size=columns.get("input_size"),
        recipe=whole_recipe(models[recipe]),
    )


def _accuracy(right: Tensor) -> dict[str, Any]:
    share = _share(right)
    error = math.sqrt(share * (1 - share) / right.shape[1])
    spread = 100 * float(right.mean(1).std()) if len(right) > 1 else None
    return {"top1": 100 * share, "top1_error": 100 * error, "top1_spread": spread, "samples": right.shape[1]}


def _share(right: Tensor) -> float:
    return int(right.sum()) / right.numel()
