"""The models that one command compares on the same images, and what its results say of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.utils import random_seed
from torch import nn

from repshift import Recipe
from repshift.analysis.output.paired import BETWEEN, ends_of
from repshift.analysis.output.partial import content_of, versions
from repshift.analysis.subjects.macs import count_work
from repshift.analysis.subjects.methods import (
    DENSE,
    LOWRES,
    RANDOM,
    SEEDS,
    SHIFT,
    choose_methods,
    further_recipes,
    read_methods,
)
from repshift.analysis.subjects.models import ModelOptions, saved_model
from repshift.analysis.subjects.recipes import (
    apply,
    measured_columns,
    pruning_of,
    schedule_of,
    settings_of,
    whole_recipe,
    with_tokens,
)
from repshift.analysis.subjects.sizes import build_model
from repshift.errors import DataError, ScheduleError, UnknownNameError, UnsupportedModelError, first_line
from repshift.registry import suggest

# What is compared where nothing was asked for, as far as the model can have it
USUAL = (SHIFT, "norm", "random", "tome", "mnn", LOWRES)


@dataclass(frozen=True)
class Subjects:
    """The dense model and those that are compared with it; all share its weights.

    Attributes:
        name: What the model was asked for by.
        given: How it was built.
        model: The dense one.
        pruned: The others, by method, in the order of the table.
        notes: On what was left out.
        seed: Of weights that are not loaded, and of what is drawn.
        against: The methods that each is to be compared with, image by image; without any, see :attr:`others`.
        seeds: How many draws of a random score are measured.
    """

    name: str
    given: ModelOptions
    model: nn.Module
    pruned: dict[str, nn.Module]
    notes: list[str]
    seed: int
    against: tuple[str, ...] = ()
    seeds: int = SEEDS

    @property
    def drawn(self) -> dict[str, tuple[str, int]]:
        """What is measured of each image: method and number of the draw, by a name of its own."""
        named: dict[str, tuple[str, int]] = {}
        for name, model in self.pruned.items():
            recipe = pruning_of(model)
            random = recipe is not None and recipe.scores and recipe.score == RANDOM
            for draw in range(self.seeds if random else 1):
                named[f"{name}, draw {draw + 1}" if draw else name] = name, draw
        return named

    @property
    def others(self) -> list[str]:
        """The methods that each is compared with: the shift, or else the first one; and the smaller input, if there."""
        if self.against:
            return list(self.against)
        first = SHIFT if SHIFT in self.pruned else next(iter(self.pruned))
        return [first, *(name for name in (LOWRES,) if name in self.pruned and name != first)]

    def identity(self, device: torch.device, batches: Sequence[int]) -> dict[str, Any]:
        """Return what must be the same for a resumed run to end with the same numbers; files by content.

        Args:
            device: Where the models run.
            batches: What decides which images make a batch: for these a random score is drawn together.
        """
        saved = saved_model(self.name)
        weights = self.given.checkpoint if saved is None else saved.weights
        random = any(
            recipe is not None and recipe.score == "random" for recipe in map(pruning_of, self.pruned.values())
        )
        return {
            "model": self.name,
            "weights": weights and content_of(Path(weights)),
            "pretrained": self.given.pretrained,
            "use_ema": self.given.use_ema,
            "model_options": repr(sorted(self.given.options.items())),
            # left out where it says nothing, so that runs from before it could be said are still equal
            **({} if self.given.attention is None else {"attention": self.given.attention}),
            "methods": {name: settings_of(pruning_of(model)) for name, model in self.pruned.items()},
            "device": device.type,
            "seed": self.seed,
            "seeds": self.seeds if random else None,
            "batches": list(batches) if random else None,
            "versions": versions(),
        }

    def facts(self, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Say of each method, the dense one first, how it prunes and what it computes, as columns of results.

        Args:
            config: timm's data configuration, for the size of the images.

        Raises:
            DataError: If the model does not take images of this size.
        """
        found = {}
        for name, model in {DENSE: self.model, **self.pruned}.items():
            recipe = pruning_of(model)
            try:
                work = count_work(model, config["input_size"])
            except ScheduleError:
                raise
            except (RuntimeError, AssertionError, ValueError) as error:
                raise DataError(
                    f"{self.name} does not take images of {config['input_size']} "
                    f"({type(error).__name__}: {first_line(error)}). Give another --img-size."
                ) from error
            found[name] = {
                "schedule": schedule_of(recipe),
                **measured_columns(model),
                "img_size": config["input_size"][-1],
                "gmacs": round(work.macs / 1e9, 4),
                "kept_tokens": list(work.tokens) if work.tokens is not None and recipe is not None else None,
                "recipe": whole_recipe(model),
            }
        return found


