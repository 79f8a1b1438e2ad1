"""From decoded frames to what a video model expects, as UMT's published evaluation does it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repshift.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def preprocess(clip: Tensor, size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Bring frames to the size and the range that a model was trained with.

    They are resized to a square without keeping their proportions and without a crop, by bicubic interpolation
    *without* antialiasing, and rounded to 8 bits, as torchvision 0.13 did with tensors; with antialiasing a pixel would
    differ by 0.04 to 0.16 on average.

    Args:
        clip: ``(frames, 3, rows, columns)`` uint8.
        size: Rows and columns afterwards.
        mean: Of each channel, of values in 0..1.
        std: Of each channel.

    Returns:
        ``(frames, 3, size, size)`` float32.

    Raises:
        DataError: If the clip has another form.

    Source: Unmasked Teacher (arXiv 2303.16058), the evaluation transform of its code.
    """
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[1] != 3 or not len(clip):
        raise DataError(
            f"A clip is (frames, 3, rows, columns) of uint8, got {tuple(clip.shape)} of {clip.dtype}. Read it by "
            "read_clip."
        )
    # one frame at a time: the floats of a whole clip of large frames would take four times its memory
    resized = torch.cat([_resized(frame.unsqueeze(0), size) for frame in clip])
    centre, spread = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    return (resized / 255 - centre) / spread


def _resized(frame: Tensor, size: int) -> Tensor:
    if frame.shape[-2:] == (size, size):
        return frame.float()
    floats = torch.nn.functional.interpolate(frame.float(), size=(size, size), mode="bicubic", align_corners=False)
    return floats.clamp(0, 255).round()
