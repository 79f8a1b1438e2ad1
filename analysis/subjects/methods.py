"""What commands compare: the dense model, pruning by the shift, its baselines and controls, and their limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from repshift import PRUNERS, Recipe
from repshift.analysis.subjects.recipes import apply
from repshift.errors import ScheduleError, UnknownNameError, UnsupportedModelError
from repshift.registry import suggest
from repshift.scores import SCORES

DENSE, SHIFT, LIMIT = "dense", "shift", "oracle_free"
ATTENTION = ("cls_attention", "mean_attention")  # a model without a class token has only the second
CONTROLS = ("norm", "random")
USUAL = (SHIFT, *ATTENTION, *CONTROLS, LIMIT)
# Pruners, which look at the shift or at no score: those that merge, one that spares every part, lines by their places
BY_PRUNER = ("mnn", "mnn1", "ward", "tome", "merge", "fuse", "saliency_merge", "cells", "crop", "centre", "even")


def known_methods() -> list[str]:
    """List what ``--methods`` takes."""
    return [DENSE, SHIFT, *SCORES.names(), *BY_PRUNER]


def recipe_for(method: str, pruned: Recipe | None) -> Recipe | None:
    """Say how a method prunes, given what all of them have in common.

    Args:
        method: Any of :func:`known_methods`.
        pruned: Schedule, pruner, and what the shift measures.
    """
    if method == DENSE or pruned is None:
        return None
    if method in BY_PRUNER:
        merged = replace(pruned, pruner=method, score=SHIFT, keep="top")
        if getattr(PRUNERS.get(method), "before_mlp", False):
            merged = replace(merged, operation=None)  # only one is over there, which is its own
        return replace(merged, keep=pruned.keep) if merged.scores else merged
    return replace(pruned, score=method, keep="top" if method == LIMIT else pruned.keep)  # the limit ranks nothing


def choose_methods(
    model: nn.Module,
    pruned: Recipe | None,
    asked: Sequence[str] | None,
    *,
    usual: Sequence[str] = USUAL,
    limit: bool = True,
) -> tuple[dict[str, nn.Module], list[str]]:
    """Make the models that are compared; all share the weights of the dense one.

    The dense model is always among them, and so is the limit where time is compared: the speed-up is against the one,
    the efficiency against the other.

    Args:
        model: The dense model.
        pruned: Schedule, pruner, and what the shift measures.
        asked: Names of methods; ``None`` for those of ``usual`` that the model can have.
        usual: Names of methods.
        limit: Whether the limit is always among them.

    Returns:
        Models by method, in the order of the table, and notes on what was left out.

    Raises:
        UnknownNameError: If a method does not exist.
        ScheduleError: If methods that prune are asked for without a schedule, or it does not fit the model.
        UnsupportedModelError: If the model cannot have a method that was asked for.
    """
    models = {DENSE: model}
    missing: dict[str, list[str]] = {}
    for name in _checked(asked, pruned, usual, limit):
        if asked is None and name == ATTENTION[1] and ATTENTION[0] in models:
            continue
        try:
            models[name] = apply(recipe_for(name, pruned), model)
        except UnsupportedModelError as error:
            if name == SHIFT or name in (asked or ()):
                raise
            missing.setdefault(str(error), []).append(name)
    return models, [f"without {', '.join(names)}: {reason}" for reason, names in missing.items()]


def _checked(asked: Sequence[str] | None, pruned: Recipe | None, usual: Sequence[str], limit: bool) -> list[str]:
    known = known_methods()
    for name in asked or ():
        if name not in known:
            raise UnknownNameError(f"Unknown method {name!r}. {suggest(name, known)}")
    if pruned is None and asked is not None and set(asked) <= {DENSE}:
        return []
    if pruned is None:
        raise ScheduleError(
            "No schedule was given for the methods that prune. Give --drop 0.2@0,3,6 or --recipe, or --methods "
            "dense alone."
        )
    if asked is None:
        return list(usual)
    chosen = [name for name in dict.fromkeys(asked) if name != DENSE]
    return [*chosen, LIMIT] if limit and chosen and LIMIT not in chosen else chosen
