"""Which frames of a video are looked at."""

from __future__ import annotations

import itertools

import numpy as np

from repshift.errors import DataError


def frame_indices(length: int, frames: int) -> list[int]:
    """Choose frames evenly: the middle one of each of so many equal parts.

    Args:
        length: How many frames the video has.
        frames: How many are wanted. Of a shorter video all are taken, and the last one again.

    Returns:
        ``frames`` numbers, counted from zero, in order.

    Raises:
        DataError: If one of the two is below 1.

    Example:
        >>> frame_indices(100, 4), frame_indices(2, 4)
        ([12, 37, 62, 87], [0, 1, 1, 1])

    Source: Unmasked Teacher (arXiv 2303.16058), sampling ``middle`` of its code.
    """
    if frames < 1 or length < 1:
        raise DataError(f"{frames} frames of a video of {length} cannot be. Give at least 1 of each (--frames).")
    edges = np.linspace(0, length, min(frames, length) + 1).astype(int).tolist()
    middle = [(start + end - 1) // 2 for start, end in itertools.pairwise(edges)]
    return middle + middle[-1:] * (frames - len(middle))


def limited_length(length: int, rate: float, seconds: float | None) -> int:
    """Return how many frames of a video count if only its beginning does.

    Args:
        length: How many frames it has.
        rate: Frames a second, on average.
        seconds: How much of it counts; ``None`` for all.

    Source: Unmasked Teacher's DiDeMo: ``int(30 * rate)`` frames of what is longer than 30 seconds.
    """
    if seconds is None or length <= seconds * rate:
        return length
    return max(int(seconds * rate), 1)
