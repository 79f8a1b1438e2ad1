"""The control that beats many methods: the same model on a smaller input, for no more work than a pruned model does."""

from __future__ import annotations

import math
from bisect import bisect_right

from torch import nn

from repshift import Recipe, RepshiftError, UnsupportedModelError
from repshift.analysis.subjects.macs import count_work
from repshift.analysis.subjects.recipes import apply
from repshift.errors import first_line

TOTAL_STRIDE = 32  # of most convolutional networks, where the model does not tell its own


class SmallerInputs:
    """The sizes at which a model does less work than at its own, and what that comes to.

    Sizes are multiples of the patch, or of the network's total stride, so that no row of pixels is lost. Work is
    counted only at sizes that are looked at, each once.

    Args:
        model: Dense.
        size: Channels, rows and columns of the images that it is given.

    Raises:
        UnsupportedModelError: If it is given videos.
    """

    def __init__(self, model: nn.Module, size: tuple[int, ...]) -> None:
        if len(size) != 3:
            raise UnsupportedModelError("A smaller input is one of images. For less work on videos, give fewer frames.")
        self.model, self.size = model, size
        self.step = _step(model, size)
        self.refused = ""  # why the model cannot have a size, if it cannot
        self._macs: dict[int, int | None] = {}

    def recipe_for(self, pruned: nn.Module) -> Recipe:
        """Return the recipe of the largest input at which the model does at most the work of a pruned one.

        Args:
            pruned: The model that it is compared with, on images of the whole size.

        Raises:
            UnsupportedModelError: If there is no such size; the message says so.
        """
        most = count_work(pruned, self.size).macs
        # the smallest sizes may be refused, by pooling that finds nothing left, and do no work then
        smaller = range(1, math.ceil(self.size[1] / self.step))
        found = bisect_right(smaller, most, key=lambda steps: self._work(steps) or 0)
        if not found or self._work(found) is None:
            rows, columns = self.size[1:]
            raise UnsupportedModelError(
                f"No input smaller than {rows}x{columns} comes to at most {most / 1e9:.3g} GMACs"
                f"{f' ({self.refused})' if self.refused else ''}. Give larger images (--img-size)."
            )
        return self._recipe(found)

    def _work(self, steps: int) -> int | None:
        if steps not in self._macs:
            try:
                self._macs[steps] = count_work(apply(self._recipe(steps), self.model), self.size).macs
            except (RepshiftError, RuntimeError, ValueError, AssertionError) as error:
                self._macs[steps], self.refused = None, first_line(error)
        return self._macs[steps]

    def _recipe(self, steps: int) -> Recipe:
        """Say how the model is run on an input of so many steps of rows, and of columns in proportion."""
        _, rows, columns = self.size
        return Recipe(None, input_size=(steps * self.step, max(1, steps * columns // rows) * self.step))


def fewer_frames(model: nn.Module, like: nn.Module, size: tuple[int, ...]) -> int:
    """Return on how many frames a model does as much work as a pruned one on all of them, or just less.

    Args:
        model: Dense.
        like: The pruned one.
        size: Frames, channels, rows and columns of the videos that it is given.

    Raises:
        UnsupportedModelError: If there is no such number.
    """
    frames, *image = size
    most = count_work(like, size).macs
    for fewer in range(frames - 1, 0, -1):
        if count_work(model, (fewer, *image)).macs <= most:
            return fewer
    raise UnsupportedModelError("One frame is more work than the pruned model does.")


def _step(model: nn.Module, size: tuple[int, ...]) -> int:
    """Return the pixels a side of a patch, or a network's total stride."""
    _, rows, columns = size
    tokens = count_work(model, size).tokens
    if not tokens or not tokens[-1]:
        return TOTAL_STRIDE
    step = math.ceil(math.sqrt(rows * columns / tokens[-1]))
    # what is left over at the edges counts as a whole token
    return 1 << (step - 1).bit_length() if rows % step or columns % step else step
