"""Gradient checkpointing of pruned convolutional networks: refused where it would run past the cuts."""

import pytest
import torch

from repshift import RepresentationError, ShiftTracker
from repshift.testing import leftovers

# where timm's checkpointing runs the blocks one by one, past their stage
PAST_THE_STAGE = ["timm ResNet", "timm ResNet-d", "EfficientNet"]
WITHIN_THE_STAGE = ["ConvNeXt", "RegNet", "ResNetV2", "MambaOut"]


@pytest.mark.parametrize("reference", ["stage", "block"])
@pytest.mark.parametrize("family", PAST_THE_STAGE, indirect=True)
def test_checkpointing_that_would_run_past_the_cuts_is_refused(net, model, images, reference):
    pruned = ShiftTracker(model, operation=reference).prune(dict(net.drops))
    expected = pruned(images)
    pruned.set_grad_checkpointing()
    with pytest.raises(RepresentationError, match=r"without the block itself.*set_grad_checkpointing\(False\)"):
        pruned(images)
    pruned.set_grad_checkpointing(False)
    assert torch.equal(pruned(images), expected)


@pytest.mark.parametrize("family", WITHIN_THE_STAGE, indirect=True)
def test_checkpointing_within_the_stages_gives_the_same_gradients(pruned, images):
    parameters = list(pruned.parameters())
    expected = torch.autograd.grad(pruned(images).square().sum(), parameters)
    pruned.set_grad_checkpointing()
    actual = torch.autograd.grad(pruned(images).square().sum(), parameters)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("family", WITHIN_THE_STAGE, indirect=True)
def test_nothing_of_a_checkpointed_forward_is_left_on_the_pruned_model_after_its_backward(pruned, images):
    pruned.set_grad_checkpointing()
    pruned(images).square().sum().backward()
    assert not leftovers(pruned)


@pytest.mark.parametrize("family", PAST_THE_STAGE + WITHIN_THE_STAGE, indirect=True)
def test_a_checkpointed_network_is_tracked_like_any_other(net, model, images, record):
    expected = record(model, images).shifts
    model.set_grad_checkpointing()
    with ShiftTracker(model) as tracker:
        model(images).sum().backward()
    assert tracker.shifts.keys() == expected.keys()
    for name, shift in tracker.shifts.items():
        torch.testing.assert_close(shift, expected[name])
