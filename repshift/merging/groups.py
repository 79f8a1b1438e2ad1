"""From "who goes into whom" to a selection, in counts that follow from shapes alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift.selection import Selection


def directions(tokens: Tensor) -> Tensor:
    """Return the directions of tokens, ``(batch, tokens, channels)`` float32 of length 1, without a gradient."""
    return F.normalize(tokens.detach().float(), dim=-1)


def ward_costs(tokens: Tensor, sizes: Tensor | None, squares: Tensor | None = None) -> Tensor:
    """Say what it costs to join two tokens: half of ``s_i s_j / (s_i + s_j) |z_i - z_j|^2``, which is Ward's cost.

    Args:
        tokens: ``z``, ``(batch, tokens, channels)`` float32.
        sizes: ``(batch, tokens)``; 0 is padding, which joins anything for nothing and which nothing joins. ``None`` for
            one each, and then twice the cost above comes out, which is the same order.
        squares: ``|z|^2``, ``(batch, tokens)``; ``None`` if all are 1.

    Returns:
        ``(batch, tokens, tokens)`` float32, infinite on the diagonal.
    """
    costs = (tokens @ tokens.mT).neg_()
    halves = None if squares is None else squares / 2
    costs = costs.add_(1) if halves is None else costs.add_(halves.unsqueeze(1)).add_(halves.unsqueeze(2))
    if sizes is not None:
        lightness = 1 / sizes  # of padding infinite, so that its costs are 0
        costs = costs.div_(lightness.unsqueeze(2) + lightness.unsqueeze(1))
        costs = costs.masked_fill_((sizes == 0).unsqueeze(1), torch.inf)
    costs.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return costs


def selected(goes: Tensor, into: Tensor, left: int, *, keeps_norm: bool = False) -> Selection:
    """Make the selection in which some tokens go into others, and these may go on into others again.

    Args:
        goes: ``(batch, tokens)`` bool: as many in every image.
        into: ``(batch, tokens)`` int64: where each of them goes, by its position.
        left: How many stay.
        keeps_norm: See :class:`repshift.selection.Selection`.
    """
    batch, count = goes.shape
    own = torch.arange(count, device=goes.device).expand(batch, -1)
    target = torch.where(goes, into, own)
    for _ in range(max(1, (count - left).bit_length())):  # a chain is no longer than those that go
        target = target.gather(1, target)
    kept = torch.where(goes, count, own).sort(dim=1).values[:, :left]
    place = (~goes).cumsum(1) - 1
    # where equal costs made a circle of tokens that all go, each goes to the kept one before it instead
    target = torch.where(goes.gather(1, target), own, target)
    return Selection(kept, joins=place.gather(1, target).clamp_min(0), keeps_norm=keeps_norm)


def cheapest(costs: Tensor, count: int) -> Tensor:
    """Mark the tokens whose costs are the lowest.

    Args:
        costs: ``(batch, tokens)``.
        count: How many to mark in every image.

    Returns:
        ``(batch, tokens)`` bool.
    """
    chosen = costs.topk(count, dim=1, largest=False, sorted=False).indices
    return torch.zeros_like(costs, dtype=torch.bool).scatter(1, chosen, True)


def followed(first: Selection, second: Selection) -> Selection:
    """Make one selection of two, the second one among what the first one left."""
    assert first.joins is not None
    assert second.joins is not None
    joins = second.joins.gather(1, first.joins)
    return Selection(first.kept.gather(1, second.kept), joins=joins, keeps_norm=second.keeps_norm)
