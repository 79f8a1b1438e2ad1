"""What is taken away, given a score for every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from repshift.layouts import TokenLayout
from repshift.registry import Registry
from repshift.schedules import Drop, dropped_count
from repshift.selection import keep_highest


class Pruner(Protocol):
    """Shortens a value by its scores.

    A pruner computes counts from shapes, never from data, so that compiled graphs stay whole; it is stored on the
    pruned model, so it must pickle.
    """

    def shorten(self, value: Any, scores: Tensor, drop: Drop, layout: TokenLayout) -> tuple[Any, Tensor | None]:
        """Drop what scores lowest.

        Args:
            value: What the block returned.
            scores: ``(batch, tokens)``.
            drop: A share of the tokens or a count of them.
            layout: How the value holds its tokens.

        Returns:
            The shorter value, and the kept positions ``(batch, kept)`` ascending, or ``None`` if all were kept.
        """
        ...


@dataclass(frozen=True)
class TokenPruner:
    """Drops single tokens, those with the lowest scores of each image.

    Source: arXiv 2508.00367, section 3.
    """

    def shorten(self, value: Any, scores: Tensor, drop: Drop, layout: TokenLayout) -> tuple[Any, Tensor | None]:
        """Drop the tokens with the lowest scores; see :class:`Pruner`.

        Raises:
            ScheduleError: If fewer than one token would stay.
        """
        tokens = scores.shape[1]
        count = dropped_count(tokens, drop, "this block")
        if count == 0:
            return value, None
        kept = keep_highest(scores, tokens - count)
        return layout.keep(value, kept), kept


PRUNERS = Registry("pruner", {"tokens": TokenPruner()})
