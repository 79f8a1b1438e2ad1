"""Neither the batch nor the format in memory matters to a pruned convolutional network."""

from contextlib import ExitStack

import pytest
import torch

from repshift import ShiftTracker


@pytest.mark.parametrize("pruner", ["lines", "positions"])
def test_logits_and_kept_positions_of_a_batch_equal_those_of_its_images_alone(
    net, model, images, pruner, assert_close, record
):
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner=pruner)
    logits, together = pruned(images), record(pruned, images).kept
    first = next(iter(together.values()))
    assert not torch.equal(first[0], first[1])
    for index, image in enumerate(images):
        assert_close(pruned(image[None])[0], logits[index])
        for name, kept in record(pruned, image[None]).kept.items():
            assert torch.equal(kept[0], together[name][index])


def outputs_of_stages(net, model, images):
    seen = {}
    with ExitStack() as stack, torch.no_grad():
        for name in net.stages:
            hook = model.get_submodule(name).register_forward_hook(lambda _, args, y, name=name: seen.update({name: y}))
            stack.callback(hook.remove)
        model(images)
    return seen


@pytest.mark.parametrize("pruner", ["lines", "positions"])
def test_channels_last_gives_the_logits_of_contiguous_maps(net, model, images, pruner, assert_close):
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner=pruner)
    expected = pruned(images)
    model.to(memory_format=torch.channels_last)
    assert_close(pruned(images.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("pruner", ["lines", "positions"])
def test_a_cut_leaves_a_map_in_the_memory_format_that_it_had(net, model, images, pruner):
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner=pruner)
    for memory in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=memory)
        inputs = images.to(memory_format=memory)
        before, after = outputs_of_stages(net, model, inputs), outputs_of_stages(net, pruned, inputs)
        for index, _ in net.drops:
            name = net.stages[index]
            assert after[name].shape != before[name].shape
            for form in (torch.contiguous_format, torch.channels_last):
                assert after[name].is_contiguous(memory_format=form) == before[name].is_contiguous(memory_format=form)


@pytest.mark.parametrize("pruner", ["lines", "positions"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_no_image_at_all_gives_no_logits(net, model, memory, pruner):
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner=pruner)
    nothing = torch.zeros(0, 3, 64, 64).to(memory_format=memory)
    assert pruned(nothing).shape == model(nothing).shape == (0, 10)
