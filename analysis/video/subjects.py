"""The models that a command compares on the same videos, and on how many frames each looks at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import random_seed
from torch import nn

from repshift import Recipe
from repshift.analysis.subjects.comparing import Subjects, require_compared
from repshift.analysis.subjects.macs import count_work
from repshift.analysis.subjects.methods import (
    DENSE,
    FEWER_FRAMES,
    RANDOM,
    SEEDS,
    SHIFT,
    choose_methods,
    further_recipes,
    read_methods,
    recipe_for,
)
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.subjects.recipes import apply, pruning_of, settings_of
from repshift.analysis.subjects.sizes import build_model
from repshift.analysis.subjects.smaller_inputs import fewer_frames
from repshift.analysis.video.inputs import VideoInput
from repshift.errors import DataError, UnsupportedModelError


@dataclass(frozen=True)
class Measured:
    """What is measured: a method, and of a random one a draw.

    Attributes:
        method: Its name in the table.
        draw: Its number, from zero.
        model: What encodes the videos.
        frames: On how many frames of each.
    """

    method: str
    draw: int
    model: nn.Module
    frames: int


@dataclass(frozen=True)
class VideoSubjects:
    """The models that are compared; all share the weights of the dense one, which does all but encode videos.

    Attributes:
        subjects: The dense model and the methods.
        given: What they are given of each video.
        fewer: On how many frames the control looks; ``None`` without it.
        shows_dense: Whether the dense model is measured, too.
    """

    subjects: Subjects
    given: VideoInput
    fewer: int | None
    shows_dense: bool

    @property
    def model(self) -> nn.Module:
        """The dense model."""
        return self.subjects.model

    @property
    def measured(self) -> dict[str, Measured]:
        """What is measured, by a name of its own, in the order of the table."""
        found = {DENSE: Measured(DENSE, 0, self.model, self.given.frames)} if self.shows_dense else {}
        for name, (method, draw) in self.subjects.drawn.items():
            found[name] = Measured(method, draw, self.subjects.pruned[method], self.given.frames)
        if self.fewer is not None:
            found[FEWER_FRAMES] = Measured(FEWER_FRAMES, 0, self.model, self.fewer)
        return found

    @property
    def drawn(self) -> dict[str, tuple[str, int]]:
        """Method and draw of what is measured."""
        return {name: (each.method, each.draw) for name, each in self.measured.items()}

    @property
    def others(self) -> list[str]:
        """The methods that each is compared with, query by query."""
        return list(self.subjects.against) or ([DENSE] if self.shows_dense else [])

    def facts(self) -> dict[str, dict[str, Any]]:
        """Say of each method how it prunes and what encoding one video computes, as columns of results."""
        size = self.given.shape(self.given.frames)
        found = {name: {"frames": size[0], **fact} for name, fact in self.subjects.facts({"input_size": size}).items()}
        if self.fewer is not None:
            work = count_work(self.model, self.given.shape(self.fewer))
            found[FEWER_FRAMES] = {**found[DENSE], "frames": self.fewer, "gmacs": round(work.macs / 1e9, 4)}
        return found

    def identities(self, device: torch.device, batches: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return plain values that tell what each model says of videos from what another one says.

        Args:
            device: Where they run.
            batches: What decides which videos make a batch: for these a random score is drawn together.

        Returns:
            By the name of what is measured.
        """
        given, whole = self.given, self.subjects.identity(device, ())  # which reads the file of weights
        shared = {name: value for name, value in whole.items() if name not in ("methods", "seeds", "batches")}
        found = {}
        for name, each in self.measured.items():
            recipe = pruning_of(each.model)
            random = recipe is not None and recipe.scores and recipe.score == RANDOM
            found[name] = {
                **shared,
                "method": settings_of(recipe),
                "frames": each.frames,
                "input": [given.size, list(given.mean), list(given.std), given.seconds],
                "drawn": {"draw": each.draw, **batches} if random else None,
            }
        return found


def build_video_subjects(
    name: str,
    given: ModelOptions,
    pruned: Recipe | None,
    frames: int | None,
    seconds: float | None,
    task: str,
    *,
    methods: str | None = None,
    files: Sequence[Path] = (),
    compare_dense: bool = False,
    against: Sequence[str] = (),
    seeds: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> VideoSubjects:
    """Build the models that are compared.

    Args:
        name: Of the model, or its folder.
        given: The command's options for it.
        pruned: Schedule, pruner, score.
        frames: Of each video; by default the model's.
        seconds: Only so much of the beginning of each video counts.
        task: The method that a model of this command has; see :func:`require_task`.
        methods: Of ``--methods``; by default only what ``pruned`` says, or the dense model.
        files: Of ``--compare``: further recipes.
        compare_dense: Measure the dense model, too; ``methods`` and ``files`` always do.
        against: Of ``--against``: the methods that each is compared with; by default the dense model.
        seeds: Draws of the random score; by default three beside other methods, else one.
        seed: Of weights that are not loaded, and of what is drawn.
        device: Where they run.

    Raises:
        RepshiftError: If there is no such model, method or recipe, or the model cannot have it.
    """
    random_seed(seed)  # weights that are not loaded are the same in every process, and after a resumption
    model = build_model(name, given).to(device).eval()
    require_task(model, name, task)
    asked = read_methods(methods, (FEWER_FRAMES,))
    fewer = asked is not None and FEWER_FRAMES in asked
    if asked is not None:
        asked = [method for method in asked if method != FEWER_FRAMES] or [DENSE]
    shown = VideoInput.of(model, frames, seconds)
    models, notes = choose_methods(model, pruned, asked, shown.shape(shown.frames), (), further_recipes(files))
    models.pop(DENSE)
    shows_dense = compare_dense or methods is not None or bool(files) or not models
    frames_of_control = None
    if fewer:
        like = models[SHIFT] if SHIFT in models else _pruned_alike(model, pruned, models)
        try:
            frames_of_control = fewer_frames(model, like, shown.shape(shown.frames))
        except UnsupportedModelError as error:
            notes.append(f"without {FEWER_FRAMES}: {error}")
    draws = seeds or (SEEDS if methods is not None else 1)
    subjects = Subjects(name, given, model, models, notes, seed, tuple(dict.fromkeys(against)), draws)
    built = VideoSubjects(subjects, shown, frames_of_control, shows_dense)
    require_compared(against, {each.method for each in built.measured.values()})
    return built


def require_task(model: nn.Module, name: str, task: str) -> None:
    """Refuse a model that does something else.

    Args:
        model: The model.
        name: Its name, for the message.
        task: ``match``, which retrieval models have, or ``answer_log_likelihood``, which those have that answer.

    Raises:
        UnsupportedModelError: If it does not have this method.
    """
    if not hasattr(model, task):
        wanted = (
            "umt_b_retrieval, umt_l_retrieval or tiny_umt" if task == "match" else "umt_b_qa, umt_l_qa or tiny_umt_qa"
        )
        raise UnsupportedModelError(
            f"{name} ({type(model).__name__}) cannot do this: a model with the method {task} is expected. Give "
            f"{wanted} (-m)."
        )


def _pruned_alike(model: nn.Module, pruned: Recipe | None, models: Mapping[str, nn.Module]) -> nn.Module:
    """Return the pruned model whose work is to be met: scores are not counted, so that of the shift will do."""
    if pruned is not None and pruned.schedule is not None:
        return apply(recipe_for(SHIFT, pruned), model)
    if models:
        return next(iter(models.values()))
    raise DataError(f"{FEWER_FRAMES} is compared with a pruned model, and nothing is dropped. Give --drop or --recipe.")
