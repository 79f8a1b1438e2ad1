"""What a model makes of images whose pixels go in the order of a score: deletion, insertion, remove and debias.

Each asks whether a score finds what the model's answer rests on, by the answer and not by where an object is. The
class is the one that the model gives the whole image, so no labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.functional import gaussian_blur

from repshift.analysis.statistics.imputation import impute

SHARES = (0.0, 0.03, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of the pixels; denser where most happens
BLUR = 1 / 8  # standard deviation of the blur, in sides of the image: less would leave a digit legible


@dataclass(frozen=True)
class Kind:
    """One way to take pixels away.

    Attributes:
        name: In tables.
        title: In figures.
        replace: Makes images without the marked pixels.
        most_first: Whether the highest scores are changed first, or last.
        reversed: Whether pixels are put back instead, so that a share is of what is shown.
        measure: ``probability`` of the class, or whether it is still the ``same``.
        higher_is_better: What a good score does to the curve.
    """

    name: str
    title: str
    replace: Callable[[Tensor, Tensor], Tensor]
    most_first: bool
    measure: str
    higher_is_better: bool
    reversed: bool = False


def _grey(images: Tensor, missing: Tensor) -> Tensor:
    return images.masked_fill(missing.unsqueeze(1), 0.0)  # the mean of normalised images


def _blurred(images: Tensor, missing: Tensor) -> Tensor:
    deviation = BLUR * min(images.shape[2:])
    width = 2 * min(round(2 * deviation), min(images.shape[2:]) - 1) + 1
    return torch.where(missing.unsqueeze(1), gaussian_blur(images, [width, width], [deviation, deviation]), images)


# Source: RISE, Petsiuk et al. 2018, arXiv 1806.07421, and ROAD, Rong et al. 2022, arXiv 2202.00449
KINDS = (
    Kind("deletion", "deletion: highest scores turn grey", _grey, True, "probability", False),
    Kind("insertion", "insertion: highest scores appear", _blurred, True, "probability", True, reversed=True),
    Kind("road_most", "ROAD: highest scores filled in", impute, True, "same", False),
    Kind("road_least", "ROAD: lowest scores filled in", impute, False, "same", True),
)


def places(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Say where each pixel stands in the order of the scores.

    Args:
        maps: ``(images, rows, columns)``; every pixel has the score of its token.
        size: Rows and columns of the images.

    Returns:
        ``(images, *size)`` float32: which share of the tokens is more important, 0 for the highest. Tied tokens are in
        their own order.
    """
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1).reshape(maps.shape).float() / order.shape[1]
    return interpolate(ranks.unsqueeze(1), size=size, mode="nearest-exact").squeeze(1)


def changed(kind: Kind, share: float, places_of_pixels: Tensor) -> Tensor:
    """Mark the pixels that are taken away when a share of them is done; shape as the places, bool."""
    if kind.reversed:
        return places_of_pixels >= share
    return places_of_pixels < share if kind.most_first else places_of_pixels >= 1 - share


def area(values: Sequence[float], shares: Sequence[float] = SHARES) -> float:
    """Return the area under a curve, by trapezoids."""
    return float(torch.trapezoid(torch.tensor(values, dtype=torch.float64), torch.tensor(shares, dtype=torch.float64)))


class Removal:
    """Curves by kind, setting and layer, over as many images as one likes."""

    def __init__(self, kinds: Sequence[Kind] = KINDS, shares: Sequence[float] = SHARES) -> None:
        self.kinds, self.shares = tuple(kinds), tuple(shares)
        self.sums: dict[tuple[str, str, str], Tensor] = {}
        self.images = 0

    def update(
        self,
        model: nn.Module,
        inputs: Tensor,
        maps: Mapping[str, Mapping[str, Tensor]],
        step: Callable[[], object] = lambda: None,
    ) -> None:
        """Take in a batch.

        Args:
            model: In evaluation mode.
            inputs: ``(images, channels, rows, columns)``, normalised.
            maps: ``(images, rows, columns)`` by setting and layer.
            step: Called for every curve.
        """
        with torch.inference_mode():
            classes = model(inputs).argmax(1)
            ends: dict[tuple[str, bool], Tensor] = {}
            for setting, layers in maps.items():
                for layer in layers:
                    where = places(layers[layer], (inputs.shape[2], inputs.shape[3]))
                    for kind in self.kinds:
                        values = self._curve(model, inputs, classes, where, kind, ends)
                        key = (kind.name, setting, layer)
                        self.sums[key] = self.sums.get(key, torch.zeros(len(self.shares), dtype=torch.float64)) + values
                        step()
        self.images += len(inputs)

    def merge(self, other: Removal) -> None:
        """Take in what another process gave for the same kinds and shares."""
        for key, values in other.sums.items():
            self.sums[key] = self.sums.get(key, torch.zeros_like(values)) + values
        self.images += other.images

    def curve(self, kind: str, setting: str, layer: str) -> list[float]:
        """Return the mean over the images at each share."""
        means: list[float] = (self.sums[kind, setting, layer] / self.images).tolist()
        return means

    def _curve(
        self,
        model: nn.Module,
        inputs: Tensor,
        classes: Tensor,
        where: Tensor,
        kind: Kind,
        ends: dict[tuple[str, bool], Tensor],
    ) -> Tensor:
        """Sum what the model says over the images, at each share; images without or with all pixels are alike."""
        values = []
        for share in self.shares:
            missing = changed(kind, share, where)
            at_end = share in (0.0, 1.0)
            end = (kind.name, bool(missing.all()))
            if at_end and end in ends:
                values.append(ends[end])
                continue
            answers = model(kind.replace(inputs, missing))
            if kind.measure == "same":
                kept = answers.argmax(1) == classes
            else:
                kept = answers.float().softmax(1).gather(1, classes.unsqueeze(1))
            values.append(kept.double().sum().cpu())
            if at_end:
                ends[end] = values[-1]
        return torch.stack(values)
