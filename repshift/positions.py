"""Positions of tokens, for each image its own: choosing, picking, composing, and putting back."""

from __future__ import annotations

import torch
from torch import Tensor

from repshift.errors import RepresentationError, first_line


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


def behind_prefix(positions: Tensor, prefix: int) -> Tensor:
    """Turn positions among tokens into positions in the sequence that the prefix tokens head.

    Args:
        positions: ``(batch, number)`` int64.
        prefix: How many prefix tokens there are.

    Returns:
        ``(batch, prefix + number)``.
    """
    if not prefix:
        return positions
    heads = torch.arange(prefix, device=positions.device).expand(positions.shape[0], -1)
    return torch.cat([heads, positions + prefix], dim=1)


def rows_of(positions: Tensor, length: int) -> Tensor:
    """Say which rows of one long table the positions of every image are.

    Args:
        positions: ``(batch, number)`` int64.
        length: Rows an image.

    Returns:
        ``(batch * number,)`` int64.
    """
    batch = positions.shape[0]
    return (positions + length * torch.arange(batch, device=positions.device).unsqueeze(1)).flatten()


def pick(values: Tensor, positions: Tensor) -> Tensor:
    """Take entries out of every image's own sequence.

    Args:
        values: ``(batch, length, ...)``.
        positions: ``(batch, number)`` int64, for each image its own.

    Returns:
        ``(batch, number, ...)``.

    Raises:
        RepresentationError: If the values are of other images, or a position lies outside of them.
    """
    if values.ndim < 2 or values.shape[0] != positions.shape[0]:
        raise RepresentationError(
            f"Positions of {positions.shape[0]} images pick from (batch, length, ...), got {tuple(values.shape)}. Give "
            "the values of these images."
        )
    try:
        if values.ndim == 2:
            return values.gather(1, positions)
        batch, length = values.shape[:2]
        # whole rows of one long table are copied ten times as fast as gather picks single numbers (on a CPU)
        chosen = values.flatten(0, 1).index_select(0, rows_of(positions, length))
    except (IndexError, RuntimeError) as error:
        raise out_of_range(error, values) from error
    return chosen.view(batch, positions.shape[1], *values.shape[2:])


def out_of_range(error: Exception, values: Tensor) -> Exception:
    """Say that positions lie outside, if that is what an error says; otherwise return it as it is.

    Args:
        error: What torch raised.
        values: ``(batch, length, ...)``, what was picked from.
    """
    if "out of range" not in str(error) and "out of bounds" not in str(error):
        return error
    return RepresentationError(
        f"A position lies outside of the {values.shape[1]} that there are ({first_line(error)}). Let a pruner choose "
        "among its candidates."
    )


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
