"""Grids of tokens, and tables of positions at another size, by timm's convention: bicubic, antialias, float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from repshift.errors import UnsupportedModelError


def fitting_grid(embedding: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the grid of tokens that one of timm's embeddings makes of images of a size.

    Args:
        embedding: Has ``dynamic_feat_size``, and ``feat_ratio``, the pixels a side of a token.
        size: Rows and columns in pixels.

    Raises:
        UnsupportedModelError: If the tokens do not fill the images, or there is not one.
    """
    ratio = getattr(embedding, "feat_ratio", None)
    if ratio is None:
        raise UnsupportedModelError(
            f"How many pixels a token of {type(embedding).__name__} has is not known, so input_size cannot be given. "
            "Leave it out, or build the model with this size."
        )
    height, width = ratio(as_scalar=False)
    padded = getattr(embedding, "dynamic_img_pad", False)
    if min(size) < 1 or (not padded and (size[0] % height or size[1] % width)):
        near = (max(1, size[0] // height) * height, max(1, size[1] // width) * width)
        raise UnsupportedModelError(
            f"input_size {size[0]}x{size[1]} does not come to whole tokens of {height}x{width} pixels. Give multiples, "
            f"such as input_size={near}."
        )
    rows, columns = embedding.dynamic_feat_size(size)
    return rows, columns


def resampled_table(table: Tensor, grid: tuple[int, int], old_grid: tuple[int, int], prefix: int) -> Tensor:
    """Resample a table of positions to another grid; the entries of prefix tokens in front stay as they are.

    Args:
        table: ``(1, prefix + patches, channels)``.
        grid: Rows and columns of patches that are wanted.
        old_grid: Those of the table.
        prefix: How many entries in front are not on the grid.

    Returns:
        ``(1, prefix + rows * columns, channels)`` of the same dtype.
    """
    from timm.layers import resample_abs_pos_embed

    resampled: Tensor = resample_abs_pos_embed(table, list(grid), list(old_grid), num_prefix_tokens=prefix)
    return resampled


@dataclass(frozen=True)
class Tubelets:
    """The grid of a video's tokens, each of so many frames, rows and columns of pixels."""

    size: tuple[int, int, int]

    def __call__(self, video: tuple[int, int, int]) -> tuple[int, ...]:
        """Return frames, rows and columns of tokens; a video too short for one is repeated."""
        return tuple(max(1, pixels // own) for pixels, own in zip(video, self.size, strict=True))
