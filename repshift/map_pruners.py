"""Pruners of feature maps: whole lines go, or single positions of each, so that a smaller map is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repshift.candidates import Candidates
from repshift.drops import Drop, dropped_count
from repshift.selection import Selection, keep_highest


@dataclass(frozen=True)
class LinePruner:
    """Drops whole rows and whole columns of a feature map, so that a map is left for the convolutions behind.

    The score of a line is the mean of its positions; for each image those with the lowest go. An integer drop is that
    many rows and that many columns, a share is one of each.

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
        """Drop the lines whose scores have the lowest means; see :class:`Pruner`.

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
        """Drop the lowest of the scores in each row and then in each column; see :class:`Pruner`.

        Raises:
            ScheduleError: If fewer than one line would stay.
        """
        return _choose_on_map(candidates, drop, _single_positions)


def _choose_on_map(
    candidates: Candidates, drop: Drop, keep: Callable[[Tensor, tuple[int, int]], Tensor]
) -> Selection | None:
    """Leave as many rows and columns as a drop says; ``keep`` finds them by scores ``(batch, rows, columns)``."""
    rows, columns = candidates.grid
    left = (
        rows - dropped_count(rows, drop, candidates.block, "rows"),
        columns - dropped_count(columns, drop, candidates.block, "columns"),
    )
    if left == (rows, columns):
        return None
    if candidates.ranking is None:
        return Selection.corner((rows, columns), left, candidates.tokens)
    return Selection(keep(candidates.ranking.reshape(-1, rows, columns), left), grid=left)


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
