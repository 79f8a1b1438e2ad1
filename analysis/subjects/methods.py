"""What commands compare: the dense model, pruning by the shift, its baselines and controls, and their limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from repshift import PRUNERS, Recipe
from repshift.analysis.subjects.recipes import apply, pruner_in_words, read_recipe
from repshift.analysis.subjects.smaller_inputs import SmallerInputs
from repshift.errors import ScheduleError, UnknownNameError, UnsupportedModelError
from repshift.registry import suggest
from repshift.scores import SCORES

DENSE, SHIFT, LIMIT, LOWRES = "dense", "shift", "oracle_free", "lowres"
FEWER_FRAMES = "fewer_frames"  # of videos instead of lowres: the dense model on so many that it does no more work
PLAIN = "eager"  # the dense model with plain attention
OTHERS = (PLAIN, FEWER_FRAMES)  # what single commands take beside the methods of all
RANDOM = "random"
SEEDS = 3  # draws of it beside other methods, where nothing else is asked for
ATTENTION = ("cls_attention", "mean_attention")  # a model without a class token has only the second
CONTROLS = ("norm", RANDOM)
# Pruners, which look at the shift or at no score: those that merge, one that spares every part, lines by their places,
# and of videos the same in every frame
MERGING = ("mnn", "mnn1", "ward", "tome", "merge", "fuse", "saliency_merge")
IN_FRAMES = ("frames", "mnn_frames", "tome_frames", "merge_frames", "saliency_merge_frames")
BY_PRUNER = (*MERGING, "cells", "crop", "centre", "even", *IN_FRAMES)
RECOMMENDED = "mnn"  # of them
# What is compared where nothing is asked for; what a model cannot have is left out
USUAL = (SHIFT, *ATTENTION, *CONTROLS, RECOMMENDED, LOWRES, LIMIT)


def known_methods() -> list[str]:
    """List what ``--methods`` takes."""
    return [DENSE, SHIFT, *SCORES.names(), *BY_PRUNER, LOWRES]


def read_methods(text: str | None, others: Sequence[str] = ()) -> list[str] | None:
    """Read ``--methods``, such as ``shift,mnn,lowres``; a name that is there twice counts once.

    Args:
        text: What was given.
        others: What one command takes beside :func:`known_methods`, as no recipe says it.

    Raises:
        UnknownNameError: If a method does not exist.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    known = [*known_methods(), *others]
    for name in names:
        if not name:
            raise UnknownNameError(f"A name is missing in --methods {text!r}. Give such as shift,mnn,lowres.")
        if name not in known:
            raise UnknownNameError(f"Unknown method {name!r}. {suggest(name, known)} (--methods)")
    return list(dict.fromkeys(names))


def further_recipes(files: Sequence[Path]) -> dict[str, Recipe]:
    """Read the recipes of ``--compare``, each a method of its own with the name of its file.

    Raises:
        UnknownNameError: If two have the same name, or one has the name of a method.
        RecipeError: If a file holds no recipe.
    """
    further = {file.stem: read_recipe(file) for file in files}
    if len(further) < len(files) or (taken := further.keys() & {DENSE, *OTHERS, *known_methods()}):
        told = sorted(taken) if len(further) == len(files) else [str(file) for file in files]
        raise UnknownNameError(
            f"--compare names each method by its file, and these names are taken: {', '.join(told)}. Rename the files."
        )
    return further


def method_name(recipe: Recipe | None) -> str:
    """Name a recipe in a table, as ``--methods`` does where it can be asked for there.

    That is ``dense``, ``lowres``, the pruner that merges or needs no score, or the score, with ``(bottom)`` if the
    lowest stay.
    """
    if recipe is None or recipe.only_attention:
        return DENSE
    if recipe.schedule is None:
        return "dense (read=head)" if recipe.input_size is None else LOWRES
    if not recipe.scores or (recipe.pruner in BY_PRUNER and (recipe.score, recipe.keep) == (SHIFT, "top")):
        return pruner_in_words(recipe)
    return str(recipe.score) if recipe.keep == "top" else f"{recipe.score} (bottom)"


