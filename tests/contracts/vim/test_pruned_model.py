"""A pruned state space model is a model like any other, which shares the weights of the one it was made from."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from repshift import ShiftTracker
from repshift.backbones.vim_model import VisionMamba
from repshift.pruners import SequencePruner

ALIGNED = SequencePruner(align=True)


def test_pruned_has_the_class_the_keys_and_the_storage_of_the_model(vim, pruned, tensors):
    assert type(pruned) is VisionMamba
    assert list(pruned.state_dict()) == list(vim.state_dict())
    own, shared = tensors(vim), tensors(pruned)
    assert all(shared[name].data_ptr() == own[name].data_ptr() for name in own)


def test_the_model_is_untouched_by_pruning_running_and_tracking_the_pruned(vim, images, drops):
    expected = vim(images)
    classes = {name: type(module) for name, module in vim.named_modules()}
    attributes = {name: set(vars(module)) for name, module in vim.named_modules()}
    pruned = ShiftTracker(vim).prune(drops, pruner=ALIGNED)
    with ShiftTracker(pruned):
        pruned(images)
    assert {name: type(module) for name, module in vim.named_modules()} == classes
    assert {name: set(vars(module)) for name, module in vim.named_modules()} == attributes
    assert torch.equal(vim(images), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_the_pruned_gives_the_same(pruned, images, copied):
    assert torch.equal(copied(pruned)(images), pruned(images))


def test_forward_features_and_head_add_up_to_the_forward(pruned, images):
    features = pruned.forward_features(images)
    assert features.shape == (3, 16)
    assert torch.equal(pruned.forward_head(features), pruned(images))


def test_pruned_runs_in_inference_mode(pruned, images):
    with torch.inference_mode():
        logits = pruned(images)
    assert torch.equal(logits, pruned(images))


def test_gradients_are_those_of_the_written_out_forward(vim, images, written_out, drops, counts):
    pruned = ShiftTracker(vim).prune(drops).train()
    parameters = list(vim.parameters())
    found = torch.autograd.grad(pruned(images).square().sum(), parameters)
    expected = torch.autograd.grad(written_out(vim, images, counts)[0].square().sum(), parameters)
    for (name, _), one, other in zip(vim.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3, msg=name)


def test_gradients_reach_every_parameter_while_training(pruned, images):
    pruned.train()(images).square().sum().backward()
    assert [name for name, value in pruned.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_training_the_pruned_lowers_its_loss(pruned, images):
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(pruned.train()(images), torch.tensor([0, 1, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_layers_can_be_dropped_while_the_pruned_trains(images, build_vim, drops):
    pruned = ShiftTracker(build_vim(drop_path_rate=0.5)).prune(drops).train()
    with torch.no_grad():
        assert pruned(images).isfinite().all()
        assert not torch.equal(pruned(images), pruned(images))


def test_a_bfloat16_model_prunes_and_returns_bfloat16(vim, images, drops):
    with torch.no_grad():
        logits = ShiftTracker(vim.bfloat16()).prune(drops, pruner=ALIGNED)(images.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@pytest.mark.parametrize("residual", [False, True])
def test_pruned_under_autocast_is_close_to_the_pruned_without(vim, images, residual):
    pruned = ShiftTracker(vim, residual=residual).prune({0: 3}, pruner=ALIGNED)
    with torch.no_grad():
        expected = pruned.forward_features(images)
        with torch.autocast("cpu", torch.bfloat16):
            features = pruned.forward_features(images)
    assert torch.cosine_similarity(features.float(), expected).min() > 0.98


def test_images_of_whole_numbers_are_refused(pruned):
    with pytest.raises(ValueError, match=r"torch\.uint8 images.*expected floating-point"):
        pruned(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
