"""Merging mutual nearest neighbours under Ward's cost: our own pruner, and the recommended one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from repshift.errors import ScheduleError
from repshift.merging.groups import Distances, cheapest, directions, followed, selected
from repshift.merging.merger import Merger
from repshift.pruners import Candidates
from repshift.selection import Selection

FAR = 1e30  # a price beyond all, but not infinite


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
        exact: Compare in float32, even where half precision is faster; then the choice differs where costs are nearly
            equal.
        size_attention: See :class:`repshift.merging.merger.Merger`.
    """

    rounds: int = 2
    exact: bool = False
    chooses_itself: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.rounds) is not int or self.rounds not in (1, 2):
            raise ScheduleError(f"Mutual nearest neighbours are joined in 1 or 2 rounds, got {self.rounds!r}.")

    def merge(self, candidates: Candidates, left: int) -> Selection:
        """Join the cheapest; see :class:`repshift.merging.merger.Merger`."""
        tokens, sizes = directions(candidates.tokens), candidates.sizes
        selection = self._pass(tokens, sizes, max(left, (candidates.count + 1) // 2))
        while (count := selection.kept.shape[1]) > left:
            means, weights = replace(selection, keeps_norm=False).mean(tokens, sizes), selection.sizes(sizes)
            selection = followed(selection, self._pass(means, weights, max(left, (count + 1) // 2)))
        return selection

    def _pass(self, tokens: Tensor, sizes: Tensor | None, left: int) -> Selection:
        going = tokens.shape[1] - left
        distances = Distances.between(tokens, self.exact)
        cost, nearest = distances.nearest(sizes)
        if self.rounds == 1 or going == 1:
            cost = cost.masked_fill(_mutual(nearest, sizes)[0], torch.inf)
            return selected(cheapest(cost, going), nearest, left, keeps_norm=True)
        first = _join_pairs(distances, sizes, cost, nearest, (going + 1) // 2)
        cost, second = first.distances.nearest(first.sizes, among=~first.went)
        cost = cost.masked_fill(_mutual(second, first.sizes)[0], torch.inf)
        # those that went in the first round are among those that go
        goes = cheapest(cost.masked_fill(first.went, -torch.inf), going)
        return selected(goes, torch.where(first.went, nearest, second), left, keeps_norm=True)


@dataclass(frozen=True, eq=False)
class _Joined:
    """What the first round leaves: the distances, the sizes, and who is gone; the latter two ``(batch, tokens)``."""

    distances: Distances
    sizes: Tensor
    went: Tensor


def _mutual(nearest: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mark the heavier and the lighter ones of all pairs that are nearest to each other, ``(batch, tokens)`` bool."""
    own = torch.arange(nearest.shape[1], device=nearest.device).expand_as(nearest)
    mutual = nearest.gather(1, nearest) == own
    heavier = own < nearest
    if sizes is not None:
        other = sizes.gather(1, nearest)
        heavier = (sizes > other) | ((sizes == other) & heavier)
    return mutual & heavier, mutual & ~heavier


def _join_pairs(distances: Distances, sizes: Tensor | None, cost: Tensor, nearest: Tensor, most: int) -> _Joined:
    """Join the cheapest pairs that are nearest to each other, at most so many."""
    heavier, lighter = _mutual(nearest, sizes)
    price = cost.masked_fill(~lighter, FAR).masked_fill(heavier, torch.inf)
    leaves = lighter
    if sizes is not None:
        leaves = lighter | (sizes == 0)  # padding goes first, whoever is nearest to whom
        price = price.masked_fill(sizes == 0, -torch.inf)
    goes = price.topk(most, dim=1, largest=False, sorted=False).indices
    # where there are fewer pairs, other tokens are among these, which move nowhere
    target = torch.where(lighter.gather(1, goes), nearest.gather(1, goes), goes)
    weights = torch.ones_like(cost) if sizes is None else sizes
    own, got = weights.gather(1, target), torch.where(target == goes, 0.0, weights.gather(1, goes))
    share = got / (own + got).clamp_min(torch.finfo(got.dtype).tiny)
    return _Joined(
        distances.joined(target, goes, share),
        weights.scatter(1, target, own + got),
        torch.zeros_like(leaves).scatter(1, goes, leaves.gather(1, goes)),
    )
