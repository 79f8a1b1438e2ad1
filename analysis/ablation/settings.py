"""What the paper's toy studies compare: one choice of the method is varied, at one block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn

from repshift import DISTANCES, Recipe, ScheduleError, ShiftTracker, UnknownNameError, UnsupportedModelError
from repshift.analysis.subjects.limits import check_blocks
from repshift.analysis.subjects.methods import DENSE, LIMIT, LOWRES, RANDOM, RECOMMENDED, SHIFT, recipe_for
from repshift.analysis.subjects.recipes import apply
from repshift.analysis.subjects.smaller_inputs import SmallerInputs
from repshift.drops import Drop, dropped_count
from repshift.finding import require_structure
from repshift.registry import suggest
from repshift.sites import Site, Structure

STUDIES = ("operation", "distance", "residual", "score", "half")
CONTROLS = (RANDOM, "norm")  # a part of every study, and so is a smaller input where there is one
SHARE = 0.2  # of the tokens: the paper drops 40 of 196
HALF = 0.5


@dataclass(frozen=True)
class StudySetting:
    """One way to drop tokens at one block, and what a study calls it.

    Attributes:
        study: One of :data:`STUDIES`.
        block: After which block, stage or layer, counted from zero.
        label: What is varied; of a control its score.
        recipe: How the model is pruned.
        base: As the model is pruned by default, by as much at this block; the controls differ from it in the score.
        dropped: How many tokens go, of a map how many positions; none of a smaller input.
        lowres: The dense model on a smaller input, for at most the work of ``base``; ``None`` if there is none, or it
            was not looked for.
    """

    study: str
    block: int
    label: str
    recipe: Recipe
    base: Recipe
    dropped: int
    lowres: Recipe | None = None

    def control(self, score: str) -> Recipe:
        """Return a control that drops as much at the same block."""
        return replace(self.base, score=score)


def choose_studies(names: Iterable[str]) -> tuple[str, ...]:
    """Settle which studies are wanted, in the order of :data:`STUDIES`.

    Args:
        names: Their names; ``all`` stands for all of them.

    Raises:
        UnknownNameError: If there is no such study.
    """
    wanted = list(names)
    for name in wanted:
        if name not in (*STUDIES, "all"):
            raise UnknownNameError(f"There is no study {name!r}. {suggest(name, (*STUDIES, 'all'))}")
    return tuple(study for study in STUDIES if study in wanted or "all" in wanted)


def plan(
    model: nn.Module,
    size: tuple[int, ...],
    studies: Sequence[str] = STUDIES,
    blocks: Sequence[int] | None = None,
    count: int | None = None,
    methods: Sequence[str] | None = None,
) -> list[StudySetting]:
    """List what is to be compared.

    What a model lacks is left out: attention as a score where there is none, and the study of the residual where the
    operation contains it, as a stage of a convolutional network does.

    Args:
        model: It is run once, on an empty image, to see how many tokens there are.
        size: Channels, rows and columns of the images.
        studies: Some of :data:`STUDIES`.
        blocks: Counted from zero; by default all of up to four, else every second or rarer, up to six.
        count: How many tokens go (of a map, how many rows and columns) in all studies but ``half``; by default a
            fifth of them, at least one.
        methods: What the study ``score`` compares beside the controls, see
            :func:`repshift.analysis.subjects.methods.known_methods`; by default the shift, attention, the merging
            pruner that is recommended, and dropping without any score.

    Raises:
        UnknownNameError: If a block does not exist.
        UnsupportedModelError: If the model cannot be pruned, has none of the studies, or not a method that was asked
            for.
        ScheduleError: If more is to be dropped than there is.
    """
    structure = require_structure(model)
    if count is not None and count < 1:
        raise ScheduleError(f"{count} tokens cannot be dropped. Give a count of 1 or more (--count).")
    grids = _grids(model, size, structure, blocks)
    settings = []
    for block, grid in grids.items():
        least = min(grid)
        fifth: Drop = SHARE if math.floor(SHARE * least) else 1
        for study in studies:
            drop = (HALF if least > 1 else 1) if study == "half" else count or fifth
            dropped = _dropped(grid, drop, f"{structure.unit} {block}")
            base = Recipe(f"{drop}@{block}", operation=_own_operation(structure, structure.sites[block]))
            varied = _methods(model, base, structure.sites[block], methods) if study == "score" else {}
            settings += [
                StudySetting(study, block, label, recipe, base, dropped)
                for label, recipe in _recipes(study, base, structure.sites[block], varied)
            ]
    if not settings:
        raise UnsupportedModelError(
            f"{type(model).__name__} has nothing to vary in the study {' or '.join(studies)}: it has too few tokens, "
            "or its operations contain the residual either way. Give larger images, or choose others of "
            f"{', '.join(STUDIES)}."
        )
    return settings


def with_smaller_inputs(
    model: nn.Module, size: tuple[int, int, int], settings: Sequence[StudySetting]
) -> tuple[list[StudySetting], list[str]]:
    """Add the control of a smaller input to every study at every block.

    Args:
        model: Dense.
        size: Channels, rows and columns of the images.
        settings: What :func:`plan` returns.

    Returns:
        The settings, and remarks on blocks at which no smaller input does as little work.
    """
    inputs = SmallerInputs(model, size)
    found: dict[Recipe, Recipe] = {}
    remarks: dict[str, list[str]] = {}
    for base in dict.fromkeys(setting.base for setting in settings):
        try:
            found[base] = inputs.recipe_for(apply(base, model))
        except UnsupportedModelError as error:
            remarks.setdefault(str(error), []).append(str(base.schedule))
    known = [replace(setting, lowres=found.get(setting.base)) for setting in settings]
    lines = {
        (one.study, one.block): replace(one, label=LOWRES, recipe=one.lowres, dropped=0)
        for one in known
        if one.lowres is not None
    }
    told = [f"without {LOWRES} for {', '.join(where)}: {reason}" for reason, where in remarks.items()]
    return [*known, *lines.values()], told


def device_of(model: nn.Module) -> torch.device:
    """Say where a model is, by its first parameter."""
    return next(model.parameters()).device


def _methods(model: nn.Module, base: Recipe, site: Site, asked: Sequence[str] | None) -> dict[str, Recipe | None]:
    """List what the study of the score varies; the controls are added to every study.

    Raises:
        UnsupportedModelError: If the model cannot have a method that was asked for.
    """
    attention = [score] if (score := _attention_score(site)) else []
    names = asked or (SHIFT, *attention, RECOMMENDED, LIMIT)
    recipes = {name: recipe_for(name, base) for name in names if name not in (DENSE, LOWRES, *CONTROLS)}
    for name, recipe in list(recipes.items()):
        try:
            apply(recipe, model)
        except UnsupportedModelError:
            if asked is not None:
                raise
            del recipes[name]
    return recipes


def _recipes(study: str, base: Recipe, site: Site, methods: Mapping[str, Recipe | None]) -> list[tuple[str, Recipe]]:
    """List the settings of a study at one block, controls last; none if the block has nothing to vary."""
    controls = [(score, replace(base, score=score)) for score in CONTROLS]
    attention = [score] if (score := _attention_score(site)) else []
    if study == "half":
        return [
            (f"{score}, {keep}", replace(base, score=score, keep=keep))
            for score in ("shift", *attention, *CONTROLS)
            for keep in ("top", "bottom")
        ]
    if study == "operation":
        varied = [(name, replace(base, operation=name)) for name in site.operations]
    elif study == "distance":
        varied = [(name, replace(base, distance=name)) for name in DISTANCES.names()]
    elif study == "residual":
        if site.operations[str(base.operation)].on_stream:
            return []
        varied = [(f"residual={residual}", replace(base, residual=residual)) for residual in (False, True)]
    else:
        varied = [(name, recipe) for name, recipe in methods.items() if recipe is not None]
    return [*varied, *controls]


def _own_operation(structure: Structure, site: Site) -> str:
    """Name the operation that all studies but that of the operation watch."""
    if structure.operation in site.operations or not site.operations:
        return structure.operation
    return next(iter(site.operations))


def _attention_score(site: Site) -> str | None:
    if site.heads is None:
        return None
    return "cls_attention" if site.heads.class_token else "mean_attention"


def _grids(
    model: nn.Module, size: tuple[int, ...], structure: Structure, blocks: Sequence[int] | None
) -> dict[int, tuple[int, ...]]:
    """Count what can be dropped after some blocks: tokens, or rows and columns.

    Raises:
        UnknownNameError: If a block does not exist.
        UnsupportedModelError: If a block has nothing to watch.
    """
    sites = structure.sites
    for block in check_blocks(blocks or ()):
        if not 0 <= block < len(sites):
            raise UnknownNameError(
                f"There is no {structure.unit} {block} in {type(model).__name__}: it has {len(sites)}, 0 to "
                f"{len(sites) - 1}. Choose among these."
            )
    watched = [block for block, site in enumerate(sites) if site.operations]
    step = 1 if len(watched) <= 4 else max(2, math.ceil(len(watched) / 6))
    with ExitStack() as stack, torch.inference_mode():
        trackers = {
            block: stack.enter_context(
                ShiftTracker(model, sites[block].name, operation=_own_operation(structure, sites[block]))
            )
            for block in (sorted(blocks) if blocks else watched[::step])
        }
        model(torch.zeros(1, *size, device=device_of(model)))
    if structure.pruner == "lines":
        grids = {block: tuple(tracker.maps[sites[block].name].shape[1:]) for block, tracker in trackers.items()}
    else:
        grids = {block: (tracker.shifts[sites[block].name].shape[1],) for block, tracker in trackers.items()}
    return {block: grid for block, grid in grids.items() if blocks or min(grid) > 1}


def _dropped(grid: tuple[int, ...], drop: Drop, where: str) -> int:
    """Count the tokens that go, or the positions in the lines that go.

    Raises:
        ScheduleError: If fewer than one would stay.
    """
    unit = "tokens" if len(grid) == 1 else "rows or columns"
    return math.prod(grid) - math.prod(length - dropped_count(length, drop, where, unit) for length in grid)
