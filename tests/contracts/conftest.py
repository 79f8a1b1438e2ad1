"""What the contracts of several families of models are held with."""

from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import pytest
import torch

from repshift import Selection


@dataclass(frozen=True)
class KeepAll:
    """Takes every position as kept, through the layout, instead of leaving the value alone."""

    drops_only: ClassVar[bool] = True

    def choose(self, candidates, drop):
        kept = torch.arange(candidates.count).expand(len(candidates.scores), -1)
        return Selection(kept, grid=candidates.layout.grid(candidates.value))


@pytest.fixture
def keep_all():
    """A pruner that keeps every position, with the whole machinery in place."""
    return KeepAll()


def _tensors(model):
    return dict(chain(model.named_parameters(), model.named_buffers()))


@pytest.fixture
def tensors():
    """Return the parameters and buffers of a model by name."""
    return _tensors


def _reached(model, images):
    model.zero_grad(set_to_none=True)
    model.train()(images).square().sum().backward()
    return {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}


@pytest.fixture
def reached():
    """Return the names of the parameters of a training model that gradients reach."""
    return _reached
