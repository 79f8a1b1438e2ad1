"""Which blocks of a model are looked at, by number, by name, or by default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from repshift import (
    RepresentationError,
    ShiftTracker,
    UnknownNameError,
    UnsupportedModelError,
    repeated_blocks,
)
from repshift.analysis.subjects.limits import check_blocks
from repshift.finding import find_structure
from repshift.modules import find_modules
from repshift.sites import Structure


def chosen_names(
    model: nn.Module,
    images: Tensor,
    sites: str | Iterable[str] | None = None,
    blocks: Sequence[int] | None = None,
    operation: str | None = None,
) -> list[str]:
    """Name the modules that are shown.

    Args:
        model: Any model.
        images: ``(images, channels, rows, columns)`` float32.
        sites: Names or globs of modules, or
        blocks: numbers of blocks counted from zero; by default all stages of a convolutional network that have the
            operation, the first, the middle and the last block of another model.
        operation: Whose change is looked at; ``None`` for the model's own.

    Raises:
        UnknownNameError: If a name or a block does not exist, or both are given.
        UnsupportedModelError: If the model has no blocks.
    """
    if sites is not None and blocks is not None:
        raise UnknownNameError(
            f"Got sites {sites!r} and blocks {list(blocks)}, two ways to choose. Give one (--sites or --blocks)."
        )
    if sites is not None:
        return find_modules(model, sites)
    structure = find_structure(model)
    if blocks is None and structure is not None and structure.unit == "stage":
        watched = operation or structure.operation
        having = [site.name for site in structure.sites if watched in site.operations]
        return having or [site.name for site in structure.sites]  # if none has it, looking at one says why
    return _numbered(model, images, blocks, structure)


def attention_blocks(model: nn.Module) -> list[int]:
    """Choose the blocks at which attention and shift are compared: the first of each third.

    Of twelve blocks these are 0, 4 and 8, which the paper counts as 1, 5 and 9.

    Source: arXiv 2508.00367, figure 6.
    """
    structure = find_structure(model)
    count = len(structure.sites) if structure else 0
    return sorted({0, count // 3, 2 * count // 3})


def block_names(model: nn.Module, images: Tensor, blocks: Sequence[int] | None = None) -> list[str]:
    """Name some blocks of a model.

    Args:
        model: Any model; without a known backbone, its blocks are found by running it once.
        images: ``(images, channels, rows, columns)`` float32.
        blocks: Which ones, counted from zero; by default the first, the middle and the last.

    Raises:
        UnknownNameError: If a block does not exist.
        UnsupportedModelError: If the model has no blocks.
    """
    return _numbered(model, images, blocks, find_structure(model))


def _numbered(model: nn.Module, images: Tensor, blocks: Sequence[int] | None, structure: Structure | None) -> list[str]:
    names = [site.name for site in structure.sites] if structure else _mapped_blocks(model, images[:1])
    if blocks is None:
        blocks = sorted({0, len(names) // 2, len(names) - 1})
    for block in check_blocks(blocks):
        if not 0 <= block < len(names):
            raise UnknownNameError(
                f"There is no block {block} in {type(model).__name__}: it has {len(names)}, 0 to {len(names) - 1} "
                f"({names[0]} to {names[-1]}). Choose among these."
            )
    return [names[block] for block in blocks]


def _mapped_blocks(model: nn.Module, images: Tensor) -> list[str]:
    """Find the repeated blocks of a model without a backbone, as far as their tokens can be laid out as a map."""
    tracker = ShiftTracker(model, repeated_blocks(model, images))
    with tracker, torch.inference_mode():
        model(images)
    mapped = []
    for name in tracker.shifts:
        try:
            tracker.maps[name]
        except RepresentationError:
            continue
        mapped.append(name)
    if not mapped:
        raise UnsupportedModelError(
            f"The tokens of {type(model).__name__}'s blocks do not lie in rows and columns that can be told. "
            "Name other modules to look at: sites='stem.*' (--sites 'stem.*')."
        )
    return mapped