def recipe_for(method: str, pruned: Recipe | None) -> Recipe | None:
    """Say how a method prunes, given what all of them have in common.

    Args:
        method: Any of :func:`known_methods` but ``lowres``, which depends on the model.
        pruned: Schedule, pruner, and what the shift measures.
    """
    if method == DENSE or pruned is None:
        return None
    if method in BY_PRUNER:
        merged = replace(pruned, pruner=method, score=SHIFT, keep="top")
        if getattr(PRUNERS.get(method), "before_mlp", False):
            merged = replace(merged, operation=None)  # only one is over there, which is its own
        return replace(merged, keep=pruned.keep) if merged.scores else merged
    # the limit ranks nothing, and a pruner that chooses by itself looks at no score
    keep, pruner = "top" if method == LIMIT else pruned.keep, pruned.pruner if pruned.scores else None
    return replace(pruned, score=method, keep=keep, pruner=pruner)


def choose_methods(
    model: nn.Module,
    pruned: Recipe | None,
    asked: Sequence[str] | None,
    size: tuple[int, ...],
    usual: Sequence[str] = USUAL,
    further: Mapping[str, Recipe] | None = None,
) -> tuple[dict[str, nn.Module], list[str]]:
    """Make the models that are compared; all share the weights of the dense one, which is always the first.

    Args:
        model: The dense model.
        pruned: Schedule, pruner, and what the shift measures.
        asked: Some of :func:`known_methods`; ``None`` for all of ``usual`` that the model can have, behind what was
            given if that is another one.
        size: Channels, rows and columns of the images; of videos the frames before them.
        usual: Some of :func:`known_methods`.
        further: Recipes that are compared, too, by the names of their methods; alone, if nothing else was given.

    Returns:
        Models by method, in the order of the table, and notes on what was left out.

    Raises:
        ScheduleError: If methods that prune are asked for without a schedule, or it does not fit the model.
        UnsupportedModelError: If the model cannot have a method that was asked for; a smaller input is left out.
    """
    # what drops nothing, such as a smaller input, is nothing that other methods do in their way
    alone = _drops_nothing(pruned) or (pruned is None and bool(further))
    wanted = _wanted(pruned, asked if asked is not None else () if alone else usual)
    models = {DENSE: model}
    if asked is None and (own := method_name(pruned)) not in wanted:
        models[own] = apply(pruned, model)
    missing: dict[str, list[str]] = {}
    for name in wanted:
        if asked is None and name == ATTENTION[1] and ATTENTION[0] in models:
            continue
        try:
            if name == LOWRES:
                models[name] = apply(SmallerInputs(model, size).recipe_for(pruned_alike(models, pruned)), model)
            else:
                models[name] = apply(recipe_for(name, pruned), model)
        except UnsupportedModelError as error:
            if name == SHIFT or (name in (asked or ()) and name != LOWRES):
                raise
            missing.setdefault(str(error), []).append(name)
    models |= {name: apply(recipe, model) for name, recipe in (further or {}).items()}
    return models, [f"without {', '.join(names)}: {reason}" for reason, names in missing.items()]


def pruned_alike(models: Mapping[str, nn.Module], pruned: Recipe | None) -> nn.Module:
    """Return the model whose work a control has to meet.

    Scores are not counted, so that what drops by the shift has the work of what drops by any other.

    Args:
        models: By method, the dense one among them.
        pruned: Schedule and pruner.
    """
    return models[SHIFT] if SHIFT in models else apply(recipe_for(SHIFT, pruned), models[DENSE])


def _drops_nothing(pruned: Recipe | None) -> bool:
    return pruned is not None and pruned.schedule is None


def _wanted(pruned: Recipe | None, asked: Sequence[str]) -> list[str]:
    wanted = [name for name in dict.fromkeys(asked) if name != DENSE]
    if wanted and (pruned is None or pruned.schedule is None):
        lack = "The recipe has no schedule" if _drops_nothing(pruned) else "No schedule was given"
        raise ScheduleError(
            f"{lack} for the methods that prune. Give --drop 0.2@0,3,6 or a --recipe that drops, or --methods dense "
            "alone."
        )
    return wanted
