"""How far two ways to score agree on the order of the tokens: Spearman's rank correlation, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from repshift.errors import DataError

# By setting and layer, each (images, tokens)
Scores = Mapping[str, Mapping[str, Tensor]]


def average_ranks(values: Tensor) -> Tensor:
    """Rank values along the last dimension, from 1 for the smallest; tied ones share the mean of their ranks.

    Args:
        values: ``(..., tokens)``.

    Returns:
        The same shape, float64.
    """
    values = values.contiguous()
    ascending = values.sort(-1).values
    below = torch.searchsorted(ascending, values, right=False)
    not_above = torch.searchsorted(ascending, values, right=True)
    return (below + not_above + 1).double() / 2


def spearman(scores: Tensor) -> Tensor:
    """Correlate the ranks of all pairs of scores, for each image by itself.

    Args:
        scores: ``(settings, images, tokens)``.

    Returns:
        ``(settings, settings, images)`` float64 in -1..1; NaN where a score ties all tokens of an image and so ranks
        none.

    Source: Spearman 1904; with average ranks it is Pearson's correlation of the ranks.
    """
    ranks = average_ranks(scores)
    centred = ranks - ranks.mean(-1, keepdim=True)
    lengths = centred.norm(dim=-1, keepdim=True)
    directions = torch.where(lengths > 0, centred / lengths, torch.nan)
    return torch.einsum("aip,bip->abi", directions, directions).clamp(-1, 1)


class RankAgreement:
    """Mean rank correlation of every pair of settings, layer by layer, over as many images as one likes.

    Args:
        settings: Names of the ways to score, in the order of rows and columns.
    """

    def __init__(self, settings: Sequence[str]) -> None:
        self.settings = list(settings)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def update(self, scores: Scores) -> None:
        """Take in a batch; a setting may lack some layers.

        Raises:
            DataError: If the scores of a layer are not of the same images and tokens; nothing of that layer has been
                taken in then.
        """
        for layer in dict.fromkeys(layer for of_setting in scores.values() for layer in of_setting):
            having = [place for place, name in enumerate(self.settings) if layer in scores.get(name, {})]
            compared = [scores[self.settings[place]][layer].float() for place in having]
            shapes = {tuple(values.shape) for values in compared}
            if len(shapes) > 1:
                raise DataError(
                    f"Scores of {layer} have the shapes {', '.join(map(str, sorted(shapes)))} (images, tokens). Give "
                    "scores of the same tokens."
                )
            values = torch.stack(compared)
            correlations = spearman(values.cpu())
            known = ~correlations.isnan()
            rows, columns = torch.tensor(having).unsqueeze(1), torch.tensor(having)
            self._take_in(layer)
            self.sums[layer][rows, columns] += correlations.nan_to_num().sum(-1)
            self.counts[layer][rows, columns] += known.sum(-1)

    def merge(self, other: RankAgreement) -> None:
        """Take in what another process gave for the same settings."""
        for layer in other.sums:
            self._take_in(layer)
            self.sums[layer] += other.sums[layer]
            self.counts[layer] += other.counts[layer]

    def _take_in(self, layer: str) -> None:
        size = len(self.settings)
        self.sums.setdefault(layer, torch.zeros(size, size, dtype=torch.float64))
        self.counts.setdefault(layer, torch.zeros(size, size, dtype=torch.int64))

    @property
    def layers(self) -> list[str]:
        """All layers, in the order in which they came."""
        return list(self.sums)

    def matrix(self, layer: str) -> Tensor:
        """Return the mean correlations at a layer, ``(settings, settings)`` float64; NaN where nothing was ranked."""
        return self.sums[layer] / self.counts[layer]
