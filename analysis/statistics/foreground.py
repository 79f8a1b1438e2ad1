"""Whether the tokens that score highest lie on the object: the pointing game, and the share of the top tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from repshift.errors import DataError

TOP = 0.1  # share of the tokens that count as top


def masks_of_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Fill boxes.

    Args:
        boxes: ``(images, 4)`` top, left, bottom, right in pixels, ends exclusive.
        size: Rows and columns of the images in pixels.

    Returns:
        ``(images, *size)`` bool.
    """
    rows, columns = (torch.arange(length) for length in size)
    top, left, bottom, right = boxes.unsqueeze(-1).unbind(1)
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return in_rows.unsqueeze(2) & in_columns.unsqueeze(1)


def tokens_on_masks(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Say which tokens lie on the object: those whose central pixel does.

    Args:
        masks: ``(images, rows, columns)`` bool, in pixels.
        grid: Rows and columns of the tokens.

    Returns:
        ``(images, tokens)`` bool, in row-major order.
    """
    # nearest-exact takes the pixel that holds the centre of the token
    return interpolate(masks.unsqueeze(1).float(), size=grid, mode="nearest-exact").flatten(1) > 0.5


def share_on_foreground(scores: Tensor, foreground: Tensor, count: int) -> Tensor:
    """Compute which share of the highest tokens lies on the object.

    Of tokens that tie for the last places, each has its part of them, so nothing depends on their order.

    Args:
        scores: ``(images, tokens)``.
        foreground: The same shape, bool.
        count: How many tokens are the highest; 1 is the pointing game.

    Returns:
        ``(images,)`` float32 in 0..1.

    Source: the pointing game of Zhang et al. 2016, arXiv 1608.00507, with tokens in the place of pixels.
    """
    last = scores.topk(count, dim=1).values[:, -1:]
    above, tied = scores > last, scores == last
    left = count - above.sum(1)
    of_tied = (tied & foreground).sum(1) / tied.sum(1)
    shares: Tensor = ((above & foreground).sum(1) + left * of_tied) / count
    return shares


@dataclass(frozen=True)
class Tally:
    """Sums over images: of the pointing game, of the share of the top tokens, of chance; and how many images."""

    pointing: float = 0.0
    top: float = 0.0
    chance: float = 0.0
    images: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.pointing + other.pointing,
            self.top + other.top,
            self.chance + other.chance,
            self.images + other.images,
        )

    def summary(self) -> dict[str, float]:
        """Return means over the images; NaN if there is none."""
        count = self.images or math.nan
        means = {"pointing": self.pointing / count, "top": self.top / count, "chance": self.chance / count}
        return {**means, "images": self.images}


class Foreground:
    """Shares on the foreground by setting and layer, over as many images as one likes."""

    def __init__(self) -> None:
        self.tallies: dict[tuple[str, str], Tally] = {}

    def update(self, maps: Mapping[str, Mapping[str, Tensor]], masks: Tensor) -> None:
        """Take in a batch.

        Images whose object covers no token of a layer, or all of them, say nothing there and are left out.

        Args:
            maps: ``(images, rows, columns)`` by setting and layer.
            masks: ``(images, rows, columns)`` bool, in pixels; ``True`` on the object.

        Raises:
            DataError: If there is not one mask for each image.
        """
        for setting, layers in maps.items():
            for layer in layers:
                scores = layers[layer].cpu()
                if len(scores) != len(masks):
                    raise DataError(f"Got {len(masks)} masks for {len(scores)} images. Give one for each.")
                foreground = tokens_on_masks(masks, (scores.shape[1], scores.shape[2]))
                telling = foreground.any(1) & ~foreground.all(1)
                key, arrived = (setting, layer), _tally(scores.flatten(1)[telling], foreground[telling])
                self.tallies[key] = self.tallies.get(key, Tally()) + arrived

    def merge(self, other: Foreground) -> None:
        """Take in what another process gave."""
        for key, tally in other.tallies.items():
            self.tallies[key] = self.tallies.get(key, Tally()) + tally


def _tally(scores: Tensor, foreground: Tensor) -> Tally:
    count = max(1, math.floor(TOP * scores.shape[1]))
    return Tally(
        float(share_on_foreground(scores, foreground, 1).double().sum()),
        float(share_on_foreground(scores, foreground, count).double().sum()),
        float(foreground.double().mean(1).sum()),
        len(scores),
    )
