"""Bringing tokens that were dropped or merged back to their places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift.positions import pick
from repshift.stream import PastCut


def restored(tokens: Tensor, cuts: Sequence[PastCut]) -> Tensor:
    """Undo cuts, the last one first.

    Args:
        tokens: ``(batch, kept, channels)``, those that are left.
        cuts: In the order in which they were made.

    Returns:
        ``(batch, tokens, channels)`` as many as there were before the first cut.
    """
    for cut in reversed(cuts):
        tokens = cut.selection.back(tokens, cut.before)
    return tokens


def nearest_kept(tokens: Tensor, kept: Tensor, there: Tensor | None = None) -> Tensor:
    """Find for every token the kept one that it resembles most, by the cosine of their angle.

    Args:
        tokens: ``(batch, tokens, channels)``.
        kept: ``(batch, kept)`` int64 positions.
        there: ``(batch, kept)`` bool, which of them are tokens and no padding; ``None`` for all.

    Returns:
        ``(batch, tokens)`` int64 places among the kept ones; a kept token is its own nearest.
    """
    directions = F.normalize(tokens.detach().float(), dim=-1)
    alike = directions @ pick(directions, kept).mT
    own = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    if there is None:
        return alike.argmax(-1).scatter(1, kept, own)
    nearest = alike.masked_fill(~there.unsqueeze(1), -torch.inf).argmax(-1)
    return nearest.scatter(1, kept, torch.where(there, own, nearest.gather(1, kept)))
