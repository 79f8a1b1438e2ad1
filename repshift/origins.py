"""Where the tokens of a pruned model once stood, followed through its cuts and strides."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from repshift.positions import compose
from repshift.selection import Selection


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the tokens at some point of a forward stood in the dense model's value at that point.

    Attributes:
        tokens: How many there are in the dense model; ``None`` if that is not known.
        grid: Rows and columns there, of feature maps.
        positions: ``(batch, kept)`` which of them are left, in the order of the tokens; ``None`` for all.
        current: Rows and columns of what is left, of feature maps.
        rounds_up: Whether strides take half of an odd side rounded up, as padded convolutions do, or down.
        joined: ``(batch, tokens)`` for every token of the dense model which of those left it became part of, by its
            place among them, -1 if it was dropped; ``None`` as long as none became part of another.
    """

    tokens: int | None = None
    grid: tuple[int, ...] | None = None
    positions: Tensor | None = None
    current: tuple[int, ...] | None = None
    rounds_up: bool = True
    joined: Tensor | None = None

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

    def cut(self, selection: Selection, current: tuple[int, ...] | None) -> Origin:
        """Return the origin behind a cut.

        Args:
            selection: What was kept of these tokens, and what the others joined.
            current: Rows and columns of what is left, of feature maps.
        """
        return replace(
            self,
            positions=compose(self.positions, selection.kept),
            current=current,
            joined=self._joined(selection),
        )

    def held(self) -> Tensor | None:
        """Say for every token of the dense model which of those left stands for it.

        Returns:
            ``(batch, tokens)`` int64, -1 for none; ``None`` if all are left, or it is not known how many there were.
        """
        if self.joined is not None or self.positions is None or self.tokens is None:
            return self.joined
        left = torch.arange(self.positions.shape[1], device=self.positions.device).expand_as(self.positions)
        nowhere = self.positions.new_full((self.positions.shape[0], self.tokens), -1)
        return nowhere.scatter(1, self.positions, left)

    def _joined(self, selection: Selection) -> Tensor | None:
        joins = selection.joins
        if joins is None:
            if self.joined is None or self.positions is None:
                return None
            # after tokens were merged some are dropped, and with them all that had become part of them
            gone = torch.full_like(self.positions, -1)
            places = torch.arange(selection.kept.shape[1], device=gone.device).expand_as(selection.kept)
            joins = gone.scatter(1, selection.kept, places)
        if self.joined is not None:
            return joins.gather(1, self.joined.clamp_min(0)).masked_fill(self.joined < 0, -1)
        if self.positions is None or self.tokens is None:
            return joins
        everywhere = joins.new_full((joins.shape[0], self.tokens), -1)
        return everywhere.scatter(1, self.positions, joins)

    def _strided(self, dense: int, current: int, now: int) -> tuple[int, int]:
        """Return how long a side of the dense model's map is now, and the stride since; strides are powers of two."""

        def shrunk(side: int, stride: int) -> int:
            return -(-side // stride) if self.rounds_up else side // stride

        stride = 1
        while stride < current and shrunk(current, stride) != now:
            stride *= 2
        return shrunk(dense, stride), stride
