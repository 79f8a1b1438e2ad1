"""Comparing two models on the same images."""

from __future__ import annotations

from torch import Tensor


def gain(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Compare two models on the same images.

    Args:
        ours: Which images the one classifies rightly, ``(images,)`` bool.
        theirs: The same of the other.

    Returns:
        How many points of accuracy the first is better, and the standard error of this paired difference.
    """
    difference = 100 * (ours.float() - theirs.float())
    return float(difference.mean()), float(difference.std(unbiased=False)) / len(difference) ** 0.5
