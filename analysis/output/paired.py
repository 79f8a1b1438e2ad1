"""Comparing two models on the same images."""

from __future__ import annotations

from torch import Tensor


def mean_and_error(values: Tensor) -> tuple[float, float | None]:
    """Average what was measured of each image, or its difference between two models.

    Args:
        values: ``(images,)``.

    Returns:
        The mean, and its standard error over images; of one image nothing is known of that.
    """
    error = float(values.double().std()) / len(values) ** 0.5 if len(values) > 1 else None
    return float(values.double().mean()), error


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


MEANING = "s.e.: standard error of the difference, image by image; less than two of them apart is a tie."


def verdict(points: float, error: float, other: str) -> str:
    """Say in words how one model compares with another, for better or worse.

    Args:
        points: How many points of accuracy it is better.
        error: The standard error of this paired difference; within two of them, or without any, nothing is claimed.
        other: What it is compared with.
    """
    unsure = error == 0 or abs(points) <= 2 * error
    verb = "ties with" if unsure else "beats" if points > 0 else "LOSES to"
    return f"{verb} {other} ({points:+.2f} points, s.e. {error:.2f})"
