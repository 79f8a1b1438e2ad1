"""What a benchmark compares: the methods of all commands, plain attention, and of videos the dense model on fewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from repshift import Recipe
from repshift.analysis.subjects.methods import (
    DENSE,
    FEWER_FRAMES,
    LIMIT,
    LOWRES,
    OTHERS,
    PLAIN,
    SHIFT,
    USUAL,
    choose_methods,
    pruned_alike,
    read_methods,
)
from repshift.analysis.subjects.smaller_inputs import fewer_frames
from repshift.analysis.throughput.setup import as_in_the_paper, with_plain_attention
from repshift.errors import UnsupportedModelError


@dataclass(frozen=True)
class Asked:
    """What is asked for.

    Attributes:
        methods: As :func:`repshift.analysis.subjects.methods.choose_methods` takes them.
        plain: The dense model with plain attention, too; ``None`` for that of videos, whose maps of attention are
            large.
        fewer: The dense model on fewer frames, too; ``None`` for that of videos that are pruned.
        paper: The paper's own columns, too.
    """

    methods: list[str] | None = None
    plain: bool | None = None
    fewer: bool | None = None
    paper: bool = False


@dataclass(frozen=True)
class Compared:
    """What is compared.

    Attributes:
        models: By method, in the order of the table, the dense one first. All share their weights.
        frames: On how many frames ``fewer_frames`` looks, the dense model once more; ``None`` without it.
        notes: On what was left out.
    """

    models: dict[str, nn.Module]
    frames: int | None = None
    notes: tuple[str, ...] = ()


def read_asked(methods: str | None, paper: bool) -> Asked:
    """Read ``--methods``, to which the limit belongs, and ``--paper``.

    Raises:
        UnknownNameError: If a method does not exist.
    """
    if methods is None:
        return Asked([SHIFT, LIMIT], False, False, True) if paper else Asked()
    names = read_methods(methods, OTHERS) or []
    asked = [name for name in names if name not in OTHERS] or [DENSE]
    fewer = FEWER_FRAMES in names
    if fewer or set(asked) != {DENSE}:
        asked.append(LIMIT)  # the efficiency is against it
    return Asked(asked, PLAIN in names, fewer, paper)


def compare(
    dense: nn.Module,
    pruned: Recipe | None,
    asked: Asked,
    size: tuple[int, ...],
    further: Mapping[str, Recipe] | None = None,
) -> Compared:
    """Make the models that are compared.

    Args:
        dense: The dense model.
        pruned: Schedule, pruner, and what the shift measures.
        asked: What is asked for.
        size: Channels, rows and columns of the images; of videos the frames before them.
        further: Recipes that are compared, too, by the names of their methods.

    Raises:
        ScheduleError: If methods that prune are asked for without a schedule, or it does not fit the model.
        UnsupportedModelError: If the model cannot have a method that was asked for; a smaller input is left out.
    """
    videos = len(size) == 4
    usual = tuple(name for name in USUAL if not (videos and name == LOWRES))
    models, notes = choose_methods(dense, pruned, asked.methods, size, usual, further)
    frames = None
    if videos and LIMIT in models if asked.fewer is None else asked.fewer:
        try:
            frames = _fewer(models, pruned, size)
        except UnsupportedModelError as error:
            notes.append(f"without {FEWER_FRAMES}: {error}")
    if frames is not None:
        models = {name: model for name, model in models.items() if name != LIMIT} | {FEWER_FRAMES: dense} | models
    if asked.paper:
        models = {DENSE: dense, **as_in_the_paper(dense, pruned), **models}
    elif videos if asked.plain is None else asked.plain:
        models = {DENSE: dense, PLAIN: with_plain_attention(dense), **models}
    return Compared(models, frames, tuple(notes))


def _fewer(models: Mapping[str, nn.Module], pruned: Recipe | None, size: tuple[int, ...]) -> int:
    if len(size) != 4:
        name = type(models[DENSE]).__name__
        raise UnsupportedModelError(f"{name} takes images, which have no frames. Give {LOWRES}.")
    return fewer_frames(models[DENSE], pruned_alike(models, pruned), size)
