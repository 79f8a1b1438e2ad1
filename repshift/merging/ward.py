"""Exact agglomeration under Ward's cost: slow, and the reference for :mod:`repshift.merging.mutual`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repshift.merging.groups import directions, selected, ward_costs
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
    products, costs = tokens @ tokens.mT, ward_costs(tokens, sizes)
    sizes = sizes.clone()
    goes = torch.zeros(batch, count, dtype=torch.bool, device=tokens.device)
    into = torch.arange(count, device=tokens.device).repeat(batch, 1)
    for _ in range(steps):
        cheapest = costs.flatten(1).argmin(1)
        first, second = cheapest.div(count, rounding_mode="floor"), cheapest % count
        swapped = sizes[rows, first] < sizes[rows, second]
        swapped |= (sizes[rows, first] == sizes[rows, second]) & (first > second)
        heavy, light = torch.where(swapped, second, first), torch.where(swapped, first, second)
        goes[rows, light], into[rows, light] = True, heavy
        total = sizes[rows, heavy] + sizes[rows, light]
        share = (sizes[rows, light] / total.clamp_min(torch.finfo(total.dtype).tiny)).unsqueeze(1)
        # inner products with a mean are the means of the inner products
        joined = torch.lerp(products[rows, heavy], products[rows, light], share)
        own = torch.lerp(joined[rows, heavy], joined[rows, light], share.squeeze(1))
        joined[rows, heavy] = own
        products[rows, heavy], products[rows, :, heavy] = joined, joined
        sizes[rows, heavy] = total
        squares = products.diagonal(dim1=1, dim2=2)
        apart = (squares + own.unsqueeze(1)) / 2 - joined
        price = apart / (1 / sizes + (1 / total).unsqueeze(1))
        free = ~goes & (sizes > 0)
        price = torch.where(free, price, torch.inf)
        price[rows, heavy] = torch.inf
        costs[rows, heavy], costs[rows, :, heavy] = price, price
        costs[rows, light], costs[rows, :, light] = torch.inf, torch.inf
    return goes, into
