"""Dropping by score, but never the best token of a part of the image as long as there is another one to drop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repshift.candidates import Candidates
from repshift.drops import Drop, whole_number
from repshift.positions import keep_highest
from repshift.selection import Selection


@dataclass(frozen=True)
class CellPruner:
    """Drops single tokens by score, and leaves every part of the image a token of its own if that can be.

    The grid of tokens is divided into cells of 2x2, from its first row and column on; at odd sides the last ones are
    smaller. Of the tokens that are still there the best of each cell come first, by their scores, then all others by
    theirs; so many stay as the drop says. If fewer stay than there are cells, the best of the cells do. Behind several
    cuts the cells are those of the whole grid.

    Attributes:
        side: Rows and columns of a cell.

    Example:
        >>> import torch
        >>> from repshift.layouts import TokenSequence
        >>> scores = torch.tensor([[9.0, 8.0, 1.0, 2.0]])
        >>> places, tokens = torch.arange(4).view(1, 4), torch.zeros(1, 4, 1)
        >>> CellPruner().choose(Candidates(tokens, TokenSequence(), scores, places=places, whole=(1, 4)), 2).kept
        tensor([[0, 3]])
    """

    side: int = 2
    needs: ClassVar[tuple[str, ...]] = ("keep",)
    drops_only: ClassVar[bool] = True
    wants_places: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole_number("rows and columns in a cell", self.side)

    def choose(self, candidates: Candidates, drop: Drop) -> Selection | None:
        """Drop the lowest scores of cells that have others; see :class:`repshift.pruners.Pruner`.

        Raises:
            ScheduleError: If fewer than one token would stay.
            UnsupportedModelError: If it is not known where the tokens stood.
        """
        left = candidates.left(drop)
        if left == candidates.count:
            return None
        scores, (places, (rows, columns)) = candidates.scores, candidates.on_grid()
        across = -(-columns // self.side)
        cells = places.div(columns * self.side, rounding_mode="floor") * across
        cells = cells + places.remainder(columns).div(self.side, rounding_mode="floor")
        ranks = _ranks(scores)
        count = scores.shape[1]
        best = torch.full((scores.shape[0], -(-rows // self.side) * across), count, device=ranks.device)
        best = best.scatter_reduce(1, cells, ranks, "amin")
        # padding, whose score is -inf, is nobody's best
        protected = (best.gather(1, cells) == ranks) & (scores != -torch.inf)
        return Selection(keep_highest(-torch.where(protected, ranks, ranks + count), left))


def _ranks(scores: Tensor) -> Tensor:
    """Number the tokens by their scores, ``(batch, tokens)`` int64, from 0 for the highest."""
    order = scores.argsort(dim=1, descending=True)
    numbers = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.zeros_like(order).scatter(1, order, numbers)