def build_subjects(
    name: str,
    given: ModelOptions,
    pruned: Recipe | None,
    size_of: Callable[[nn.Module], tuple[int, int, int]],
    methods: str | None = None,
    files: Sequence[Path] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
    against: Sequence[str] = (),
    seeds: int | None = None,
) -> Subjects:
    """Build the models that are compared.

    Args:
        name: Of the model, or its folder.
        given: The command's options for it.
        pruned: Schedule, pruner, and what the shift measures.
        size_of: Says which size of images a model is given: channels, rows and columns.
        methods: Of ``--methods``: names between commas; by default those of :data:`USUAL` that the model can have.
        files: Of ``--compare``: further recipes, each a method of its own with the name of its file.
        seed: Of weights that are not loaded.
        device: Where they run.
        against: Of ``--against``: the methods that each is compared with, image by image, or two as ``"A..B"``.
        seeds: Of ``--seeds``: draws of the random score, by default three.

    Raises:
        RepshiftError: If there is no such model, method or recipe, or the model cannot have it.
    """
    random_seed(seed)  # weights that are not loaded are the same in every process, and after a resumption
    model = build_model(name, given).to(device).eval()
    asked = read_methods(methods)
    models, notes = choose_methods(model, pruned, asked, size_of(model), USUAL, further_recipes(files))
    models.pop(DENSE, None)
    if not models:
        raise UnknownNameError("Only the dense model would be compared with itself. Give --methods of known methods.")
    require_compared(against, models)
    return Subjects(name, given, model, models, notes, seed, tuple(dict.fromkeys(against)), seeds or SEEDS)


def require_compared(against: Sequence[str], methods: Collection[str]) -> None:
    """Refuse names of ``--against`` that are no methods which are compared.

    Args:
        against: Methods, or two as ``"A..B"``.
        methods: All that are compared.

    Raises:
        UnknownNameError: If there is one.
    """
    if unknown := [end for other in against for end in ends_of(other, methods) if end not in methods]:
        raise UnknownNameError(
            f"--against names a method that is compared, or two as A{BETWEEN}B, got {unknown[0]!r}. "
            f"{suggest(unknown[0], methods)}"
        )


def readable(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """Make the model of the same answers that gives its features, where a pruned one computes only what a head reads.

    Args:
        model: The dense one.
        pruned: Pruned in any way.
    """
    recipe = pruning_of(pruned)
    shown = with_tokens(recipe)
    return pruned if shown == recipe else apply(shown, model).eval()


def restoring(model: nn.Module, pruned: nn.Module) -> nn.Module | None:
    """Make the pruned model whose tokens have their places back; ``None`` if that cannot be.

    Args:
        model: The dense one.
        pruned: Pruned in any way.
    """
    recipe = pruning_of(pruned)
    if recipe is not None and recipe.input_size is not None:
        return None  # its places are others
    if recipe is None or recipe.schedule is None or recipe.restore:
        return pruned
    try:
        return apply(replace(recipe, restore=True), model).eval()
    except UnsupportedModelError:
        return None


def reads_one_token(model: nn.Module) -> bool:
    """Say whether a head reads the class token alone, so that where the others are is nothing to it."""
    return getattr(model, "global_pool", None) == "token" and getattr(model, "attn_pool", None) is None
