"""Importance by attention: the scores that the representation shift replaces, as baselines.

They need the attention map, which fused kernels never hold, so it is computed a second time, explicitly, from the
queries and keys of the one block that drops tokens. Every other score leaves attention as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from repshift.errors import RepresentationError


@dataclass(frozen=True)
class Heads:
    """Where the queries and keys of one block can be watched, by module names.

    Attributes:
        queries: Returns the queries ``(batch, heads, tokens, channels)``, normalised and before scaling.
        keys: Returns the keys of the same shape, after the queries.
        scale: What their products are multiplied by before the softmax.
        prefix: How many prefix tokens stand before those that can be dropped.
        class_token: Whether the first of these is a class token.
        incomplete: Why attention cannot be computed from them, though tokens can be compared by such keys: they are
            turned by their places later on, say. Empty if it can.
    """

    queries: str
    keys: str
    scale: float
    prefix: int
    class_token: bool
    incomplete: str = ""

    def within(self, prefix: str) -> Heads:
        """Return the same of a model that is a part of another, whose modules have names behind its own."""
        return replace(self, queries=f"{prefix}.{self.queries}", keys=f"{prefix}.{self.keys}")


@dataclass(frozen=True)
class AttentionScore:
    """How much attention each token receives, averaged over the heads.

    Attributes:
        rows: Whose attention counts: that of the ``"class"`` token, or the ``"mean"`` of all tokens.

    Source: ``softmax(q_cls K^T / sqrt(d))`` of EViT (Liang et al. 2022, arXiv 2202.07800); the mean of all rows where
    there is no class token; arXiv 2508.00367, section 4.
    """

    rows: Literal["class", "mean"]

    def __call__(self, queries: Tensor, keys: Tensor, heads: Heads) -> Tensor:
        """Compute the attention map, or of it only the class token's row, and read the scores.

        Args:
            queries: ``(batch, heads, tokens, channels)``.
            keys: The same shape.
            heads: Scale and prefix.

        Returns:
            ``(batch, tokens without the prefix)`` float32, at least 0; with the prefix they would add up to 1.

        Raises:
            RepresentationError: If queries and keys are none.
        """
        if queries.ndim != 4 or queries.shape != keys.shape:
            raise RepresentationError(
                f"Attention is read from queries and keys (batch, heads, tokens, channels), got {tuple(queries.shape)} "
                f"and {tuple(keys.shape)}. Choose another score."
            )
        asking = queries[:, :, :1] if self.rows == "class" else queries
        logits = (asking * heads.scale) @ keys.transpose(-2, -1)
        return logits.softmax(-1, dtype=torch.float32).mean((1, 2))[:, heads.prefix :]


cls_attention = AttentionScore("class")
mean_attention = AttentionScore("mean")
