"""A video's shift over time, drawn: a strip of its frames, and the same as moving pictures."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from repshift.analysis.heatmap.videos import MapRow, Strip
from repshift.analysis.output.figures import SCALES, check_scale, plain_label, range_of
from repshift.analysis.output.files import output_file, write_whole
from repshift.analysis.output.overlays import COLOURS, show_map_on_image, to_pixels
from repshift.analysis.output.palette import colours_of
from repshift.analysis.video.decoding import imported
from repshift.errors import DataError

ENDINGS = (".mp4", ".gif")
PANEL = 1.5  # inches of a frame in the strip
MOVING = 2.4  # inches of a panel of moving pictures
LINE = 18  # letters
FASTEST, SLOWEST = 30.0, 1.0  # pictures a second


def strip_figure(strip: Strip, *, overlay: bool = False, scale: str = "block") -> Figure:
    """Draw one column a frame: the frame, below it its maps, and below all how their means move.

    Args:
        strip: From :func:`repshift.analysis.heatmap.videos.video_strip`.
        overlay: Lay the maps over the frames, which are grey there.
        scale: Which maps share a colour scale, one of :data:`repshift.analysis.output.figures.SCALES`; a ``"block"`` is
            a row here.

    Raises:
        UnknownNameError: If there is no such scale.
    """
    check_scale(scale)
    titles = ["frame", *(row.title for row in strip.rows), *strip.kept]
    count = len(strip.frames)
    figure = Figure(figsize=(PANEL * count + 1.8, PANEL * len(titles) + 1.9), layout="constrained")
    grid = figure.add_gridspec(
        len(titles) + 1, count + 1, height_ratios=[*[1.0] * len(titles), 0.9], width_ratios=[*[1.0] * count, 0.08]
    )
    panels = [[figure.add_subplot(grid[row, at]) for at in range(count)] for row in range(len(titles))]
    for line, title in zip(panels, titles, strict=True):
        line[0].set_ylabel(_in_lines(title), fontsize=8)
    for axis, frame, time in zip(panels[0], strip.frames, strip.times, strict=True):
        _show(axis, frame)
        axis.set_title(f"{time:.2f} s", fontsize=8)
    for number, (row, norms) in enumerate(zip(strip.rows, _scales(strip.rows, scale), strict=True), start=1):
        for axis, picture in zip(panels[number], _coloured(row, norms, strip, overlay), strict=True):
            _show(axis, picture)
        if scale != "map":
            _bar(figure, figure.add_subplot(grid[number, count]), norms[0], row.unit)
    for line, pictures in zip(panels[len(strip.rows) + 1 :], strip.kept.values(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            _show(axis, picture)
    _draw_means(figure.add_subplot(grid[len(titles), :count]), strip)
    figure.supxlabel(SCALES[scale].replace("each column has", "each row has"), fontsize=8)
    return figure


def moving_pictures(strip: Strip, *, scale: str = "block") -> NDArray[np.uint8]:
    """Draw the frames one after the other, the maps of each laid over it beside it.

    Args:
        strip: From :func:`repshift.analysis.heatmap.videos.video_strip`.
        scale: As of :func:`strip_figure`.

    Returns:
        ``(frames, rows, columns, 3)``, RGB; rows and columns are even, as videos need them.
    """
    check_scale(scale)
    titles = ["frame", *(row.title for row in strip.rows), *strip.kept]
    maps = [
        _coloured(row, norms, strip, True) for row, norms in zip(strip.rows, _scales(strip.rows, scale), strict=True)
    ]
    panels: list[Any] = [strip.frames, *maps, *strip.kept.values()]
    figure = Figure(figsize=(MOVING * len(panels), MOVING + 0.5), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes: list[Axes] = figure.subplots(1, len(panels), squeeze=False)[0].tolist()
    drawn = [_show(axis, panel[0]) for axis, panel in zip(axes, panels, strict=True)]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(_in_lines(title), fontsize=8)
    pictures = []
    for at, time in enumerate(strip.times):
        for image, panel in zip(drawn, panels, strict=True):
            image.set_data(np.asarray(panel[at]))
        figure.supxlabel(f"{time:.2f} s", fontsize=8)
        canvas.draw()  # type: ignore[no-untyped-call]
        picture = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
        pictures.append(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2].copy())
    return np.stack(pictures)


def check_animation_path(path: Path) -> None:
    """Check that moving pictures can be written to a file, before they are computed.

    Raises:
        DataError: If the ending is another, or the file cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"Cannot write moving pictures as {path.name!r}. End the name in {' or '.join(ENDINGS)}.")
    output_file(path)


