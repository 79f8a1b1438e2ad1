"""What turns images into the tokens of Vision Mamba: patches, and the table of positions, at any size."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repshift.backbones.positions import fitting_grid, resampled_table
from repshift.errors import RepresentationError

ClassPosition = Literal["head", "middle"]


class PatchEmbed(nn.Module):
    """Cut an image into patches, which overlap if the stride is smaller than the patch, and embed each.

    Args:
        img_size: Rows and columns of the images in pixels, or one number for both.
        patch_size: Pixels a side of a patch.
        stride: Pixels between patches.
        in_chans: Channels of the images.
        embed_dim: Channels of the tokens.
    """

    def __init__(
        self, img_size: int | tuple[int, int], patch_size: int, stride: int, in_chans: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride)
        self.set_input_size(img_size)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size.

        Raises:
            RepresentationError: If not even one patch fits into them.
        """
        rows, columns = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size, self.grid_size = (rows, columns), self.grid_at((rows, columns))
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def grid_at(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of patches of images of a size.

        Raises:
            RepresentationError: If not even one patch fits into them.
        """
        (patch, _), (stride, _), (rows, columns) = self.proj.kernel_size, self.proj.stride, size
        if min(rows, columns) < patch:
            raise RepresentationError(
                f"Images of {rows}x{columns} pixels hold no patch of {patch}x{patch}. Give a larger size."
            )
        return (rows - patch) // stride + 1, (columns - patch) // stride + 1

    def forward(self, images: Tensor) -> Tensor:
        """Return tokens ``(batch, patches, channels)`` in row-major order.

        Args:
            images: ``(batch, in_chans, rows, columns)`` of the model's size.

        Raises:
            RepresentationError: If the images are of another size.
        """
        tokens: Tensor = self.proj(_of_size(images, self.img_size))
        return tokens.flatten(2).transpose(1, 2)


@torch.fx.wrap  # symbolic tracing has no sizes to compare
def _of_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) != size:
        raise RepresentationError(
            f"The model takes images of {size[0]}x{size[1]} pixels, got {tuple(images.shape)}. "
            "Resize the images, or the model: model.set_input_size(img_size=(rows, columns))."
        )
    return images


def grid_at(embedding: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of patches that an embedding, ours or timm's, makes of images of a size.

    Raises:
        RepresentationError: If not even one patch fits into them.
        UnsupportedModelError: If a size does not come to whole patches of one of timm's embeddings.
    """
    return embedding.grid_at(size) if isinstance(embedding, PatchEmbed) else fitting_grid(embedding, size)


def class_index(patches: int, position: ClassPosition) -> int:
    """Say before which patch the class token stands."""
    return patches // 2 if position == "middle" else 0


def resampled_positions(
    table: Tensor, grid: tuple[int, int], old_grid: tuple[int, int] | None, position: ClassPosition
) -> Tensor:
    """Resample a table of positions as timm does for vision transformers; the class token's row stays as it is.

    Args:
        table: ``(1, patches + 1, channels)``, the class token's row where the token stands.
        grid: Rows and columns of patches that are wanted.
        old_grid: Those of the table; ``None`` for a square, if it is one.
        position: Where the class token stands, before and after.

    Returns:
        ``(1, rows * columns + 1, channels)`` of the same dtype.
    """
    patches = table.shape[1] - 1
    side = math.isqrt(patches)
    old_grid = old_grid or (side, side)
    index = class_index(patches, position)
    rows = torch.cat([table[:, :index], table[:, index + 1 :]], dim=1)
    rows = resampled_table(rows, grid, old_grid, prefix=0)
    new = class_index(grid[0] * grid[1], position)
    return torch.cat([rows[:, :new], table[:, index : index + 1], rows[:, new:]], dim=1)
