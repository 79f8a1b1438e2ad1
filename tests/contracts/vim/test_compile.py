"""Compiled and exported state space models, dense and pruned, each equal their own eager form."""

import pytest
import torch
from torch._inductor.utils import fresh_inductor_cache

from repshift import ShiftTracker
from repshift.pruners import SequencePruner

ALIGNED = SequencePruner(align=True)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_dynamo")]


def test_the_default_compiler_equals_the_eager_form(images, build_vim):
    pruned = ShiftTracker(build_vim(depth=2)).prune({0: 0.5}, pruner=ALIGNED)
    # what the compiler keeps on disk is not thrown away when the layout of the scan's results changes
    with torch.no_grad(), fresh_inductor_cache():
        expected = pruned(images)
        torch.testing.assert_close(torch.compile(pruned, fullgraph=True)(images), expected, atol=1e-4, rtol=1e-4)


def test_gradients_of_the_compiled_model_equal_the_eager_ones(images, build_vim):
    pruned = ShiftTracker(build_vim(depth=2)).prune({0: 0.5}, pruner=ALIGNED)
    parameters = list(pruned.parameters())
    expected = torch.autograd.grad(pruned(images).square().sum(), parameters)
    fast = torch.compile(pruned, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(fast(images).square().sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_an_exported_model_with_any_batch_size_equals_its_eager_form(images, build_vim):
    pruned = ShiftTracker(build_vim(depth=2)).prune({0: 0.5}, pruner=ALIGNED)
    batch = torch.export.Dim("batch")
    program = torch.export.export(pruned, (images,), dynamic_shapes=({0: batch},), strict=True).module()
    with torch.no_grad():
        for given in (images, images.repeat(2, 1, 1, 1)):
            torch.testing.assert_close(program(given), pruned(given), atol=1e-5, rtol=1e-5)
