"""What pruning looks at in a video: a strip of frames, and a moving picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from repshift import ShiftTracker
from repshift.analysis.output.figures import ImageColumn, draw_columns
from repshift.analysis.output.files import write_whole
from repshift.analysis.output.overlays import dim_dropped, kept_mask, show_map_on_image
from repshift.analysis.samples.images import pixels
from repshift.participants import cuts

ENLARGED = 4  # pixels of the moving picture for one of the video
MILLISECONDS = 500  # for each frame


@dataclass(frozen=True, eq=False)
class Seen:
    """What there is to see of some videos; all ``(videos, frames, rows, columns, 3)`` float32 in 0..1.

    Attributes:
        frames: The frames themselves.
        shift: With the shift where tokens are dropped first laid over them: of each video from its lowest value to its
            highest.
        kept: With what the last cut dropped dimmed.
    """

    frames: Tensor
    shift: Tensor
    kept: Tensor


def watch(model: nn.Module, inputs: Tensor, schedule: str) -> Seen:
    """Watch a dense model and the one that is pruned by the shift.

    Args:
        model: A UMT model, dense.
        inputs: ``(videos, frames, 3, rows, columns)`` float32.
        schedule: What is dropped where.
    """
    pruned = ShiftTracker(model).prune(schedule)
    first, *_, last = [*cuts(pruned)] * 2  # one cut is both
    with ShiftTracker(model, first) as dense, torch.inference_mode():
        model(inputs)
    with ShiftTracker(pruned, last) as tracker, torch.inference_mode():
        pruned(inputs)
    shift = dense.maps[first]  # (videos, frames, rows, columns)
    lowest, highest = shift.amin((1, 2, 3), keepdim=True), shift.amax((1, 2, 3), keepdim=True)
    scaled = ((shift - lowest) / (highest - lowest)).flatten(0, 1)
    side = shift.shape[-1]
    kept = kept_mask(tracker.kept[last], (shift.shape[1] * shift.shape[2], side)).view(-1, side, side)
    shown = pixels(model, inputs.flatten(0, 1))
    overlaid = [
        torch.from_numpy(show_map_on_image(frame.numpy(), values.numpy())).float() / 255
        for frame, values in zip(shown, scaled, strict=True)
    ]
    pictures = (shown, torch.stack(overlaid), dim_dropped(shown, kept))
    return Seen(*(each.unflatten(0, inputs.shape[:2]) for each in pictures))


def draw_strip(model: nn.Module, inputs: Tensor, schedule: str, caption: str) -> Figure:
    """Draw the frames of one video side by side, their shift below them, and below that what pruning keeps.

    Args:
        model: A UMT model, dense.
        inputs: ``(1, frames, 3, rows, columns)`` float32.
        schedule: What is dropped where.
        caption: Stands above.
    """
    seen = watch(model, inputs, schedule)
    columns = [
        ImageColumn(f"frame {number}", torch.stack(rows))
        for number, rows in enumerate(zip(seen.frames[0], seen.shift[0], seen.kept[0], strict=True), 1)
    ]
    figure = draw_columns(columns, ["video", "shift", f"kept, {schedule}"])
    figure.suptitle(caption, fontsize=10)
    return figure


def save_animation(model: nn.Module, inputs: Tensor, schedule: str, path: Path) -> None:
    """Write a GIF: a row for each video, with its frames, their shift, and what pruning keeps.

    Args:
        model: A UMT model, dense.
        inputs: ``(videos, frames, 3, rows, columns)`` float32.
        schedule: What is dropped where.
        path: The file.

    Raises:
        DataError: If it cannot be written.
    """
    seen = watch(model, inputs, schedule)
    # (videos, frames, rows, columns, 3) three times, side by side; videos below each other
    side_by_side = torch.cat([seen.frames, seen.shift, seen.kept], dim=3).transpose(0, 1).flatten(1, 2)
    pictures = [
        Image.fromarray((255 * each).round().byte().numpy()).resize(
            (each.shape[1] * ENLARGED, each.shape[0] * ENLARGED), Image.Resampling.NEAREST
        )
        for each in side_by_side
    ]
    content = io.BytesIO()
    pictures[0].save(content, "GIF", save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0)
    write_whole(path, lambda unfinished: unfinished.write_bytes(content.getbuffer()))
