"""Drawing maps beside images, without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from repshift.analysis.output.files import output_file, write_whole
from repshift.analysis.output.overlays import COLOURS, group_outlines, show_map_on_image, to_pixels
from repshift.analysis.output.terminal import printable
from repshift.errors import DataError, UnknownNameError
from repshift.registry import suggest

FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
LONGEST = 80  # letters of a name
# Which maps share a colour scale; the figure says so
SCALES = {
    "map": "each map has a colour scale of its own",
    "block": "each column has one colour scale",
    "shared": "all maps of one unit share one colour scale",
}
COLUMN, BAR, TITLES = 2.2, 0.5, 0.6  # inches: width of a column, height of colour bar and its labels, of all titles


@dataclass(frozen=True)
class ImageColumn:
    """A column of pictures: ``(images, rows, columns, 3)`` in 0..1.

    With ``groups``, ``(images, token rows, token columns)`` int64, thin lines stand between places of different ones.
    """

    title: str
    images: Tensor
    groups: Tensor | None = None


@dataclass(frozen=True)
class MapColumn:
    """A column of maps ``(images, rows, columns)`` with their unit; NaN is left blank.

    With pictures ``over``, ``(images, rows, columns, 3)`` in 0..1, the maps are laid over these.
    """

    title: str
    maps: Tensor
    unit: str
    over: Tensor | None = None


def draw_columns(
    columns: Sequence[ImageColumn | MapColumn], row_titles: Sequence[str] | None = None, *, scale: str = "block"
) -> Figure:
    """Draw one row an image and one column a picture or a block, with colour bars.

    Args:
        columns: From left to right; all with the same number of images. The first must be of pictures: maps are
            enlarged to their size, each token to the pixels that it covers.
        row_titles: Names of the images.
        scale: Which maps share a colour scale and its bar, one of :data:`SCALES`: each ``"map"`` has its own, those
            of a ``"block"``, which are a column, share one, or it is ``"shared"`` by all maps of one unit.

    Raises:
        UnknownNameError: If there is no such scale.
    """
    first = columns[0]
    if not isinstance(first, ImageColumn):
        raise TypeError("the first column gives the size of the images, so it must hold pictures")
    check_scale(scale)
    rows = len(first.images)
    size = (first.images.shape[1], first.images.shape[2])
    height = COLUMN * size[0] / size[1]
    # the colour bars have rows of their own, so that pictures and maps of an image stand side by side
    kinds = ["picture", "bar"] * rows if scale == "map" else [*["picture"] * rows, "bar"]
    figure = Figure(
        figsize=(COLUMN * len(columns) + 0.3, height * rows + BAR * kinds.count("bar") + TITLES), layout="constrained"
    )
    ratios = [height if kind == "picture" else 0.1 for kind in kinds]
    axes: list[list[Axes]] = figure.subplots(len(kinds), len(columns), squeeze=False, height_ratios=ratios).tolist()
    pictures, bars = ([row for row, kind in zip(axes, kinds, strict=True) if kind == of] for of in ("picture", "bar"))
    for index, (column, scales) in enumerate(zip(columns, _colour_scales(columns, scale), strict=True)):
        shown, below = ([row[index] for row in part] for part in (pictures, bars))
        shown[0].set_title(column.title, fontsize=9)
        if isinstance(column, MapColumn):
            _draw_maps(shown, column, scales, size)
            _draw_bars(figure, below, column.unit, scales)
            continue
        for axis, image in zip(shown, column.images, strict=True):
            axis.imshow(image.numpy(), vmin=0, vmax=1, interpolation="nearest")
        for axis, groups in zip(shown, () if column.groups is None else column.groups, strict=False):
            _draw_outlines(axis, groups, size)
        for axis in below:
            axis.set_axis_off()
    _label(figure, pictures, row_titles or ())
    if any(isinstance(column, MapColumn) for column in columns):
        figure.supxlabel(SCALES[scale], fontsize=8)
    return figure


def check_scale(scale: str) -> None:
    """Check the name of a colour scale.

    Raises:
        UnknownNameError: If there is no such scale; the message has those that there are.
    """
    if scale not in SCALES:
        raise UnknownNameError(f"Unknown scale {scale!r}. {suggest(scale, SCALES)}")


def _colour_scales(columns: Sequence[ImageColumn | MapColumn], scale: str) -> list[list[Normalize]]:
    """Choose the colour scale of each map; columns of pictures have none."""
    units = {column.unit for column in columns if isinstance(column, MapColumn)}
    shared = {
        unit: range_of([column.maps for column in columns if isinstance(column, MapColumn) and column.unit == unit])
        for unit in units
    }
    found: list[list[Normalize]] = []
    for column in columns:
        if isinstance(column, ImageColumn):
            found.append([])
        elif scale == "map":
            found.append([range_of([values]) for values in column.maps])
        else:
            one = shared[column.unit] if scale == "shared" else range_of([column.maps])
            found.append([one] * len(column.maps))
    return found


def range_of(maps: Sequence[Tensor]) -> Normalize:
    """Return the colour scale from the smallest to the largest of all finite values."""
    finite = [values[values.isfinite()] for values in maps]
    measured = [values for values in finite if values.numel()]
    if not measured:
        return Normalize(0.0, 1.0)
    return Normalize(min(float(values.min()) for values in measured), max(float(values.max()) for values in measured))


def _draw_maps(axes: Sequence[Axes], column: MapColumn, scales: Sequence[Normalize], size: tuple[int, int]) -> None:
    for row, (axis, scale) in enumerate(zip(axes, scales, strict=True)):
        if column.over is None:
            enlarged = to_pixels(column.maps[row : row + 1], size)[0].numpy()
            axis.imshow(enlarged, norm=scale, cmap=COLOURS, interpolation="nearest")
            continue
        values = column.maps[row].numpy()
        # a flat map is 0 everywhere; what is missing stays missing
        scaled = np.where(np.isnan(values), np.nan, np.clip(np.asarray(scale(values)), 0, 1))
        axis.imshow(show_map_on_image(column.over[row].numpy(), scaled), interpolation="nearest")


def _draw_outlines(axis: Axes, groups: Tensor, size: tuple[int, int]) -> None:
    lines = group_outlines(groups, size) - 0.5  # matplotlib counts from the middle of the first pixel
    # white with a dark edge is seen on light and on dark
    edge = [Stroke(linewidth=1.4, foreground=(0, 0, 0, 0.45)), Normal()]
    axis.add_collection(LineCollection(lines.tolist(), colors="white", linewidths=0.7, path_effects=edge))


def _draw_bars(figure: Figure, axes: Sequence[Axes], unit: str, scales: Sequence[Normalize]) -> None:
    for row, axis in enumerate(axes):
        mappable = ScalarMappable(scales[row], COLOURS)
        bar = figure.colorbar(mappable, cax=axis, orientation="horizontal", ticks=MaxNLocator(3))
        bar.ax.tick_params(labelsize=7)
        bar.set_label(unit, fontsize=8)


def _label(figure: Figure, pictures: Sequence[Sequence[Axes]], row_titles: Sequence[str]) -> None:
    for row in pictures:
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    for row, title in zip(pictures, row_titles, strict=False):
        row[0].set_ylabel(plain_label(title), fontsize=8)


def plain_label(text: str, longest: int = LONGEST) -> str:
    """Write a name from outside so that a figure shows it as it is, in one line that is not too long."""
    shown = printable(text)
    shortened = shown if len(shown) <= longest else f"{shown[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
    return shortened.replace("$", r"\$")  # which would begin a formula


def check_figure_path(path: Path) -> None:
    """Check that a figure can be written to a file, before it is computed.

    Raises:
        DataError: If the ending names no format or the file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"Cannot write a figure as {path.name!r}. End the name in {', '.join(FORMATS)}.")
    output_file(path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure in one piece, in the format of the file's ending.

    Raises:
        DataError: If the ending names no format or the file cannot be written.
    """
    path = Path(path)
    check_figure_path(path)
    ending = path.suffix.lstrip(".").lower()
    drawn = io.BytesIO()  # on a full disk, matplotlib's writers stumble over their own files
    figure.savefig(drawn, format=ending, dpi=150)
    write_whole(path, lambda unfinished: unfinished.write_bytes(drawn.getbuffer()))
