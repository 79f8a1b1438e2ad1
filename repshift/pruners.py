"""What is taken away, given a score for every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from repshift.errors import UnsupportedModelError
from repshift.layouts import Layout, MapLayout, ResidualPair, TokenLayout
from repshift.registry import Registry
from repshift.schedules import Drop, dropped_count
from repshift.selection import keep_highest


class Pruner(Protocol):
    """Shortens a value by its scores.

    A pruner computes counts from shapes, never from data, so that compiled graphs stay whole; it is stored on the
    pruned model, so it must pickle. A class attribute ``needs`` may name the methods that the layout must have. With a
    method ``keep_first(value, drop, layout)`` that takes away as much without any scores, it can serve
    ``score="oracle_free"``.
    """

    def shorten(self, value: Any, scores: Tensor, drop: Drop, layout: Any) -> tuple[Any, Tensor | None]:
        """Drop what scores lowest.

        Args:
            value: What the block returned.
            scores: ``(batch, tokens)``.
            drop: A share of the tokens or a count of them.
            layout: How the value holds its tokens.

        Returns:
            The shorter value, and the kept positions ``(batch, kept)`` in the order of the shorter value, or ``None``
            if all were kept.
        """
        ...


@dataclass(frozen=True)
class TokenPruner:
    """Drops single tokens, those with the lowest scores of each image; the others stay in order.

    Example:
        >>> import torch
        >>> from repshift.layouts import Sequence
        >>> tokens, scores = torch.arange(4.0).view(1, 4, 1), torch.tensor([[0.5, 0.1, 0.9, 0.2]])
        >>> shorter, kept = TokenPruner().shorten(tokens, scores, 0.5, Sequence())
        >>> shorter.flatten(), kept
        (tensor([0., 2.]), tensor([[0, 2]]))

    Source: arXiv 2508.00367, section 3.
    """

    needs: ClassVar[tuple[str, ...]] = ("keep",)

    def shorten(self, value: Any, scores: Tensor, drop: Drop, layout: TokenLayout) -> tuple[Any, Tensor | None]:
        """Drop the tokens with the lowest scores ``(batch, tokens)``; see :class:`Pruner`.

        Raises:
            ScheduleError: If fewer than one token would stay.
        """
        kept = _kept_tokens(scores, drop)
        return (value, None) if kept is None else (layout.keep(value, kept), kept)

    def keep_first(self, value: Any, drop: Drop, layout: TokenLayout) -> tuple[Any, Tensor | None]:
        """Keep the first tokens, as many as scores would keep."""
        return _first_tokens(value, drop, layout)


@dataclass(frozen=True)
class SequencePruner:
    """Drops elements of a state space model's sequence, those with the lowest scores of each image.

    Hidden values and residual stream are shortened together, the order stays, and class tokens are never dropped.

    Attributes:
        align: Let the dropped elements still decay the states of the layers behind, by the step sizes that they had
            in the last layer that saw them (after Zhan et al. 2024, arXiv 2409.18962). Needs a model whose layers
            pass their step sizes on, as :class:`repshift.backbones.vim_model.VisionMamba` does.

    Source: arXiv 2508.00367, section 4 (state space models).
    """

    align: bool = False
    needs: ClassVar[tuple[str, ...]] = ("keep", "positions")

    def shorten(self, value: Any, scores: Tensor, drop: Drop, layout: ResidualPair) -> tuple[Any, Tensor | None]:
        """Drop the elements with the lowest scores ``(batch, tokens)``; see :class:`Pruner`.

        Raises:
            ScheduleError: If fewer than one element would stay.
            UnsupportedModelError: If alignment is wanted of a model that does not pass its step sizes on.
        """
        kept = _kept_tokens(scores, drop)
        if kept is None:
            return value, None
        if self.align:
            if not hasattr(value, "aligned"):
                raise UnsupportedModelError(
                    f"This model's layers return {type(value).__name__} without the step sizes of their scans, which "
                    "alignment needs. Prune without align=True."
                )
            value = value.aligned(layout.positions(value, kept))
        return layout.keep(value, kept), kept

    def keep_first(self, value: Any, drop: Drop, layout: ResidualPair) -> tuple[Any, Tensor | None]:
        """Keep the first elements, as many as scores would keep, without alignment."""
        return _first_tokens(value, drop, layout)


@dataclass(frozen=True)
class LinePruner:
    """Drops whole rows and whole columns of a feature map, so that a map is left for the convolutions behind.

    The score of a line is the mean of its positions; for each image those with the lowest go. An integer drop is that
    many rows and that many columns, a share is one of each.

    Example:
        >>> import torch
        >>> from repshift.layouts import FeatureMap
        >>> scores = torch.tensor([[0.0, 0.0, 0.0, 0.0, 2.0, 3.0, 0.0, 4.0, 5.0]])
        >>> smaller, kept = LinePruner().shorten(scores.view(1, 1, 3, 3), scores, 1, FeatureMap())
        >>> smaller
        tensor([[[[2., 3.],
                  [4., 5.]]]])

    Source: arXiv 2508.00367, section 4 (convolutional networks, line-wise).
    """

    needs: ClassVar[tuple[str, ...]] = ("arrange",)

    def shorten(self, value: Any, scores: Tensor, drop: Drop, layout: MapLayout) -> tuple[Any, Tensor | None]:
        """Drop the lines whose scores ``(batch, tokens)`` have the lowest means; see :class:`Pruner`.

        Raises:
            ScheduleError: If fewer than one line would stay.
        """
        rows, columns = _grid(value, layout)
        left = _lines_left(rows, columns, drop)
        if left == (rows, columns):
            return value, None
        scores = scores.float().reshape(-1, rows, columns)
        kept_rows, kept_columns = keep_highest(scores.mean(2), left[0]), keep_highest(scores.mean(1), left[1])
        kept = (kept_rows.unsqueeze(2) * columns + kept_columns.unsqueeze(1)).flatten(1)
        return layout.arrange(value, kept, left), kept

    def keep_first(self, value: Any, drop: Drop, layout: MapLayout) -> tuple[Any, Tensor | None]:
        """Keep the first rows and columns, as many as scores would keep."""
        return _first_lines(value, drop, layout)


@dataclass(frozen=True)
class PositionPruner:
    """Drops the least important positions of each row, then those of each column; what is left closes up to a map.

    Counts are those of :class:`LinePruner`, but each row loses other columns, and each column other rows.

    Example:
        >>> import torch
        >>> from repshift.layouts import FeatureMap
        >>> scores = torch.tensor([[9.0, 0.0, 8.0, 0.0, 7.0, 6.0, 1.0, 2.0, 0.0]])
        >>> smaller, kept = PositionPruner().shorten(scores.view(1, 1, 3, 3), scores, 1, FeatureMap())
        >>> smaller
        tensor([[[[9., 8.],
                  [7., 6.]]]])

    Source: arXiv 2508.00367, section 4 (convolutional networks, token-wise).
    """

    needs: ClassVar[tuple[str, ...]] = ("arrange",)

    def shorten(self, value: Any, scores: Tensor, drop: Drop, layout: MapLayout) -> tuple[Any, Tensor | None]:
        """Drop the lowest of the scores ``(batch, tokens)`` in each row and column; see :class:`Pruner`.

        Raises:
            ScheduleError: If fewer than one line would stay.
        """
        rows, columns = _grid(value, layout)
        left = _lines_left(rows, columns, drop)
        if left == (rows, columns):
            return value, None
        batch = scores.shape[0]
        old = torch.arange(rows * columns, device=scores.device).view(1, rows, columns).expand(batch, -1, -1)
        scores = scores.reshape(batch, rows, columns)
        in_rows = keep_highest(scores.flatten(0, 1), left[1]).view(batch, rows, left[1])
        scores, old = scores.gather(2, in_rows), old.gather(2, in_rows)
        in_columns = keep_highest(scores.transpose(1, 2).flatten(0, 1), left[0]).view(batch, left[1], left[0])
        kept = old.gather(1, in_columns.transpose(1, 2)).flatten(1)
        return layout.arrange(value, kept, left), kept

    def keep_first(self, value: Any, drop: Drop, layout: MapLayout) -> tuple[Any, Tensor | None]:
        """Keep the first rows and columns, as many as scores would keep."""
        return _first_lines(value, drop, layout)


def check_layout(pruner: Pruner, layout: Layout, model: str, own: str) -> None:
    """Check that a pruner can shorten what a model's blocks return.

    Raises:
        UnsupportedModelError: If the layout lacks what the pruner needs.
    """
    if missing := [method for method in getattr(pruner, "needs", ()) if not hasattr(layout, method)]:
        raise UnsupportedModelError(
            f"{type(pruner).__name__} cannot shorten the {type(layout).__name__} of {model}: that layout has no "
            f"{' or '.join(missing)}. Leave pruner out, or give pruner={own!r}."
        )


def _kept_tokens(scores: Tensor, drop: Drop) -> Tensor | None:
    tokens = scores.shape[1]
    count = dropped_count(tokens, drop, "this block")
    return keep_highest(scores, tokens - count) if count else None


def _first_tokens(value: Any, drop: Drop, layout: TokenLayout) -> tuple[Any, Tensor | None]:
    tokens = layout.tokens(value)
    batch, length = tokens.shape[:2]
    count = length - dropped_count(length, drop, "this block")
    if count == length:
        return value, None
    return layout.keep_first(value, count), torch.arange(count, device=tokens.device).expand(batch, -1)


def _first_lines(value: Any, drop: Drop, layout: MapLayout) -> tuple[Any, Tensor | None]:
    rows, columns = _grid(value, layout)
    left = _lines_left(rows, columns, drop)
    if left == (rows, columns):
        return value, None
    device = value.device
    kept = torch.arange(left[0], device=device).unsqueeze(1) * columns + torch.arange(left[1], device=device)
    return layout.corner(value, left), kept.flatten().expand(len(value), -1)


def _grid(value: Any, layout: Layout) -> tuple[int, int]:
    grid = layout.grid(value)
    if grid is None or len(grid) != 2:
        raise UnsupportedModelError(
            f"Lines are dropped from maps of rows and columns, got a grid {grid}. Choose another pruner."
        )
    return grid[0], grid[1]


def _lines_left(rows: int, columns: int, drop: Drop) -> tuple[int, int]:
    return (
        rows - dropped_count(rows, drop, "this stage", "rows"),
        columns - dropped_count(columns, drop, "this stage", "columns"),
    )


PRUNERS = Registry(
    "pruner",
    {
        "tokens": TokenPruner(),
        "sequence": SequencePruner(),
        "sequence_aligned": SequencePruner(align=True),
        "lines": LinePruner(),
        "positions": PositionPruner(),
    },
)
