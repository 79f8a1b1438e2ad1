"""Maps at the size of the picture: enlarged, laid over it, or as what is kept of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from repshift.errors import DataError, UnknownNameError
from repshift.registry import suggest

COLOURS = "viridis"  # perceptually uniform: equal steps of the shift look equally far apart
DIMMED = 0.25  # how much is left of the contrast where tokens were dropped
BLENDED = 0.5  # how much the mean colour of merged places covers of the picture


def to_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge maps to the size of the image so that every pixel has the value of the token that covers it.

    Args:
        maps: ``(images, rows, columns)``.
        size: Rows and columns of the image.

    Returns:
        ``(images, *size)``; nothing is blended between tokens, since nothing was measured there.
    """
    return torch.nn.functional.interpolate(maps.unsqueeze(1), size=size, mode="nearest-exact").squeeze(1)


def kept_mask(kept: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay out which tokens were kept.

    Args:
        kept: ``(images, kept)`` original positions.
        grid: Rows and columns of all tokens.

    Returns:
        ``(images, rows, columns)`` bool.
    """
    mask = torch.zeros(kept.shape[0], grid[0] * grid[1], dtype=torch.bool, device=kept.device)
    return mask.scatter(1, kept, True).reshape(-1, *grid)


def dim_dropped(images: Tensor, kept: Tensor) -> Tensor:
    """Fade the parts of images whose tokens were dropped.

    Args:
        images: ``(images, rows, columns, 3)`` in 0..1.
        kept: ``(images, token rows, token columns)`` bool.

    Returns:
        Pictures of the images' shape.
    """
    covered = to_pixels(kept.float(), (images.shape[1], images.shape[2]))
    shade = covered.unsqueeze(-1)
    return images * shade + _faded(images) * (1 - shade)


def blend_merged(images: Tensor, groups: Tensor) -> Tensor:
    """Bring the places of each merged token closer to their mean colour; what stands alone stays as it is.

    Half of the picture is left, so that one sees what was merged as well as that it was.

    Args:
        images: ``(images, rows, columns, 3)`` in 0..1.
        groups: ``(images, token rows, token columns)`` int64: which token each place is part of; negative for none.

    Returns:
        Pictures of the images' shape.
    """
    covering = to_pixels(groups.double(), (images.shape[1], images.shape[2])).long()
    return torch.stack([_blended(*each) for each in zip(images, groups, covering, strict=True)])


def _blended(image: Tensor, groups: Tensor, covering: Tensor) -> Tensor:
    numbers = covering.flatten() + 1  # what is part of no token comes first
    pixels = numbers.bincount().clamp_min(1).unsqueeze(1)
    means = image.new_zeros(len(pixels), 3).index_add(0, numbers, image.flatten(0, 1)) / pixels
    merged = (groups.flatten() + 1).bincount(minlength=len(pixels)) > 1
    merged[0] = False
    share = BLENDED * merged[numbers].to(image.dtype).unsqueeze(1)
    return ((1 - share) * image.flatten(0, 1) + share * means[numbers]).view_as(image)


def group_outlines(groups: Tensor, size: tuple[int, int]) -> Tensor:
    """Find the lines between places of different tokens.

    Args:
        groups: ``(token rows, token columns)`` int64.
        size: Rows and columns of the image.

    Returns:
        ``(lines, 2, 2)`` float32: of each line two ends, of each end the column and the row, counted in pixels from the
        image's upper left corner.
    """
    steps = torch.tensor([size[1] / groups.shape[1], size[0] / groups.shape[0]])
    row, column = (groups[:, 1:] != groups[:, :-1]).nonzero(as_tuple=True)
    upright = torch.stack([torch.stack([column + 1, row], 1), torch.stack([column + 1, row + 1], 1)], 1)
    row, column = (groups[1:] != groups[:-1]).nonzero(as_tuple=True)
    level = torch.stack([torch.stack([column, row + 1], 1), torch.stack([column + 1, row + 1], 1)], 1)
    return torch.cat([upright, level]) * steps


def _faded(images: Tensor) -> Tensor:
    # dark pictures need a visible veil, so what is dropped turns grey instead of black
    return DIMMED * images + (1 - DIMMED) * 0.5


def show_map_on_image(
    image: ArrayLike, heatmap: ArrayLike, *, colormap: str = COLOURS, image_weight: float = 0.5
) -> NDArray[np.uint8]:
    """Lay a map over a picture, as pytorch-grad-cam's ``show_cam_on_image`` does.

    Unlike there, the map may be as small as the grid of the tokens, the result is RGB, and its brightness is not
    stretched, so that a colour means the same on every picture.

    Args:
        image: ``(rows, columns, 3)`` floats in 0..1.
        heatmap: ``(token rows, token columns)`` floats in 0..1, of any size; each token colours the pixels that it
            covers. Where it is NaN, because the token had been dropped, the picture is faded instead.
        colormap: A name that matplotlib knows.
        image_weight: Share of the picture in the blend, in 0..1.

    Returns:
        ``(rows, columns, 3)`` uint8.

    Raises:
        DataError: If a shape, a range or the weight is another.
        UnknownNameError: If there is no such colour map.

    Example:
        >>> import numpy as np
        >>> show_map_on_image(np.zeros((4, 4, 3)), np.eye(2), colormap="gray")[..., 0]
        array([[128, 128,   0,   0],
               [128, 128,   0,   0],
               [  0,   0, 128, 128],
               [  0,   0, 128, 128]], dtype=uint8)

    Source: Gildenblat, pytorch-grad-cam, ``show_cam_on_image``.
    """
    from matplotlib import colormaps

    picture = _checked(image, "picture", "(rows, columns, 3)", lambda shape: len(shape) == 3 and shape[2] == 3)
    values = _checked(heatmap, "map", "(rows, columns)", lambda shape: len(shape) == 2)
    if not 0 <= image_weight <= 1:
        raise DataError(f"image_weight is the share of the picture, got {image_weight}. Give a number in 0..1.")
    if colormap not in colormaps:
        raise UnknownNameError(f"Unknown colour map {colormap!r}. {suggest(colormap, colormaps)}")
    enlarged = to_pixels(torch.from_numpy(values).unsqueeze(0), (picture.shape[0], picture.shape[1]))[0]
    dropped = enlarged.isnan()
    colours = torch.from_numpy(colormaps[colormap](enlarged.nan_to_num().numpy())[..., :3])
    seen = torch.from_numpy(picture)
    blended = image_weight * seen + (1 - image_weight) * colours
    shown = torch.where(dropped.unsqueeze(-1), _faded(seen), blended)
    result: NDArray[np.uint8] = (255 * shown).round().to(torch.uint8).numpy()
    return result


def _checked(
    values: ArrayLike, name: str, expected: str, fits: Callable[[tuple[int, ...]], bool]
) -> NDArray[np.float64]:
    """Check that an array has its shape and lies in 0..1."""
    array = np.asarray(values)
    if array.dtype.kind != "f" or not fits(array.shape) or not array.size:
        raise DataError(
            f"A {name} is {expected} of floats in 0..1, got {array.shape} of {array.dtype}. "
            "Divide 8-bit values by 255; take one image of a batch."
        )
    finite = array[~np.isnan(array)]
    if finite.size and not (finite.min() >= 0 and finite.max() <= 1):
        raise DataError(
            f"A {name} has values in 0..1, got {finite.min():.3g} to {finite.max():.3g}. Scale it first: "
            "heatmap_array(..., normalisation='map') gives maps in 0..1."
        )
    return array.astype(np.float64)
