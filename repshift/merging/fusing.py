"""Merging what a score would drop: into the most similar token that stays, or all into one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from repshift.merging.merger import Merger
from repshift.pruners import Candidates
from repshift.restoring import nearest_kept
from repshift.selection import Selection


@dataclass(frozen=True)
class NearestPruner(Merger):
    """Lets the score decide who goes; each goes into the token that stays and is most similar, by their angle.

    Attributes:
        size_attention: See :class:`repshift.merging.merger.Merger`.
    """

    def merge(self, candidates: Candidates, left: int) -> Selection:
        """Merge the tokens with the lowest scores; see :class:`repshift.merging.merger.Merger`."""
        kept = candidates.highest(left).kept
        return Selection(kept, joins=nearest_kept(candidates.tokens, kept))


@dataclass(frozen=True)
class FusePruner(Merger):
    """Lets the score decide who stays; all others become one token, weighted by their scores.

    The one token stands where the highest of them stood, and is counted among those that are left.

    Attributes:
        size_attention: See :class:`repshift.merging.merger.Merger`.

    Source: Liang et al. 2022, "Not All Patches are What You Need" (EViT, arXiv 2202.07800), section 3.2.
    """

    size_attention: bool = field(default=False, kw_only=True)

    def merge(self, candidates: Candidates, left: int) -> Selection:
        """Fuse the tokens with the lowest scores; see :class:`repshift.merging.merger.Merger`."""
        scores = candidates.scores
        ranked = scores.sort(dim=1, descending=True).indices
        kept = ranked[:, :left].sort(dim=1).values
        place = torch.zeros_like(ranked).scatter(1, kept, torch.arange(left, device=kept.device).expand_as(kept))
        seat = place.gather(1, ranked[:, left - 1 : left])
        joins = torch.where(_marked(kept, place), place, seat)
        return Selection(kept, joins=joins, weights=_weights(scores, joins == seat))


def _marked(kept: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool).scatter(1, kept, True)


def _weights(scores: Tensor, fused: Tensor) -> Tensor:
    """Weigh the fused tokens by their scores, over their mean; the others count once."""
    # where the lowest stay, scores are negative; padding has none
    own = scores.detach().float().abs().masked_fill(~fused | scores.isinf(), 0.0)
    mean = own.sum(1, keepdim=True) / fused.sum(1, keepdim=True)
    return torch.where(fused & (mean > 0), own / mean.clamp_min(torch.finfo(own.dtype).tiny), 1.0)
