"""Tracking and pruning, also when they fail half-way, leave the model as it was."""

import copy

import pytest
import torch
from torch import nn

from repshift import ShiftTracker, UnsupportedModelError
from repshift.testing import leftovers

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


class BrokenError(RuntimeError):
    pass


class Fragile(nn.Module):
    """Passes its input on, until told to fail."""

    def __init__(self):
        super().__init__()
        self.fails = False

    def forward(self, x):
        if self.fails:
            raise BrokenError
        return x


class Uncopyable(nn.Identity):
    def __deepcopy__(self, memo):
        raise BrokenError


def snapshot(model, images):
    """Everything that must not change: by identity and by value."""
    with torch.no_grad():
        logits = model(images)
    return {
        "logits": logits,
        "classes": {name: type(module) for name, module in model.named_modules()},
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "hooks": {name: [dict(vars(module)[kind]) for kind in HOOKS] for name, module in model.named_modules()},
        "identities": {name: (id(value), value._version) for name, value in model.state_dict(keep_vars=True).items()},
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "training": {name: module.training for name, module in model.named_modules()},
    }


def assert_untouched(model, images, before):
    after = snapshot(model, images)
    for exact in ("classes", "attributes", "hooks", "identities", "training"):
        assert after[exact] == before[exact]
    assert torch.equal(after["logits"], before["logits"])
    assert after["values"].keys() == before["values"].keys()
    assert all(torch.equal(after["values"][name], before["values"][name]) for name in before["values"])


@pytest.fixture
def fragile(vit):
    vit.blocks[2].drop_path1 = Fragile()
    return vit


def test_the_model_is_untouched_by_tracking(vit, images):
    before = snapshot(vit, images)
    with ShiftTracker(vit):
        vit(images)
    assert_untouched(vit, images, before)


def test_tracking_does_not_change_the_output(vit, images):
    expected = vit(images)
    with ShiftTracker(vit):
        assert torch.equal(vit(images), expected)


def test_a_tracker_attaches_nothing_before_it_is_entered(vit, images):
    before = snapshot(vit, images)
    ShiftTracker(vit, "blocks.*.attn")
    assert_untouched(vit, images, before)


@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
def test_the_model_is_untouched_by_pruning_and_running_the_pruned(vit, images, operation):
    before = snapshot(vit, images)
    pruned = ShiftTracker(vit, operation=operation).prune({0: 0.2, 2: 0.2})
    pruned(images)
    assert_untouched(vit, images, before)


def test_the_model_is_untouched_by_tracking_the_pruned(vit, images):
    before = snapshot(vit, images)
    pruned = ShiftTracker(vit).prune({0: 0.2, 2: 0.2})
    with ShiftTracker(pruned):
        pruned(images)
    assert_untouched(vit, images, before)


def test_the_model_is_untouched_by_an_exception_in_the_middle_of_a_tracked_forward(fragile, images):
    before = snapshot(fragile, images)
    fragile.blocks[2].drop_path1.fails = True
    with pytest.raises(BrokenError), ShiftTracker(fragile):
        fragile(images)
    fragile.blocks[2].drop_path1.fails = False
    assert_untouched(fragile, images, before)


def test_a_tracker_works_again_after_an_exception_in_its_forward(fragile, images):
    tracker = ShiftTracker(fragile)
    fragile.blocks[2].drop_path1.fails = True
    with pytest.raises(BrokenError), tracker:
        fragile(images)
    fragile.blocks[2].drop_path1.fails = False
    with tracker:
        fragile(images)
    with ShiftTracker(fragile) as fresh:
        fragile(images)
    assert all(torch.equal(tracker.shifts[name], fresh.shifts[name]) for name in fresh.shifts)


def test_the_model_is_untouched_by_an_exception_in_the_middle_of_a_pruned_forward(fragile, images):
    before = snapshot(fragile, images)
    pruned = ShiftTracker(fragile).prune({0: 0.2, 2: 0.2})
    pruned.blocks[2].drop_path1.fails = True
    with pytest.raises(BrokenError):
        pruned(images)
    assert_untouched(fragile, images, before)


def test_the_model_is_untouched_when_copying_fails_in_the_middle_of_pruning(vit, images):
    vit.blocks[3].drop_path1 = Uncopyable()
    before = snapshot(vit, images)
    with pytest.raises(BrokenError):
        ShiftTracker(vit).prune({0: 0.2})
    assert_untouched(vit, images, before)


def test_the_model_is_untouched_when_a_later_block_cannot_be_pruned(vit, images):
    vit.blocks[2].forward = vit.blocks[2].forward
    before = snapshot(vit, images)
    with pytest.raises(UnsupportedModelError):
        ShiftTracker(vit).prune({0: 0.2, 2: 0.2})
    assert_untouched(vit, images, before)


@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
def test_nothing_of_a_forward_is_left_on_the_pruned_model(vit, images, operation):
    pruned = ShiftTracker(vit, operation=operation).prune({0: 0.2, 2: 0.2})
    before = {name: set(vars(module)) for name, module in pruned.named_modules()}
    pruned(images)
    assert not leftovers(pruned)
    assert {name: set(vars(module)) for name, module in pruned.named_modules()} == before


@pytest.mark.parametrize("where", ["drop_path1", "drop_path2"])
@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
def test_nothing_is_left_on_the_pruned_model_by_an_exception_in_its_forward(vit, images, operation, where):
    setattr(vit.blocks[2], where, Fragile())
    pruned = ShiftTracker(vit, operation=operation).prune({0: 0.2, 2: 0.2})
    expected = pruned(images)
    part = getattr(pruned.blocks[2], where)
    part.fails = True
    with pytest.raises(BrokenError):
        pruned(images)
    assert not leftovers(pruned)
    part.fails = False
    assert torch.equal(pruned(images), expected)


def test_pruning_inside_the_with_block_leaves_no_tracking_on_the_pruned_model(vit, images):
    with ShiftTracker(vit) as tracker:
        vit(images)
        pruned = tracker.prune({0: 0.2})
    hooked = [name for name, module in pruned.named_modules() if any(vars(module)[kind] for kind in HOOKS)]
    assert hooked == []


def test_a_copy_of_a_cut_block_made_while_it_is_tracked_is_not_observed(vit, images):
    pruned = ShiftTracker(vit).prune({1: 0.2})
    with ShiftTracker(pruned, operation="attn") as tracker:
        pruned(images)
        seen = tracker.kept["blocks.1"]
        copy.deepcopy(pruned.blocks[1])(torch.randn(1, 31, 32))
        assert tracker.kept["blocks.1"] is seen
