"""The shift of one video: what is measured of each frame, before it is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repshift.analysis.heatmap.figure import grey
from repshift.analysis.heatmap.maps import attention_score, heatmap_array, token_groups
from repshift.analysis.heatmap.shown_blocks import attention_blocks
from repshift.analysis.output.overlays import blend_merged, dim_dropped
from repshift.analysis.samples.images import data_config
from repshift.analysis.video.decoding import decode
from repshift.analysis.video.frames import MEAN, STD, preprocess
from repshift.errors import DataError
from repshift.finding import find_structure

FRAMES = 12  # of a model that takes any number
SIZE = 224


@dataclass(frozen=True)
class VideoInput:
    """What a model takes of a video.

    Attributes:
        frames: How many.
        size: Pixels a side.
        mean: Of each channel.
        std: Of each channel.
        together: Whether it takes all frames as one input; a model of images takes each by itself.
    """

    frames: int
    size: int
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD
    together: bool = True


@dataclass(frozen=True, eq=False)
class MapRow:
    """A map of each frame, ``(frames, rows, columns)`` float32, with its unit; NaN where there is no token."""

    title: str
    maps: Tensor
    unit: str


@dataclass(frozen=True, eq=False)
class Strip:
    """A video and what was measured of it, frame by frame.

    Attributes:
        frames: ``(frames, rows, columns, 3)`` in 0..1, as the model sees them.
        times: When each is shown, in seconds.
        rows: Maps.
        kept: By title, pictures ``(frames, rows, columns, 3)`` of what cuts keep.
    """

    frames: Tensor
    times: list[float]
    rows: list[MapRow]
    kept: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def grey(self) -> Tensor:
        """The frames without their colours, to lay maps over."""
        return grey(self.frames)


def video_input(model: nn.Module, frames: int | None = None) -> VideoInput:
    """Say what a model takes of a video.

    Args:
        model: Of videos or images.
        frames: How many; by default as many as the model was made for, else 12.

    Raises:
        DataError: If ``frames`` is below 1.
    """
    if frames is not None and frames < 1:
        raise DataError(f"{frames} frames are none. Give 1 or more (--frames).")
    structure = find_structure(model)
    together = structure is not None and structure.images is not None and structure.images.frames
    known, config = getattr(model, "pretrained_cfg", None), getattr(model, "config", None)
    own = (known or {}).get("frames") or _first(config, "num_frames", "frames_per_clip")
    count = frames or own or FRAMES
    if known is None and config is not None:  # of transformers, whose classes do not know how frames are normalised
        size = _first(config, "image_size", "crop_size") or SIZE
        return VideoInput(count, size if isinstance(size, int) else size[0], together=together)
    timm = data_config(model)
    if timm["input_size"][0] != 3:
        raise DataError(f"{type(model).__name__} takes {timm['input_size'][0]} channel(s), a video has 3. Give images.")
    return VideoInput(count, timm["input_size"][-1], timm["mean"], timm["std"], together)


def _first(config: Any, *names: str) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None)), None)


def video_strip(
    model: nn.Module,
    path: str | Path,
    taken: VideoInput,
    sites: str | Iterable[str] | None = None,
    *,
    blocks: Sequence[int] | None = None,
    attention: bool = False,
    kept: bool = False,
    **measured: Any,
) -> Strip:
    """Measure the shift of the tokens of each frame of a video.

    Args:
        model: In evaluation mode, dense or pruned.
        path: The video file.
        taken: What the model takes, from :func:`video_input`.
        sites: Modules by name or glob, see :func:`repshift.analysis.heatmap.maps.heatmap_array`.
        blocks: Blocks counted from zero.
        attention: Show attention beside each shift, too.
        kept: Show what each cut of a pruned model keeps.
        **measured: ``operation``, ``distance`` and ``residual``, see :class:`repshift.ShiftTracker`.

    Raises:
        RepshiftError: If the video cannot be read, a name does not exist, or the model has no attention or drops
            nothing.
    """
    score = attention_score(model) if attention else None
    if attention and blocks is None and sites is None:
        blocks = attention_blocks(model)
    clip = decode(path, taken.frames)
    frames = preprocess(clip.frames, taken.size, taken.mean, taken.std)
    inputs = frames.unsqueeze(0) if taken.together else frames
    shown = [heatmap_array(model, inputs, sites, blocks=blocks, **measured)]
    if score is not None:
        shown.append(heatmap_array(model, inputs, list(shown[0]), score=score))
    rows = [
        MapRow(f"{each.measure}, {name}", _of_frames(torch.from_numpy(each[name]), taken), each.unit)
        for name in shown[0]
        for each in shown
    ]
    seen = preprocess(clip.frames, taken.size, (0, 0, 0), (1, 1, 1)).permute(0, 2, 3, 1)
    groups = token_groups(model, inputs, operation=measured.get("operation")) if kept else {}
    left = {name: _of_frames(each.cpu(), taken) for name, each in groups.items()}
    pictures = {
        _kept_title(name, each): dim_dropped(blend_merged(seen, each), each >= 0) for name, each in left.items()
    }
    return Strip(seen, clip.times, rows, pictures)


def _of_frames(maps: Tensor, taken: VideoInput) -> Tensor:
    """Give each frame a map: tokens may stand for several frames."""
    each = maps[0] if taken.together else maps
    return each.repeat_interleave(taken.frames // len(each), 0)


def _kept_title(name: str, groups: Tensor) -> str:
    return f"{len(torch.unique(groups[groups >= 0]))} of {groups.numel()} left, {name}"
