"""What every pruned model promises, held for each kind of convolutional network."""

import pytest
import torch

from repshift import Recipe
from repshift.testing import CHECKS, make_subject


@pytest.fixture
def few():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def test_every_promise_is_kept(model, few, promise):
    promise(make_subject(model, few))


@pytest.mark.parametrize("family", ["timm ResNet-d"], indirect=True)
def test_every_promise_is_kept_by_lines_that_stay_by_their_places(model, few, promise):
    promise(make_subject(model, few, Recipe("4@0;2@1", pruner="even")))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["timm ResNet-d"], indirect=True)
def test_every_promise_about_compilation_is_kept(model, few, promise_of_compilation):
    promise_of_compilation(make_subject(model, few))


# a layer between the stages and channels last; blocks without a shortcut
@pytest.mark.slow
@pytest.mark.parametrize("family", ["MambaOut", "EfficientNet"], indirect=True)
def test_compiled_models_of_other_kinds_prune_alike(model, few):
    CHECKS["compiled models prune alike, in any order"](make_subject(model, few))
