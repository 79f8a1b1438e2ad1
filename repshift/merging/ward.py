"""Exact agglomeration under Ward's cost: slow, and the reference for :mod:`repshift.merging.mutual`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repshift.merging.groups import Distances, directions, selected
from repshift.merging.merger import Merger
from repshift.pruners import Candidates
from repshift.selection import Selection


@dataclass(frozen=True)
class WardPruner(Merger):
    """Joins the cheapest pair of all, again and again, until enough tokens are gone.

    The cost is that of :class:`repshift.merging.mutual.MutualNearestPruner`; groups are compared by the means of their
    directions. The lighter one of a pair goes into the heavier (of equal ones, the second into the first).

    Attributes:
        size_attention: See :class:`repshift.merging.merger.Merger`.

    Source: Ward 1963, "Hierarchical grouping to optimize an objective function".
    """

    chooses_itself: ClassVar[bool] = True

    def merge(self, candidates: Candidates, left: int) -> Selection:
        """Join the cheapest pairs; see :class:`repshift.merging.merger.Merger`."""
        tokens = directions(candidates.tokens)
        sizes = torch.ones_like(tokens[..., 0]) if candidates.sizes is None else candidates.sizes
        goes, into = _agglomerate(tokens, sizes, candidates.count - left)
        return selected(goes, into, left, keeps_norm=True)


def _agglomerate(tokens: Tensor, sizes: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    batch, count, _ = tokens.shape
    rows = torch.arange(batch, device=tokens.device)
    costs, sizes = Distances.between(tokens).costs(sizes), sizes.clone()
    goes = torch.zeros(batch, count, dtype=torch.bool, device=tokens.device)
    into = torch.arange(count, device=tokens.device).repeat(batch, 1)
    nobody = costs.new_full((), torch.inf)  # a number would be brought to the device each time that it is assigned
    for _ in range(steps):
        # the lowest of each row first, which is found much faster than its place
        first = costs.amin(2).argmin(1)
        second = costs[rows, first].argmin(1)
        swapped = sizes[rows, first] < sizes[rows, second]
        swapped |= (sizes[rows, first] == sizes[rows, second]) & (first > second)
        heavy, light = torch.where(swapped, second, first), torch.where(swapped, first, second)
        goes.scatter_(1, light.unsqueeze(1), True)
        into[rows, light] = heavy
        price = _joined_costs(costs, sizes, heavy, light)
        sizes[rows, heavy] += sizes[rows, light]
        costs[rows, heavy], costs[rows, :, heavy] = price, price
        costs[rows, light], costs[rows, :, light] = nobody, nobody
    return goes, into


def _joined_costs(costs: Tensor, sizes: Tensor, heavy: Tensor, light: Tensor) -> Tensor:
    """Say what it costs every token to join the group of two others, ``(batch, tokens)``.

    Source: Lance and Williams 1967, "A general theory of classificatory sorting strategies", for Ward's cost.
    """
    rows = torch.arange(costs.shape[0], device=costs.device)
    own, other = sizes[rows, heavy].unsqueeze(1), sizes[rows, light].unsqueeze(1)
    to_heavy, to_light, between = costs[rows, heavy], costs[rows, light], costs[rows, light, heavy].unsqueeze(1)
    joined = (own + sizes) * to_heavy + (other + sizes) * to_light - sizes * between
    joined = joined / (own + other + sizes).clamp_min(torch.finfo(joined.dtype).tiny)
    # padding weighs nothing, joins for nothing, and nothing joins it
    return torch.where(other == 0, to_heavy, joined).masked_fill((sizes == 0) | to_heavy.isinf(), torch.inf)
