"""Distributions of the shift over a data set, layer by layer: streamed, and put together from several processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from repshift.errors import DataError, UnknownNameError
from repshift.registry import suggest

BINS = 32  # for each doubling of the value
OCTAVES = (-40, 40)  # values below 2^-40 or from 2^40 on fall into one bin each
QUANTILE_ERROR = 2 ** (1 / (2 * BINS)) - 1  # relative, between these two: half a bin, 1.1 %


def _no_values() -> NDArray[np.int64]:
    return np.zeros((OCTAVES[1] - OCTAVES[0]) * BINS + 2, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Distribution:
    """What many values come to, in a few numbers that do not grow with their count.

    Attributes:
        count: How many values.
        mean: Their mean.
        squares: Sum of their squared distances from the mean.
        low: The smallest; infinity if there is none.
        high: The largest; minus infinity if there is none.
        histogram: Counts in bins of equal width on a logarithmic scale, int64. The first one has what is below the
            scale, zeros above all, the last one what is above it.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    histogram: NDArray[np.int64] = field(default_factory=_no_values)

    @classmethod
    def of(cls, values: Tensor) -> Distribution:
        """Take in values of any shape and dtype; all sums are made in float64.

        Raises:
            DataError: If a value is negative or not finite.
        """
        numbers = values.detach().double().cpu().numpy().ravel()
        if not numbers.size:
            return cls()
        if not np.isfinite(numbers).all() or numbers.min() < 0:
            raise DataError(
                f"Statistics are made of finite values from 0 on, got {numbers.min()} to {numbers.max()}. "
                "Check the weights and the images, or run in float32."
            )
        with np.errstate(divide="ignore"):
            places = np.floor((np.log2(numbers) - OCTAVES[0]) * BINS) + 1
        empty = _no_values()
        histogram = np.bincount(np.clip(places, 0, len(empty) - 1).astype(np.int64), minlength=len(empty))
        mean = float(numbers.mean())
        squares = float(np.square(numbers - mean).sum())
        return cls(numbers.size, mean, squares, float(numbers.min()), float(numbers.max()), histogram)

    def __add__(self, other: Distribution) -> Distribution:
        """Put two distributions together, as if all values had come at once.

        Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1.
        """
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        return Distribution(
            count,
            # weighted, which is the same from both sides
            (self.count * self.mean + other.count * other.mean) / count,
            self.squares + other.squares + apart**2 * self.count * other.count / count,
            min(self.low, other.low),
            max(self.high, other.high),
            self.histogram + other.histogram,
        )

    @property
    def deviation(self) -> float:
        """The standard deviation, of these values and not estimated for others; NaN without values."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    def quantile(self, share: float) -> float:
        """Return the smallest value that at least this share of the values do not exceed; NaN without values.

        It is off by :data:`QUANTILE_ERROR` of itself at most, but for values below 2^-40, which are all taken for the
        smallest one, and from 2^40 on, which are taken for the largest. Smallest and largest are exact.
        """
        if not 0 <= share <= 1:
            raise DataError(f"A quantile is of a share from 0 to 1, got {share}.")
        if not self.count:
            return math.nan
        rank = max(
            1, math.ceil(share * self.count * (1 - 1e-12))
        )  # products such as 0.7 * 10 come out a little too large
        place = int(np.searchsorted(np.cumsum(self.histogram), rank))
        if rank == 1 or place == 0:
            return self.low
        if rank == self.count or place == len(self.histogram) - 1:
            return self.high
        middle = math.pow(2.0, OCTAVES[0] + (place - 0.5) / BINS)
        return min(max(middle, self.low), self.high)

    def summary(self, shares: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> dict[str, Any]:
        """Return count, mean, standard deviation, extremes and quantiles, ``None`` for what no values have."""
        if not self.count:
            return {"count": 0, "mean": None, "std": None, "min": None, "max": None, "quantiles": None}
        quantiles = {f"{share:g}": self.quantile(share) for share in shares}
        ends = {"min": self.low, "max": self.high}
        return {"count": self.count, "mean": self.mean, "std": self.deviation, **ends, "quantiles": quantiles}

    def state(self) -> dict[str, Any]:
        """Return everything as plain numbers, which :meth:`from_state` takes; of the histogram the filled bins."""
        filled = np.flatnonzero(self.histogram)
        return {
            "count": self.count,
            "mean": self.mean,
            "squares": self.squares,
            "ends": [self.low, self.high] if self.count else None,
            "histogram": {str(place): int(self.histogram[place]) for place in filled},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Distribution:
        """Make a distribution of what :meth:`state` returned, through JSON or not.

        Raises:
            DataError: If it is damaged.
        """
        try:
            histogram = _no_values()
            for place, count in state["histogram"].items():
                histogram[int(place)] = count
            low, high = state["ends"] or (math.inf, -math.inf)
            made = cls(int(state["count"]), float(state["mean"]), float(state["squares"]), low, high, histogram)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(
                f"This is no state of a distribution ({type(error).__name__}: {error}). Give what state() returned."
            ) from error
        if int(histogram.sum()) != made.count or (histogram < 0).any():
            raise DataError(
                f"This state of a distribution is damaged: {int(histogram.sum())} values are in its histogram, "
                f"{made.count} in all. Give what state() returned."
            )
        return made


class ShiftStatistics:
    """Distributions of the shift of each layer, of as many images as one likes.

    The order of the batches and how they were divided among processes change nothing but the last digits of mean and
    standard deviation.

    Args:
        layers: What is known already.
    """

    def __init__(self, layers: Mapping[str, Distribution] | None = None) -> None:
        self.layers: dict[str, Distribution] = dict(layers or {})

    def update(self, shifts: Mapping[str, Tensor]) -> None:
        """Take in a batch: values of any shape by layer, such as ``tracker.shifts``.

        Raises:
            DataError: If a value is negative or not finite; nothing has been taken in then.
        """
        arrived = {}
        for layer, values in shifts.items():
            try:
                arrived[layer] = Distribution.of(values)
            except DataError as error:
                raise DataError(f"{layer}: {error}") from error
        self.merge(ShiftStatistics(arrived))

    def merge(self, other: ShiftStatistics) -> None:
        """Take in what another process or another part of the data gave; the other stays as it is."""
        for layer, distribution in other.layers.items():
            self.layers[layer] = self.layers.get(layer, Distribution()) + distribution

    def __getitem__(self, layer: str) -> Distribution:
        if layer not in self.layers:
            raise UnknownNameError(f"There are no statistics of {layer!r}. {suggest(layer, self.layers)}")
        return self.layers[layer]

    def state(self) -> dict[str, Any]:
        """Return everything as plain numbers, for JSON."""
        return {layer: distribution.state() for layer, distribution in self.layers.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ShiftStatistics:
        """Make statistics of what :meth:`state` returned.

        Raises:
            DataError: If it is damaged.
        """
        return cls({layer: Distribution.from_state(part) for layer, part in state.items()})
