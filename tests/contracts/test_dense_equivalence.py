"""Dropping nothing is the dense model, bit for bit, with the whole machinery in place."""

import pytest
import torch

from repshift import ShiftTracker


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
def test_keeping_every_token_is_the_dense_model_bit_for_bit(vit, images, keep_all, operation, residual):
    tracker = ShiftTracker(vit, operation=operation, residual=residual)
    pruned = tracker.prune({0: 0.2, 1: 5, 3: 0.5}, pruner=keep_all)
    assert torch.equal(pruned(images), vit(images))


def test_keeping_every_token_is_the_dense_model_bit_for_bit_with_registers(build_vit, images, keep_all):
    model = build_vit(reg_tokens=4)
    assert torch.equal(ShiftTracker(model).prune({0: 0.2}, pruner=keep_all)(images), model(images))


def test_a_share_of_less_than_one_token_is_the_dense_model_bit_for_bit(build_vit):
    model = build_vit(dynamic_img_size=True)
    pruned = ShiftTracker(model).prune({0: 0.2, 2: 0.2})
    few = torch.randn(2, 3, 8, 8)  # 4 patches, of which 20 % is none
    assert torch.equal(pruned(few), model(few))


def test_gradients_of_keeping_every_token_are_the_dense_model_s_bit_for_bit(vit, images, keep_all):
    pruned = ShiftTracker(vit).prune({0: 0.2, 2: 0.2}, pruner=keep_all)
    parameters = list(vit.parameters())
    dense = torch.autograd.grad(vit(images).square().sum(), parameters)
    kept_all = torch.autograd.grad(pruned(images).square().sum(), parameters)
    assert all(map(torch.equal, dense, kept_all))
