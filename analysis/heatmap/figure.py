"""Figures of heatmaps: images beside their shift, attention, and what a schedule keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from repshift.analysis.heatmap.maps import Heatmaps, attention_score, heatmap_array, kept_masks
from repshift.analysis.heatmap.shown_blocks import attention_blocks
from repshift.analysis.output.figures import ImageColumn, MapColumn, check_scale, draw_columns
from repshift.analysis.output.overlays import dim_dropped
from repshift.analysis.samples.images import pixels


def heatmap_figure(
    model: nn.Module,
    input_tensor: Tensor,
    sites: str | Iterable[str] | None = None,
    *,
    blocks: Sequence[int] | None = None,
    operation: str | None = None,
    distance: str = "l2",
    residual: bool = False,
    attention: bool = False,
    overlay: bool = False,
    kept: bool = False,
    scale: str = "block",
    row_titles: Sequence[str] | None = None,
) -> Figure:
    """Draw the shift of some images: one row an image, one column a block.

    Args:
        model: In evaluation mode, dense or pruned; of a pruned one, what was dropped before a block is blank there.
        input_tensor: ``(images, channels, rows, columns)`` floats, preprocessed as the model expects.
        sites: Modules by name or glob, see :func:`repshift.analysis.heatmap.maps.heatmap_array`.
        blocks: Blocks counted from zero; by default all stages of a convolutional network, the first, the middle and
            the last block of another model, and beside attention the first of each third (0, 4, 8 of twelve).
        operation: Whose change, see :class:`repshift.ShiftTracker`.
        distance: ``"l2"``, ``"l1"`` or ``"cosine"``.
        residual: Compare ``x + F(x)`` with ``x`` instead of ``F(x)`` with ``x``.
        attention: Show beside each shift how much attention the tokens receive from the class token, or from all
            tokens where there is none.
        overlay: Lay the maps over the pictures, which are grey there, so that all colour is the map's.
        kept: Show what each cut of a pruned model keeps; the rest is faded.
        scale: Which maps share a colour scale, see :data:`repshift.analysis.output.figures.SCALES`.
        row_titles: Names of the images.

    Raises:
        RepshiftError: If a name, a block or a scale does not exist, or the model has no attention or drops nothing.

    Source: arXiv 2508.00367, figures 4, 6 and 7.
    """
    check_scale(scale)
    score = attention_score(model) if attention else None
    if attention and blocks is None and sites is None:
        blocks = attention_blocks(model)
    shown = [
        heatmap_array(
            model, input_tensor, sites, blocks=blocks, operation=operation, distance=distance, residual=residual
        )
    ]
    if score is not None:
        shown.append(heatmap_array(model, input_tensor, list(shown[0]), score=score))
    masks = kept_masks(model, input_tensor, operation=operation) if kept else {}
    seen = pixels(model, input_tensor).float().cpu()
    columns: list[ImageColumn | MapColumn] = [ImageColumn("image", seen)]
    columns += _map_columns(shown, _grey(seen) if overlay else None)
    columns += _kept_columns(masks, seen)
    return draw_columns(columns, row_titles, scale=scale)


def _map_columns(shown: Sequence[Heatmaps], over: Tensor | None) -> list[MapColumn]:
    """Make a column for each block and measure, those of one block side by side."""
    return [
        MapColumn(f"{heatmaps.measure}, {name}", torch.from_numpy(heatmaps[name]), heatmaps.unit, over)
        for name in shown[0]
        for heatmaps in shown
    ]


def _grey(seen: Tensor) -> Tensor:
    """Take the colours out of pictures ``(images, rows, columns, 3)``. Source: ITU-R BT.601, luma."""
    luma = seen @ torch.tensor([0.299, 0.587, 0.114])
    return luma.clamp(0, 1).unsqueeze(-1).expand(-1, -1, -1, 3)


def _kept_columns(masks: dict[str, Tensor], seen: Tensor) -> list[ImageColumn]:
    columns = []
    for name, mask in masks.items():
        counts = {int(count) for count in mask.sum((1, 2))}
        # single positions of a map may come from the same place of the dense one: then each image keeps its own number
        title = f"{counts.pop()} of {mask[0].numel()} kept, {name}" if len(counts) == 1 else f"kept, {name}"
        columns.append(ImageColumn(title, dim_dropped(seen, mask.cpu())))
    return columns
