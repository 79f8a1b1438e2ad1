"""Drawing maps beside images, without a display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from repshift.analysis.files import output_file, write_whole
from repshift.analysis.heatmaps import to_pixels
from repshift.errors import DataError

COLOURS = "viridis"  # perceptually uniform: equal steps of the shift look equally far apart
FORMATS = (".png", ".pdf", ".svg", ".jpg", ".webp")
DIMMED = 0.25  # brightness of what was dropped


@dataclass(frozen=True)
class ImageColumn:
    """A column of pictures: ``(images, rows, columns, 3)`` in 0..1."""

    title: str
    images: Tensor


@dataclass(frozen=True)
class MapColumn:
    """A column of maps ``(images, rows, columns)`` on one colour scale, with its unit; NaN is left blank."""

    title: str
    maps: Tensor
    unit: str


def draw_columns(columns: Sequence[ImageColumn | MapColumn], row_titles: Sequence[str] | None = None) -> Figure:
    """Draw one row an image and one column a picture or a block; each map column has its own colour bar.

    Args:
        columns: From left to right; all with the same number of images. The first must be of pictures: maps are
            enlarged to their size, each token to the pixels that it covers.
        row_titles: Names of the images.
    """
    first = columns[0]
    if not isinstance(first, ImageColumn):
        raise TypeError("the first column gives the size of the images, so it must hold pictures")
    rows = len(first.images)
    size = (first.images.shape[1], first.images.shape[2])
    height = 2.2 * size[0] / size[1]
    figure = Figure(figsize=(2.2 * len(columns) + 0.3, height * rows + 0.9), layout="constrained")
    # the colour bars have a row of their own, so that pictures and maps of an image stand side by side
    axes = figure.subplots(rows + 1, len(columns), squeeze=False, height_ratios=[height] * rows + [0.1])
    for index, column in enumerate(columns):
        axes[0][index].set_title(column.title, fontsize=9)
        if isinstance(column, ImageColumn):
            for row in range(rows):
                axes[row][index].imshow(column.images[row].numpy(), vmin=0, vmax=1, interpolation="nearest")
            axes[rows][index].set_axis_off()
        else:
            _draw_maps(figure, [axes[row][index] for row in range(rows + 1)], column, size)
    for axis in axes[:rows].flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for row, title in enumerate(row_titles or ()):
        axes[row][0].set_ylabel(title, fontsize=8)
    return figure


def _draw_maps(figure: Figure, axes: Sequence[Axes], column: MapColumn, size: tuple[int, int]) -> None:
    """Draw a column of maps on one colour scale; the last of the axes is for the bar."""
    finite = column.maps[column.maps.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 1.0)
    scale = Normalize(low, high)
    for axis, enlarged in zip(axes, to_pixels(column.maps, size), strict=False):
        axis.imshow(enlarged.numpy(), norm=scale, cmap=COLOURS, interpolation="nearest")
    bar = figure.colorbar(ScalarMappable(scale, COLOURS), cax=axes[-1], orientation="horizontal")
    bar.set_label(column.unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def dim_dropped(images: Tensor, kept: Tensor) -> Tensor:
    """Darken the parts of images whose tokens were dropped.

    Args:
        images: ``(images, rows, columns, 3)`` in 0..1.
        kept: ``(images, token rows, token columns)`` bool.

    Returns:
        Pictures of the images' shape.
    """
    covered = to_pixels(kept.float(), (images.shape[1], images.shape[2]))
    # dark pictures need a visible veil, so what is dropped turns grey instead of black
    veil = torch.full_like(images, 0.5)
    shade = covered.unsqueeze(-1)
    return images * shade + (DIMMED * images + (1 - DIMMED) * veil) * (1 - shade)


def check_figure_path(path: Path) -> None:
    """Check that a figure can be written to a file, before it is computed.

    Raises:
        DataError: If the ending names no format or the file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"Cannot write a figure as {path.name!r}. End the name in {', '.join(FORMATS)}.")
    output_file(path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in one piece, in the format of the file's ending.

    Raises:
        DataError: If the ending names no format or the file cannot be written.
    """
    check_figure_path(path)
    ending = path.suffix.lstrip(".").lower()
    write_whole(path, lambda unfinished: figure.savefig(unfinished, format=ending, dpi=150))
