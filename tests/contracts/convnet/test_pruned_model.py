"""A pruned convolutional network is a model like any other, which shares the weights of the one it was made from."""

import copy
import pickle

import torch

from repshift import ShiftTracker


def test_pruned_has_the_class_the_keys_and_the_tensors_of_the_model(model, pruned, tensors):
    assert type(pruned) is type(model)
    assert list(pruned.state_dict()) == list(model.state_dict())
    own, shared = tensors(model), tensors(pruned)
    assert shared.keys() == own.keys()
    assert all(shared[name].data_ptr() == own[name].data_ptr() for name in own)


def test_the_model_is_untouched_by_tracking_and_pruning_and_running_the_pruned(net, model, images, record):
    logits = model(images)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    classes = {name: type(module) for name, module in model.named_modules()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    pruned = ShiftTracker(model).prune(dict(net.drops))
    pruned(images)
    record(pruned, images)
    record(model, images)
    assert torch.equal(model(images), logits)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_copy_of_the_pruned_prunes_alike_with_weights_of_its_own(pruned, images):
    copied, expected = copy.deepcopy(pruned), pruned(images)
    assert torch.equal(copied(images), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(pruned(images), expected)


def test_pruned_survives_pickle(pruned, images):
    assert torch.equal(pickle.loads(pickle.dumps(pruned))(images), pruned(images))


def test_gradients_flow_through_the_lines_that_are_left_and_no_others(net, model, images):
    index = net.drops[0][0]
    pruned = ShiftTracker(model).prune({index: 4}).train()
    whole = []

    def watch(module, args, output):
        output.retain_grad()
        whole.append(output)

    net.blocks(pruned.get_submodule(net.stages[index]))[-1].register_forward_hook(watch)
    with ShiftTracker(pruned) as tracker:
        pruned(images).square().sum().backward()
    gradient = whole[0].grad.abs().sum(-1 if net.channels_last else 1).flatten(1)
    kept = torch.zeros_like(gradient).scatter(1, tracker.kept[net.stages[index]], 1.0)
    assert torch.equal(gradient > 0, kept > 0)


def test_gradients_reach_every_parameter_that_the_dense_model_s_reach(model, pruned, images, reached):
    assert reached(pruned, images) == reached(model, images)


def test_scores_carry_no_gradient(net, model, images):
    seen = []

    def watching(before, after):
        seen.append(before.requires_grad or after.requires_grad)
        return (after - before).norm(dim=-1)

    ShiftTracker(model, distance=watching).prune(dict(net.drops)).train()(images)
    assert seen == [False, False]


def test_a_bfloat16_network_keeps_the_lines_that_its_own_shifts_rank_highest(net, model, images, record, without_lines):
    model.bfloat16()
    pruned = ShiftTracker(model).prune(dict(net.drops))
    index, drop = net.drops[0]
    name = net.stages[index]
    dense, tracker = record(model, images.bfloat16()), record(pruned, images.bfloat16())
    assert dense.shifts[name].dtype == torch.float32
    scores = dense.maps[name]
    _, lines = without_lines(torch.zeros(3, 1, *scores.shape[1:]), scores, drop, channels_last=False)
    width = scores.shape[2]
    assert tracker.kept[name].tolist() == [[row * width + col for row in rows for col in cols] for rows, cols in lines]
    assert pruned(images.bfloat16()).dtype == torch.bfloat16
