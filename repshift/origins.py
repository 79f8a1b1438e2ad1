"""Where the tokens of a pruned model once stood, followed through its cuts and strides."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from repshift.selection import compose


@dataclass(frozen=True)
class Origin:
    """Where the tokens at some point of a forward stood in the dense model's value at that point.

    Attributes:
        tokens: How many there are in the dense model; ``None`` if that is not known.
        grid: Rows and columns there, of feature maps.
        positions: ``(batch, kept)`` which of them are left, in the order of the tokens; ``None`` for all.
        current: Rows and columns of what is left, of feature maps.
        rounds_up: Whether strides take half of an odd side rounded up, as padded convolutions do, or down.
    """

    tokens: int | None = None
    grid: tuple[int, ...] | None = None
    positions: Tensor | None = None
    current: tuple[int, ...] | None = None
    rounds_up: bool = True

    def at(self, grid: tuple[int, ...] | None) -> Origin:
        """Return the origin of a value behind it.

        Args:
            grid: Rows and columns of that value if it is a feature map. After strides it has fewer; a position then
                stands for the first of those that it was made of, which is where the dense model has it too, up to
                the lines that were dropped in between.
        """
        if grid is None or grid == self.current:
            return self
        if self.positions is None:
            return Origin(math.prod(grid), grid, None, grid, self.rounds_up)
        if self.grid is None or self.current is None or len(grid) != 2:
            return Origin()
        (rows, row_stride), (columns, column_stride) = (
            self._strided(*sizes) for sizes in zip(self.grid, self.current, grid, strict=True)
        )
        strided = self.positions.reshape(-1, *self.current)[:, ::row_stride, ::column_stride]
        strided = strided[:, : grid[0], : grid[1]]
        if tuple(strided.shape[1:]) != grid:
            return Origin()
        in_rows = strided.div(self.grid[1] * row_stride, rounding_mode="floor")
        in_columns = strided.remainder(self.grid[1]).div(column_stride, rounding_mode="floor")
        positions = (in_rows * columns + in_columns).flatten(1)
        return Origin(rows * columns, (rows, columns), positions, grid, self.rounds_up)

    def cut(self, kept: Tensor, current: tuple[int, ...] | None) -> Origin:
        """Return the origin behind a cut that kept some of these tokens.

        Args:
            kept: ``(batch, kept)`` positions among them.
            current: Rows and columns of what is left, of feature maps.
        """
        return replace(self, positions=compose(self.positions, kept), current=current)

    def _strided(self, dense: int, current: int, now: int) -> tuple[int, int]:
        """Return how long a side of the dense model's map is now, and the stride since; strides are powers of two."""

        def shrunk(side: int, stride: int) -> int:
            return -(-side // stride) if self.rounds_up else side // stride

        stride = 1
        while stride < current and shrunk(current, stride) != now:
            stride *= 2
        return shrunk(dense, stride), stride
