"""Classifiers on features: a linear probe and nearest neighbours, trained on those of the dense model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repshift.errors import DataError, MissingPackageError

STRENGTHS = tuple(10.0**exponent for exponent in range(-5, 3))  # of which one is chosen: scikit-learn's C
HELD_BACK = 0.2  # of the training images, for that
STEPS = 2000
TEMPERATURE = 0.07  # of the neighbours' votes


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on features that are standardised as the training images' are.

    Attributes:
        mean: ``(channels,)`` float64, of the training images.
        scale: ``(channels,)`` float64, their standard deviation.
        weight: ``(classes, channels)`` float64.
        bias: ``(classes,)`` float64.
        strength: The one that was chosen, scikit-learn's ``C``: the smaller, the more the weights are held small.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    strength: float

    def __call__(self, features: Tensor) -> Tensor:
        """Return log-probabilities ``(images, classes)`` float64 of features ``(images, channels)``."""
        mean, scale, weight, bias = (
            part.to(features.device) for part in (self.mean, self.scale, self.weight, self.bias)
        )
        return F.linear((features.double() - mean) / scale, weight, bias).log_softmax(1)


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images by cosine vote, each with the weight ``exp(cos / 0.07)``.

    Attributes:
        directions: ``(training images, channels)``, of length one.
        labels: ``(training images,)`` int64.
        classes: How many there are.
        count: How many neighbours vote.

    Source: Wu et al. 2018, arXiv 1805.01978, section 3.4; with 20 neighbours, Caron et al. 2021, arXiv 2104.14294.
    """

    directions: Tensor
    labels: Tensor
    classes: int
    count: int = 20

    def __call__(self, features: Tensor) -> Tensor:
        """Return votes ``(images, classes)`` for features ``(images, channels)``."""
        directions, labels = self.directions.to(features.device), self.labels.to(features.device)
        near = F.normalize(features.double(), dim=1) @ directions.mT
        closest, places = near.topk(min(self.count, len(labels)), dim=1)
        votes = closest.new_zeros(len(features), self.classes)
        return votes.scatter_add_(1, labels[places], (closest / TEMPERATURE).exp())


def fit_neighbours(features: Tensor, labels: Tensor, classes: int, count: int = 20) -> Neighbours:
    """Keep the directions of the training images ``(images, channels)``."""
    return Neighbours(F.normalize(features.double(), dim=1), labels, classes, count)


def fit_linear(features: Tensor, labels: Tensor, classes: list[str], seed: int = 0) -> LinearProbe:
    """Train a linear probe, its strength chosen by the log-likelihood of training images that are held back.

    A fifth of them is held back, of every class its share; then all of them are trained on.

    Args:
        features: ``(images, channels)``, of the dense model.
        labels: ``(images,)`` int64.
        classes: Names of the classes, by number.
        seed: Of which images are held back.

    Raises:
        DataError: If there are fewer than two classes, or fewer than two images of one.
        MissingPackageError: If scikit-learn is not installed.
    """
    require_scikit_learn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    check_classes(labels, classes)
    mean, scale = features.double().mean(0), features.double().std(0, correction=0)
    scale = torch.where(scale > 1e-12, scale, 1.0)  # what is the same for all images says nothing
    inputs, answers = ((features.double() - mean) / scale).numpy(), labels.numpy()
    rows = np.arange(len(answers))
    held_back = max(len(classes), round(HELD_BACK * len(rows)))
    train, held = train_test_split(rows, test_size=held_back, stratify=answers, random_state=seed)

    def fit(chosen: np.ndarray, strength: float) -> LinearProbe:
        model = LogisticRegression(C=strength, max_iter=STEPS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of strengths that are not chosen
            model.fit(inputs[chosen], answers[chosen])
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(weight) == 1:  # of two classes there is one line, between them
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        return LinearProbe(mean, scale, weight, bias, strength)

    def likelihood(strength: float) -> float:
        found = fit(train, strength)(features[held])
        return float(found.gather(1, labels[held, None]).mean())

    return fit(rows, max(STRENGTHS, key=likelihood))


def require_scikit_learn() -> None:
    """Check that scikit-learn is there, before anything is computed for it.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            'A linear probe needs scikit-learn, which is not installed. Run pip install "repshift[probe]".'
        ) from error


def check_classes(labels: Tensor, classes: list[str]) -> None:
    """Check that there is something to learn.

    Raises:
        DataError: If there are fewer than two classes, or fewer than two images of one.
    """
    if len(classes) < 2:
        raise DataError(
            f"The training images are of {len(classes)} class ({', '.join(classes)}), and a probe tells classes apart. "
            "Give a folder with two class folders or more."
        )
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if few := [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < 2]:
        raise DataError(
            f"A probe needs two training images of every class, one to train on and one to hold back; too few are of "
            f"{', '.join(few[:5])}. Add images, give more --train-samples, or take these folders out."
        )
