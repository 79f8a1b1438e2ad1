"""Compiled and exported convolutional networks, dense and pruned, each equal their own eager form."""

import pytest
import torch

from repshift import ShiftTracker

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["timm ResNet"], indirect=True)
def test_a_network_that_loses_positions_equals_its_eager_form_when_compiled(net, model, images, assert_close):
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner="positions")
    fast = torch.compile(pruned, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(fast(images), pruned(images))
        assert_close(fast(images[:2]), pruned(images[:2]))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["timm ResNet"], indirect=True)
def test_gradients_of_a_compiled_pruned_network_equal_the_eager_ones(pruned, images):
    parameters = list(pruned.parameters())
    expected = torch.autograd.grad(pruned(images).square().sum(), parameters)
    fast = torch.compile(pruned, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(fast(images).square().sum(), parameters)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * other.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@pytest.mark.parametrize("family", ["RegNet"], indirect=True)
def test_an_exported_network_with_any_batch_size_equals_its_eager_form(pruned, images, strict, assert_close):
    batch = torch.export.Dim("batch")
    program = torch.export.export(pruned, (images,), dynamic_shapes=({0: batch},), strict=strict)
    with torch.no_grad():
        for some in (images, images[:2]):
            assert_close(program.module()(some), pruned(some))