def save_animation(pictures: NDArray[np.uint8], times: Sequence[float], path: Path) -> None:
    """Write moving pictures in one piece, about as fast as the video that they are of.

    Args:
        pictures: ``(frames, rows, columns, 3)``.
        times: When each is shown, in seconds.
        path: Ending in ``.mp4`` or ``.gif``.

    Raises:
        DataError: If the file cannot be written.
    """
    check_animation_path(path)
    span = times[-1] - times[0]
    rate = min(max((len(times) - 1) / span if span > 0 else SLOWEST, SLOWEST), FASTEST)
    packed = _gif(pictures, rate) if path.suffix.lower() == ".gif" else _mp4(pictures, rate)
    write_whole(path, lambda unfinished: unfinished.write_bytes(packed))


# --- parts --------------------------------------------------------------------------------------------------------


def _in_lines(title: str) -> str:
    """Break a title at its comma, and long names of modules at their dots."""
    words, _, name = plain_label(title).partition(", ")
    lines = [words]
    for part in re.split(r"(?<=\.)(?!\d)", name) if name else ():
        if len(lines) > 1 and len(lines[-1]) + len(part) <= LINE:
            lines[-1] += part
        else:
            lines.append(part)
    return "\n".join(lines)


def _scales(rows: Sequence[MapRow], scale: str) -> list[list[Normalize]]:
    """Choose the colour scale of each map of each row."""
    if scale == "map":
        return [[range_of([each]) for each in row.maps] for row in rows]
    of_unit = {row.unit: range_of([each.maps for each in rows if each.unit == row.unit]) for row in rows}
    chosen = [of_unit[row.unit] if scale == "shared" else range_of([row.maps]) for row in rows]
    return [[norm] * len(row.maps) for norm, row in zip(chosen, rows, strict=True)]


def _coloured(row: MapRow, norms: Sequence[Normalize], strip: Strip, overlay: bool) -> list[NDArray[Any]]:
    """Colour the maps of a row; where a token is missing the frame shows, faded."""
    size = (strip.frames.shape[1], strip.frames.shape[2])
    under, weight = (strip.grey, 0.5) if overlay else (strip.frames, 0.0)
    pictures = []
    for maps, norm, frame in zip(row.maps, norms, under, strict=True):
        values = to_pixels(maps.unsqueeze(0), size)[0].double().numpy()
        scaled = np.where(np.isnan(values), np.nan, np.clip(np.asarray(norm(values)), 0, 1))
        pictures.append(show_map_on_image(frame.double().numpy(), scaled, image_weight=weight))
    return pictures


def _show(axis: Axes, picture: Tensor | NDArray[Any]) -> Any:
    axis.set_xticks([])
    axis.set_yticks([])
    return axis.imshow(np.asarray(picture), vmin=0, vmax=1, interpolation="nearest")


def _bar(figure: Figure, axis: Axes, norm: Normalize, unit: str) -> None:
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), cax=axis, ticks=MaxNLocator(3))
    bar.ax.tick_params(labelsize=7)
    bar.set_label(unit, fontsize=7)


def _draw_means(axis: Axes, strip: Strip) -> None:
    """Draw the mean of each frame's map over time, as a share of the largest one: blocks differ in size."""
    colours = colours_of(row.title for row in strip.rows)
    for row in strip.rows:
        means = torch.nanmean(row.maps.flatten(1), 1)
        largest = means[means.isfinite()].max() if bool(means.isfinite().any()) else torch.tensor(1.0)
        places = np.arange(len(means)) + 0.5  # each below its frame
        axis.plot(places, (means / largest).numpy(), "o-", ms=3, lw=1.2, color=colours[row.title], label=row.title)
    axis.set_xlim(0, len(strip.times))
    axis.set_xticks([])
    axis.set_ylabel("mean of a frame,\nshare of the largest", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, loc="best")


def _gif(pictures: NDArray[np.uint8], rate: float) -> bytes:
    first, *others = (Image.fromarray(picture) for picture in pictures)
    packed = io.BytesIO()
    first.save(packed, "GIF", save_all=True, append_images=others, duration=round(1000 / rate), loop=0)
    return packed.getvalue()


def _mp4(pictures: NDArray[np.uint8], rate: float) -> bytes:
    av = imported()
    packed = io.BytesIO()
    with av.open(packed, "w", format="mp4") as container:
        # a build without x264 still has the older codec
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "18", "x264-params": "log-level=error"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return packed.getvalue()
