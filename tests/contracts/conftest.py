"""What the contracts of several families of models are held with."""

from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from repshift import Selection
from repshift.positions import keep_highest, pick
from repshift.testing import CHECKS, KeepAll


@dataclass(frozen=True)
class Merge:
    """Keeps what scores highest; every other token becomes part of the kept one that it resembles most."""

    needs: ClassVar[tuple[str, ...]] = ("merge",)

    def choose(self, candidates, drop):
        left = candidates.left(drop)
        if left == candidates.count:
            return None
        kept = keep_highest(candidates.scores, left)
        directions = F.normalize(candidates.tokens, dim=-1)
        joins = (directions @ pick(directions, kept).mT).argmax(-1)
        return Selection(kept, joins.scatter(1, kept, torch.arange(left, device=kept.device).expand_as(kept)))


@pytest.fixture
def merge():
    """A pruner that merges."""
    return Merge()


# these compile some twenty models each
EXPENSIVE = [name for name in CHECKS if any(word in name for word in ("compiled", "graph breaks", "any batch"))]


@pytest.fixture(params=[name for name in CHECKS if name not in EXPENSIVE])
def promise(request):
    """What every pruned model promises, one thing after the other."""
    return CHECKS[request.param]


@pytest.fixture(params=EXPENSIVE)
def promise_of_compilation(request):
    """The same for what takes compilers some seconds."""
    return CHECKS[request.param]


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
