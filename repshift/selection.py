"""Positions that were kept: choose them, compose them, bring values back to the grid."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """Choose the tokens with the highest scores.

    Args:
        scores: ``(batch, tokens)``, any dtype that can be ordered.
        count: How many to keep, at least 1.

    Returns:
        ``(batch, count)`` int64 positions, ascending: order among tokens never changes.

    Example:
        >>> import torch
        >>> keep_highest(torch.tensor([[0.1, 0.9, 0.3, 0.7]]), 2)
        tensor([[1, 3]])
    """
    return scores.topk(count, dim=1, sorted=False).indices.sort(dim=1).values


def compose(earlier: Tensor | None, later: Tensor) -> Tensor:
    """Express positions among kept tokens as positions among the original ones.

    Args:
        earlier: ``(batch, tokens)`` original positions of the tokens that were there; ``None`` for all of them.
        later: ``(batch, kept)`` positions among those.

    Returns:
        ``(batch, kept)`` original positions.

    Example:
        >>> import torch
        >>> compose(torch.tensor([[1, 3, 5]]), torch.tensor([[0, 2]]))
        tensor([[1, 5]])
    """
    return later if earlier is None else earlier.gather(1, later)


def restore(values: Tensor, positions: Tensor | None, tokens: int) -> Tensor:
    """Put values back to where their tokens came from.

    Args:
        values: ``(batch, kept)`` floating-point, one for each kept token.
        positions: ``(batch, kept)`` their original positions; ``None`` if nothing was dropped.
        tokens: Number of original positions.

    Returns:
        ``(batch, tokens)`` of the values' dtype, NaN where a token was dropped.

    Example:
        >>> import torch
        >>> restore(torch.tensor([[5.0, 7.0]]), torch.tensor([[1, 3]]), 4)
        tensor([[nan, 5., nan, 7.]])
    """
    if positions is None:
        return values
    empty = torch.full((values.shape[0], tokens), torch.nan, dtype=values.dtype, device=values.device)
    return empty.scatter(1, positions, values)
