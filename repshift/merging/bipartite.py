"""Bipartite soft matching: every second token may go into its most similar one among the others (ToMe)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift.errors import UnknownNameError, UnsupportedModelError
from repshift.merging.groups import cheapest, directions, followed, selected
from repshift.merging.merger import Merger
from repshift.pruners import Candidates
from repshift.selection import Selection

METRICS = ("keys", "tokens")


@dataclass(frozen=True)
class BipartitePruner(Merger):
    """Divides the tokens into two sets, alternately, and lets the most similar pairs between them become one.

    Every token of the first set is matched with the most similar one of the second, by the cosine of the keys of the
    block's attention, averaged over heads; the most similar of these pairs merge into means weighted by sizes. Prefix
    tokens count in the alternation and never merge. At most half of the tokens go at once; of a larger drop, the rest
    goes in a second pass.

    Attributes:
        metric: ``keys``, as published, or ``tokens``.
        size_attention: See :class:`repshift.merging.merger.Merger`.

    Source: Bolya et al. 2023, "Token Merging: Your ViT But Faster" (arXiv 2210.09461), sections 3.1 and 3.2. Published
    between attention and MLP of every block; here behind the blocks that the schedule names.
    """

    metric: Literal["keys", "tokens"] = "keys"
    chooses_itself: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in METRICS:
            raise UnknownNameError(f"Tokens are compared by {' or '.join(METRICS)}, got metric={self.metric!r}.")

    @property
    def wants_keys(self) -> bool:
        """Whether the keys of the block's attention are to be kept for it."""
        return self.metric == "keys"

    def merge(self, candidates: Candidates, left: int) -> Selection:
        """Merge the most similar pairs; see :class:`repshift.merging.merger.Merger`.

        Raises:
            UnsupportedModelError: If there are no keys.
        """
        features = self._features(candidates)
        first = candidates.prefix % 2  # which set the first token belongs to
        selection = _matched(features, max(left, candidates.count - _most(candidates.count, first)), first)
        while (count := selection.kept.shape[1]) > left:
            means = F.normalize(selection.mean(features, candidates.sizes), dim=-1)
            selection = followed(selection, _matched(means, max(left, count - _most(count, first)), first))
        return selection

    def _features(self, candidates: Candidates) -> Tensor:
        if self.metric == "tokens":
            return directions(candidates.tokens)
        if candidates.keys is None:
            raise UnsupportedModelError(
                f"{candidates.block} keeps no keys of its attention. Give metric='tokens', or pruner='mnn'."
            )
        return directions(candidates.keys)


def _most(count: int, first: int) -> int:
    """Return how many tokens the first set has, those that may go: none, if the other one is empty."""
    sources = (count + 1 - first) // 2
    return sources if sources < count else sources - 1


def _matched(features: Tensor, left: int, first: int) -> Selection:
    batch, count, _ = features.shape
    own = torch.arange(count, device=features.device)
    sources, targets = own[first::2], own[1 - first :: 2]
    similarity, match = (features[:, first::2] @ features[:, 1 - first :: 2].mT).max(dim=2)
    going = cheapest(-similarity, count - left)
    goes = torch.zeros(batch, count, dtype=torch.bool, device=features.device)
    goes = goes.index_copy(1, sources, going)
    into = own.expand(batch, -1).index_copy(1, sources, targets[match])
    return selected(goes, into, left)
