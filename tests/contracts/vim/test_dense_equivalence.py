"""Dropping nothing is the dense state space model, bit for bit, with the whole machinery in place."""

import pytest
import torch

from repshift import ScheduleError, ShiftTracker

VIDEO = {"class_position": "head", "halve": False}  # as in VideoMamba


@pytest.mark.parametrize("options", [{}, VIDEO, {"class_position": "head"}], ids=["middle", "video", "head"])
@pytest.mark.parametrize("operation", ["mixer", "block"])
@pytest.mark.parametrize("residual", [False, True])
def test_keeping_every_token_is_the_dense_model_bit_for_bit(images, options, operation, residual, build_vim, keep_all):
    model = build_vim(**options)
    tracker = ShiftTracker(model, operation=operation, residual=residual)
    pruned = tracker.prune({0: 0.2, 1: 5, 3: 0.5}, pruner=keep_all)
    assert torch.equal(pruned(images), model(images))


@pytest.mark.parametrize("arguments", ["a tuple", "two arguments"])
def test_keeping_every_token_is_another_model_bit_for_bit(build_class_first, images, arguments, drops, keep_all):
    model = build_class_first(arguments)
    assert torch.equal(ShiftTracker(model).prune(drops, pruner=keep_all)(images), model(images))


def test_a_share_of_less_than_one_token_is_the_dense_model_bit_for_bit(vim, images, pruner):
    # a hundredth of 64 patches is none; what goes behind the last layer is read by nobody
    pruned = ShiftTracker(vim).prune({0: 0.01, 2: 0.01, 3: 5}, pruner=pruner)
    assert torch.equal(pruned(images), vim(images))


@pytest.mark.parametrize("schedule", [{0: 0.0}, {0: 0}, [0, 0, 0, 0], {0: 0.01, 3: 0.01}])
def test_a_schedule_that_drops_nothing_at_all_is_refused(vim, schedule):
    with pytest.raises(ScheduleError, match="drops no"):
        ShiftTracker(vim).prune(schedule)


def test_a_share_of_nothing_beside_another_drops_nothing_there(vim, images):
    with_zero, without = ShiftTracker(vim).prune({0: 0.0, 2: 0.5}), ShiftTracker(vim).prune({2: 0.5})
    assert torch.equal(with_zero(images), without(images))


def test_gradients_of_keeping_every_token_are_the_dense_model_s_bit_for_bit(vim, images, drops, keep_all):
    pruned = ShiftTracker(vim).prune(drops, pruner=keep_all)
    parameters = list(vim.parameters())
    dense = torch.autograd.grad(vim(images).square().sum(), parameters)
    kept_all = torch.autograd.grad(pruned(images).square().sum(), parameters)
    assert all(map(torch.equal, dense, kept_all))
