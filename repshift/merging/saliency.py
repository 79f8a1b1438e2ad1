"""Bipartite matching in which a token counts by its saliency, between attention and MLP (vid-TLDR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from repshift.errors import ScheduleError
from repshift.merging.groups import cheapest, directions
from repshift.merging.merger import Merger
from repshift.pruners import Candidates
from repshift.selection import Selection


@dataclass(frozen=True)
class SaliencyPruner(Merger):
    """Lets every second token go into its most similar one among the others, weighted by how salient it is.

    Tokens at even places may go, those at odd places take them in; the most similar pairs merge, by the cosine of the
    tokens. What goes brings its saliency times its size along: scores below their mean become 0, those above it
    ``(score - mean) / max(score - mean)``. What is left is the size-weighted mean, and sizes add up. The tokens that
    stay at even places come first, then those at odd places, so that other pairs can meet at the next cut. Prefix
    tokens take no part.

    Merges between the attention and the MLP of a block, so of the block's changes only that by attention is known, by
    which tokens are scored (``operation="attn"``).

    Attributes:
        size_attention: See :class:`repshift.merging.merger.Merger`.

    Source: Choi et al. 2024, "vid-TLDR: Training Free Token merging for Light-weight Video Transformer" (arXiv
    2403.13347); there the saliency is how sharp a token's attention is, here it is the score.
    """

    before_mlp: ClassVar[bool] = True

    def merge(self, candidates: Candidates, left: int) -> Selection:
        """Merge the most similar pairs; see :class:`repshift.merging.merger.Merger`.

        Raises:
            ScheduleError: If more than half of the tokens are to go.
        """
        count, going = candidates.count, candidates.count - left
        if going > count // 2:
            raise ScheduleError(
                f"{going} of the {count} tokens in {candidates.block} are to go, and at most half of them "
                f"({count // 2}) can at once, each into one that stays. Drop less there, or at several blocks."
            )
        tokens, sizes = directions(candidates.tokens), candidates.sizes
        similarity, match = (tokens[:, ::2] @ tokens[:, 1::2].mT).max(dim=2)
        if sizes is not None:
            similarity = similarity.masked_fill(sizes[:, ::2] == 0, torch.inf)  # padding goes first
        return _joined(cheapest(-similarity, going), match, left, _sharpened(candidates.scores, sizes))


def _sharpened(scores: Tensor, sizes: Tensor | None) -> Tensor:
    """Return saliencies ``(batch, tokens)`` float32 in 0..1; padding has none and does not count in their mean."""
    present = torch.ones_like(scores, dtype=torch.bool) if sizes is None else sizes > 0
    scores = scores.detach().float().masked_fill(~present, 0.0)
    mean = scores.sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp_min(1)
    above = (scores - mean).clamp_min(0).masked_fill(~present, 0.0)
    return above / above.amax(1, keepdim=True).clamp_min(torch.finfo(above.dtype).tiny)


def _joined(goes: Tensor, match: Tensor, left: int, saliency: Tensor) -> Selection:
    """Let some of the tokens at even places go into those at odd places.

    Args:
        goes: ``(batch, even places)`` bool: as many in every image.
        match: ``(batch, even places)`` int64, into which of the odd places.
        left: How many stay.
        saliency: ``(batch, tokens)``.
    """
    batch, count = saliency.shape
    places = torch.arange(count, device=goes.device)
    even, odd = places[::2], places[1::2].expand(batch, -1)
    first = left - odd.shape[1]  # how many at even places stay, in front of the others
    staying = torch.where(goes, count, even).sort(dim=1).values[:, :first]
    of_even = torch.where(goes, match + first, (~goes).cumsum(1) - 1)
    of_odd = torch.arange(first, left, device=goes.device).expand(batch, -1)
    joins = torch.zeros_like(saliency, dtype=torch.int64)
    joins = joins.index_copy(1, even, of_even).index_copy(1, places[1::2], of_odd)
    weights = torch.ones_like(saliency)
    weights = weights.index_copy(1, even, torch.where(goes, saliency[:, ::2], 1.0))
    return Selection(torch.cat([staying, odd], dim=1), joins=joins, weights=weights)
