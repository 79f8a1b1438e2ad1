"""Figures of heatmaps: images beside their shift, attention, and what a schedule keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from repshift.analysis.heatmap.maps import Heatmaps, attention_score, heatmap_array, token_groups
from repshift.analysis.heatmap.shown_blocks import attention_blocks
from repshift.analysis.output.figures import ImageColumn, MapColumn, check_scale, draw_columns
from repshift.analysis.output.overlays import blend_merged, dim_dropped
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
    compared: Mapping[str, nn.Module] | None = None,
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
        kept: Show what each cut of a pruned model keeps; the rest is faded. Places that were merged are outlined and
            half their mean colour.
        compared: Pruned models by name: of each, the same behind its last cut.
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
    groups = token_groups(model, input_tensor, operation=operation) if kept else {}
    for name, other in (compared or {}).items():
        *_, groups[name] = token_groups(other, input_tensor, operation=operation).values()
    seen = pixels(model, input_tensor).float().cpu()
    columns: list[ImageColumn | MapColumn] = [ImageColumn("image", seen)]
    columns += _map_columns(shown, grey(seen) if overlay else None)
    columns += [_kept_column(name, each.cpu(), seen) for name, each in groups.items()]
    return draw_columns(columns, row_titles, scale=scale)


def _map_columns(shown: Sequence[Heatmaps], over: Tensor | None) -> list[MapColumn]:
    """Make a column for each block and measure, those of one block side by side."""
    return [
        MapColumn(f"{heatmaps.measure}, {name}", torch.from_numpy(heatmaps[name]), heatmaps.unit, over)
        for name in shown[0]
        for heatmaps in shown
    ]


def grey(seen: Tensor) -> Tensor:
    """Take the colours out of pictures ``(images, rows, columns, 3)``. Source: ITU-R BT.601, luma."""
    luma = seen @ torch.tensor([0.299, 0.587, 0.114])
    return luma.clamp(0, 1).unsqueeze(-1).expand(-1, -1, -1, 3)


def _kept_column(name: str, groups: Tensor, seen: Tensor) -> ImageColumn:
    counts = [len(image[image >= 0].unique()) for image in groups]
    merged = any(int((image >= 0).sum()) > count for image, count in zip(groups, counts, strict=True))
    places = groups[0].numel()
    if len(set(counts)) > 1:  # single positions of a map may come from the same place of the dense one
        title = "merged" if merged else "kept"
    else:
        title = f"{places} merged into {counts[0]}" if merged else f"{counts[0]} of {places} kept"
    pictures = dim_dropped(blend_merged(seen, groups), groups >= 0)
    return ImageColumn(f"{title}, {name}", pictures, groups if merged else None)
