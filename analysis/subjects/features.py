"""What a backbone makes of images: pooled features, the features of its tokens, and logits where it has a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repshift.errors import UnsupportedModelError
from repshift.finding import find_structure_if_served
from repshift.layouts import Layout


@dataclass(frozen=True)
class Features:
    """What a model makes of a batch.

    Attributes:
        pooled: ``(batch, channels)``, what a head would read.
        tokens: ``(batch, tokens, channels)`` behind the last block, prefix tokens left out; ``None`` if the model does
            not tell them apart.
        logits: ``(batch, classes)``; ``None`` of a model without a head.
    """

    pooled: Tensor
    tokens: Tensor | None
    logits: Tensor | None


class Reader:
    """Reads the features of a model.

    Of a model with timm's methods, pooled features are ``forward_head(forward_features(images), pre_logits=True)``; of
    others they are the output.

    Args:
        model: Dense or pruned; a dense one of the same kind, if it is pruned.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.has_methods = all(callable(getattr(model, name, None)) for name in ("forward_features", "forward_head"))
        self.classes = getattr(model, "num_classes", 0) or 0
        structure = find_structure_if_served(model)
        self.layout: Layout | None = None if structure is None or structure.root else structure.layout

    def __call__(self, images: Tensor) -> Features:
        """Read the features of images ``(batch, channels, rows, columns)``.

        Raises:
            UnsupportedModelError: If the model pools nothing.
        """
        tokens = None
        if not self.has_methods:
            pooled = self.model(images)
            logits = pooled if self.classes and pooled.shape[1:] == (self.classes,) else None
        else:
            features = self.model.forward_features(images)
            if self.layout is not None and isinstance(features, Tensor) and features.ndim > 2:  # not pooled already
                tokens = self.layout.tokens(features)
            # once only: a pruned model forgets what became of the tokens when the head has pooled them
            pooled = self.model.forward_head(features, pre_logits=True)
            logits = self._logits(images, pooled) if self.classes else None
        if not isinstance(pooled, Tensor) or pooled.ndim != 2:
            got = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
            raise UnsupportedModelError(
                f"{type(self.model).__name__} returns {got} for {len(images)} images, and one feature vector an image "
                "is expected. Give a model that pools (--model-kwargs global_pool=avg)."
            )
        return Features(pooled, tokens, logits)

    def _logits(self, images: Tensor, pooled: Tensor) -> Tensor:
        """Apply the classifier, where that is one linear layer; otherwise run the whole model."""
        classifier = self.model.get_classifier()
        if isinstance(classifier, nn.Linear) and pooled.shape[1:] == (classifier.in_features,):
            return torch.as_tensor(classifier(pooled))
        return torch.as_tensor(self.model(images))


def cosine_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return one minus the cosine of the angle between vectors, without cancellation: half the squared distance.

    Args:
        ours: ``(..., channels)``.
        theirs: The same shape.

    Returns:
        ``(...)`` float64.
    """
    directions = (torch.nn.functional.normalize(each.double(), dim=-1) for each in (ours, theirs))
    first, second = directions
    return (first - second).square().sum(-1) / 2
