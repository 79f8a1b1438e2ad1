"""Merging mutual nearest neighbours under Ward's cost: our own pruner, and the recommended one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from repshift.errors import ScheduleError
from repshift.merging.groups import cheapest, directions, followed, selected, ward_costs
from repshift.merging.merger import Merger
from repshift.pruners import Candidates
from repshift.selection import Selection, pick


@dataclass(frozen=True)
class MutualNearestPruner(Merger):
    """Lets the tokens that are cheapest to join become part of their nearest neighbours.

    The cost of joining two tokens is Ward's, ``s_i s_j / (s_i + s_j) |z_i - z_j|^2``, of their directions ``z`` and
    sizes ``s``. Every token has a nearest one. Of two that are nearest to each other the heavier one stays (of equal
    ones, the first); of all others the cheapest go into their nearest, which may itself go on. With two rounds, the
    cheaper half of what goes is chosen first among mutual nearest neighbours, whose averages then take part in the
    second round. What stays is the mean of its group, weighted by sizes, at the mean length of its tokens.

    At most half of the tokens go at once; of a larger drop, the rest goes in a second pass.

    Attributes:
        rounds: 1, or 2 for less error and more time.
        size_attention: See :class:`repshift.merging.merger.Merger`.
    """

    rounds: int = 2
    chooses_itself: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rounds not in (1, 2):
            raise ScheduleError(f"Mutual nearest neighbours are joined in 1 or 2 rounds, got {self.rounds!r}.")

    def merge(self, candidates: Candidates, left: int) -> Selection:
        """Join the cheapest; see :class:`repshift.merging.merger.Merger`."""
        tokens, sizes = directions(candidates.tokens), candidates.sizes
        selection = self._pass(tokens, sizes, max(left, (candidates.count + 1) // 2), None)
        while (count := selection.kept.shape[1]) > left:
            means, weights = replace(selection, keeps_norm=False).mean(tokens, sizes), selection.sizes(sizes)
            squares = means.square().sum(2)
            selection = followed(selection, self._pass(means, weights, max(left, (count + 1) // 2), squares))
        return selection

    def _pass(self, tokens: Tensor, sizes: Tensor | None, left: int, squares: Tensor | None) -> Selection:
        going = tokens.shape[1] - left
        if self.rounds == 1 or going == 1:
            cost, nearest = ward_costs(tokens, sizes, squares).min(dim=2)
            cost = cost.masked_fill(_stays(nearest, sizes), torch.inf)
            return selected(cheapest(cost, going), nearest, left, keeps_norm=True)
        went, into, tokens, sizes = _join_pairs(tokens, sizes, (going + 1) // 2, squares)
        costs = ward_costs(tokens, sizes, tokens.square().sum(2)).masked_fill_(went.unsqueeze(1), torch.inf)
        cost, nearest = costs.min(dim=2)
        cost = cost.masked_fill(_stays(nearest, sizes), torch.inf)
        # those that went in the first round are among those that go
        goes = cheapest(cost.masked_fill(went, -torch.inf), going)
        return selected(goes, torch.where(went, into, nearest), left, keeps_norm=True)


def _stays(nearest: Tensor, sizes: Tensor | None) -> Tensor:
    """Mark the heavier one of two that are nearest to each other."""
    own = torch.arange(nearest.shape[1], device=nearest.device).expand_as(nearest)
    mutual = nearest.gather(1, nearest) == own
    heavier = own < nearest
    if sizes is not None:
        other = sizes.gather(1, nearest)
        heavier = (sizes > other) | ((sizes == other) & heavier)
    return mutual & heavier


def _join_pairs(
    tokens: Tensor, sizes: Tensor | None, most: int, squares: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Join the cheapest pairs that are nearest to each other, at most so many.

    Returns:
        Who went, ``(batch, tokens)`` bool, and into whom; the tokens, those that got another one being means; their
        sizes.
    """
    cost, nearest = ward_costs(tokens, sizes, squares).min(dim=2)
    own = torch.arange(nearest.shape[1], device=nearest.device).expand_as(nearest)
    mutual = nearest.gather(1, nearest) == own
    lighter = mutual & ~_stays(nearest, sizes)
    if sizes is not None:
        lighter = lighter | (sizes == 0)  # padding goes first, whoever is nearest to whom
    went = cheapest(cost.masked_fill(~lighter, torch.inf), most) & lighter
    weights = torch.ones_like(cost) if sizes is None else sizes
    got = torch.where(mutual, weights.gather(1, nearest) * went.gather(1, nearest), 0.0)
    total = weights + got
    share = (got / total.clamp_min(torch.finfo(total.dtype).tiny)).unsqueeze(2)
    return went, nearest, torch.lerp(tokens, pick(tokens, nearest), share), total
