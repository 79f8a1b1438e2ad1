"""Dropping nothing is the dense convolutional network, bit for bit, with the whole machinery in place."""

import pytest
import torch

from repshift import ShiftTracker


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("reference", ["stage", "block"])
def test_keeping_every_position_is_the_dense_model_bit_for_bit(net, model, images, reference, memory, keep_all):
    model.to(memory_format=memory)
    inputs = images.to(memory_format=memory)
    pruned = ShiftTracker(model, operation=reference).prune(dict(net.drops), pruner=keep_all)
    assert torch.equal(pruned(inputs), model(inputs))


def test_a_share_of_less_than_one_line_is_the_dense_model_bit_for_bit(net, model, images):
    pruned = ShiftTracker(model).prune({net.drops[0][0]: 0.01})
    assert torch.equal(pruned(images), model(images))
