"""Pruners of feature maps: whole lines go, or single positions of each, so that a smaller map is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from repshift.candidates import Candidates
from repshift.drops import Drop, dropped_count
from repshift.errors import UnknownNameError
from repshift.positions import keep_highest
from repshift.selection import Selection


@dataclass(frozen=True)
class LinePruner:
    """Drops whole rows and whole columns of a feature map, so that a map is left for the convolutions behind.

    The score of a line is the mean of its positions; for each image those with the lowest go. An integer drop is that
    many rows and that many columns, a share is one of each. Where the strides behind take multiples of some number
    only, a share that drops anything drops as many lines more as leave one.

    Example:
        >>> import torch
        >>> from repshift.layouts import FeatureMap
        >>> scores = torch.tensor([[0.0, 0.0, 0.0, 0.0, 2.0, 3.0, 0.0, 4.0, 5.0]])
        >>> LinePruner().choose(Candidates(scores.view(1, 1, 3, 3), FeatureMap(), scores), 1).kept
        tensor([[4, 5, 7, 8]])

    Source: arXiv 2508.00367, section 4 (convolutional networks, line-wise).
    """

    needs: ClassVar[tuple[str, ...]] = ("arrange",)
    drops_only: ClassVar[bool] = True

    def choose(self, candidates: Candidates, drop: Drop) -> Selection | None:
        """Drop the lines whose scores have the lowest means; see :class:`repshift.pruners.Pruner`.

        Raises:
            ScheduleError: If fewer than one line would stay.
        """
        return _choose_on_map(candidates, drop, _whole_lines)


@dataclass(frozen=True)
class PositionPruner:
    """Drops the least important positions of each row, then those of each column; what is left closes up to a map.

    Counts are those of :class:`LinePruner`, but each row loses other columns, and each column other rows.

    Example:
        >>> import torch
        >>> from repshift.layouts import FeatureMap
        >>> scores = torch.tensor([[9.0, 0.0, 8.0, 0.0, 7.0, 6.0, 1.0, 2.0, 0.0]])
        >>> PositionPruner().choose(Candidates(scores.view(1, 1, 3, 3), FeatureMap(), scores), 1).kept
        tensor([[0, 2, 4, 5]])

    Source: arXiv 2508.00367, section 4 (convolutional networks, token-wise).
    """

    needs: ClassVar[tuple[str, ...]] = ("arrange",)
    drops_only: ClassVar[bool] = True

    def choose(self, candidates: Candidates, drop: Drop) -> Selection | None:
        """Drop the lowest of the scores in each row and then in each column; see :class:`repshift.pruners.Pruner`.

        Raises:
            ScheduleError: If fewer than one line would stay.
        """
        return _choose_on_map(candidates, drop, _single_positions)


@dataclass(frozen=True)
class FixedLinePruner:
    """Drops rows and columns by their places alone, the same of every image: a control that looks at nothing.

    Counts are those of :class:`LinePruner`. Of ``n`` lines ``m`` stay:

    * ``"crop"``: the first ones, ``0, ..., m - 1``;
    * ``"centre"``: those in the middle, ``(n - m) // 2`` of the others before them;
    * ``"even"``: every ``n / m``-th, line ``floor((i + 1/2) n / m)`` for ``i = 0, ..., m - 1``, the one under
      the centre of each of ``m`` equal parts, which resizing to the nearest neighbour takes.

    Attributes:
        which: One of these.

    Example:
        >>> import torch
        >>> from repshift.layouts import FeatureMap
        >>> candidates = Candidates(torch.zeros(1, 1, 4, 4), FeatureMap(), None)
        >>> [FixedLinePruner(which).choose(candidates, 2).kept.tolist() for which in ("crop", "centre", "even")]
        [[[0, 1, 4, 5]], [[5, 6, 9, 10]], [[5, 7, 13, 15]]]
    """

    which: Literal["crop", "centre", "even"]
    needs: ClassVar[tuple[str, ...]] = ("arrange",)
    drops_only: ClassVar[bool] = True
    chooses_itself: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.which not in PLACES:
            raise UnknownNameError(f"Lines stay by their places as {', '.join(PLACES)} say, got {self.which!r}.")

    def choose(self, candidates: Candidates, drop: Drop) -> Selection | None:
        """Drop lines by their places; see :class:`repshift.pruners.Pruner`.

        Raises:
            ScheduleError: If fewer than one line would stay.
        """
        grid, left = _sides_left(candidates, drop)
        if left == grid:
            return None
        if self.which == "crop":
            return Selection.corner(grid, left, candidates.tokens)
        tokens = candidates.tokens
        rows, columns = (
            PLACES[self.which](side, stay, torch.arange(stay, device=tokens.device))
            for side, stay in zip(grid, left, strict=True)
        )
        kept = (rows.unsqueeze(1) * grid[1] + columns).flatten().expand(tokens.shape[0], -1)
        return Selection(kept, grid=left)


PLACES: dict[str, Callable[[int, int, Tensor], Tensor]] = {
    "crop": lambda side, stay, numbers: numbers,
    "centre": lambda side, stay, numbers: numbers + (side - stay) // 2,
    "even": lambda side, stay, numbers: ((2 * numbers + 1) * side).div(2 * stay, rounding_mode="floor"),
}


def _sides_left(candidates: Candidates, drop: Drop) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return rows and columns that there are, and those that a drop leaves."""
    rows, columns = candidates.grid
    return (rows, columns), (_left(rows, drop, candidates, "rows"), _left(columns, drop, candidates, "columns"))


def _left(side: int, drop: Drop, candidates: Candidates, unit: str) -> int:
    gone = dropped_count(side, drop, candidates.block, unit)
    left = side - gone
    if isinstance(drop, float) and gone and left >= candidates.multiple:
        return left - left % candidates.multiple
    return left


def _choose_on_map(
    candidates: Candidates, drop: Drop, keep: Callable[[Tensor, tuple[int, int]], Tensor]
) -> Selection | None:
    """Leave as many rows and columns as a drop says; ``keep`` finds them by scores ``(batch, rows, columns)``."""
    grid, left = _sides_left(candidates, drop)
    if left == grid:
        return None
    if candidates.ranking is None:
        return Selection.corner(grid, left, candidates.tokens)
    return Selection(keep(candidates.ranking.reshape(-1, *grid), left), grid=left)


def _whole_lines(scores: Tensor, left: tuple[int, int]) -> Tensor:
    scores = scores.float()
    rows, columns = keep_highest(scores.mean(2), left[0]), keep_highest(scores.mean(1), left[1])
    return (rows.unsqueeze(2) * scores.shape[2] + columns.unsqueeze(1)).flatten(1)


def _single_positions(scores: Tensor, left: tuple[int, int]) -> Tensor:
    batch, rows, columns = scores.shape
    old = torch.arange(rows * columns, device=scores.device).view(1, rows, columns).expand(batch, -1, -1)
    in_rows = keep_highest(scores.flatten(0, 1), left[1]).view(batch, rows, left[1])
    scores, old = scores.gather(2, in_rows), old.gather(2, in_rows)
    in_columns = keep_highest(scores.transpose(1, 2).flatten(0, 1), left[0]).view(batch, left[1], left[0])
    return old.gather(1, in_columns.transpose(1, 2)).flatten(1)
