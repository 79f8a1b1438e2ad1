"""Maps of the representation shift as arrays, ready to be drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repshift import (
    RepresentationError,
    ShiftTracker,
    UnknownNameError,
    UnsupportedModelError,
    repeated_blocks,
)
from repshift.sites import find_structure


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
    structure = find_structure(model)
    names = [site.name for site in structure.sites] if structure else _mapped_blocks(model, images[:1])
    if blocks is None:
        blocks = sorted({0, len(names) // 2, len(names) - 1})
    for block in blocks:
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


def shift_maps(
    model: nn.Module,
    images: Tensor,
    sites: Sequence[str],
    *,
    operation: str | None = None,
    distance: str = "l2",
    residual: bool = False,
) -> dict[str, Tensor]:
    """Measure the shift across some sites and lay it out.

    Args:
        model: In evaluation mode, dense or pruned.
        images: ``(images, channels, rows, columns)`` float32.
        sites: Names of blocks or other modules, see :class:`repshift.ShiftTracker`.
        operation: Whose change, see :class:`repshift.ShiftTracker`; by default the model's own (``"mlp"`` of a
            transformer, ``"stage"`` of a convolutional network, ``"mixer"`` of a state space model).
        distance: ``"l2"``, ``"l1"`` or ``"cosine"``.
        residual: Compare ``x + F(x)`` with ``x`` instead of ``F(x)`` with ``x``.

    Returns:
        For each site ``(images, rows, columns)`` float32 in the units of the distance, not normalised; NaN where a
        pruned model had dropped the token.
    """
    tracker = ShiftTracker(model, sites, operation=operation, distance=distance, residual=residual)
    with tracker, torch.inference_mode():
        model(images)
    return {name: tracker.maps[name] for name in sites}


def to_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge maps to the size of the image so that every pixel has the value of the token that covers it.

    Args:
        maps: ``(images, rows, columns)``.
        size: Rows and columns of the image.

    Returns:
        ``(images, *size)``; nothing is blended between tokens, since nothing was measured there.
    """
    return torch.nn.functional.interpolate(maps.unsqueeze(1), size=size, mode="nearest-exact").squeeze(1)


def kept_mask(kept: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay out which tokens were kept.

    Args:
        kept: ``(images, kept)`` original positions.
        grid: Rows and columns of all tokens.

    Returns:
        ``(images, rows, columns)`` bool.
    """
    mask = torch.zeros(kept.shape[0], grid[0] * grid[1], dtype=torch.bool, device=kept.device)
    return mask.scatter(1, kept, True).reshape(-1, *grid)
