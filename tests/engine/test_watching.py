"""Reading tokens where no backbone says how: evidence instead of guesses, and no map where it does not add up."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from repshift import RepresentationError, ShiftTracker, repeated_blocks


class ChannelsLast(nn.Module):
    """A map (batch, rows, columns, channels) between a patch embedding and nothing."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, stride=4)
        self.mix = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12))

    def forward(self, images):
        return self.mix(self.embed(images).permute(0, 2, 3, 1))


class Windows(ChannelsLast):
    """The same with windows of 2x2 positions folded into the batch."""

    def forward(self, images):
        maps = self.embed(images).permute(0, 2, 3, 1)
        return self.mix(maps.unfold(1, 2, 2).unfold(2, 2, 2).flatten(0, 2).permute(0, 2, 3, 1))


class LateClassToken(nn.Module):
    """Declares a prefix token that joins behind the blocks, as XCiT and CaiT do."""

    num_prefix_tokens = 1

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, stride=4)
        self.block = nn.Linear(12, 12)

    def forward(self, images):
        return self.block(self.embed(images).flatten(2).transpose(1, 2))


class NamedInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Masked()

    def forward(self, images):
        tokens = images.flatten(2)
        return self.layer(mask=torch.ones_like(tokens), tokens=tokens)


class Masked(nn.Module):
    def forward(self, tokens, mask):
        return tokens * mask + 1


def tracked(model, sites, images):
    with ShiftTracker(model, sites) as tracker, torch.no_grad():
        model(images)
    return tracker


def test_a_map_with_channels_last_is_read_by_the_width_of_its_layers():
    images = torch.randn(2, 3, 32, 48)
    model = ChannelsLast()
    tracker = tracked(model, "mix", images)
    before = model.embed(images).permute(0, 2, 3, 1)
    expected = (model.mix(before) - before).norm(dim=-1)
    torch.testing.assert_close(tracker.maps["mix"], expected)


def test_windows_folded_into_the_batch_have_shifts_but_no_map():
    tracker = tracked(Windows(), "mix", torch.randn(2, 3, 32, 32))
    assert tracker.shifts["mix"].shape == (2 * 16, 4)
    with pytest.raises(RepresentationError, match="no known rows and columns"):
        tracker.maps["mix"]


def test_tokens_out_of_row_order_have_no_map():
    hiera = timm.create_model("hiera_tiny_224", embed_dim=16, num_heads=1, stages=(1, 1, 1, 1)).eval()
    for model, site in ((hiera, "blocks.0"), (nn.Sequential(hiera), "0.blocks.0")):
        tracker = tracked(model, site, torch.randn(1, 3, 224, 224))
        with pytest.raises(RepresentationError, match="no known rows and columns"):
            tracker.maps[site]


def test_a_prefix_that_is_declared_but_not_there_yet_costs_no_token():
    tracker = tracked(LateClassToken(), "block", torch.randn(1, 3, 32, 32))
    assert tracker.shifts["block"].shape == (1, 64)
    assert tracker.maps["block"].shape == (1, 8, 8)


def test_prefix_tokens_are_left_out_in_a_wrapped_model_too(vit, images):
    alone = tracked(vit, "blocks.1.attn", images).shifts["blocks.1.attn"]
    wrapped = tracked(nn.Sequential(vit), "0.blocks.1.attn", images).shifts["0.blocks.1.attn"]
    assert torch.equal(alone, wrapped)


def test_the_input_given_by_name_is_the_forwards_first_parameter():
    tracker = tracked(NamedInputs(), "layer", torch.randn(2, 4, 3, 3))
    torch.testing.assert_close(tracker.shifts["layer"], torch.full((2, 4), 3.0))  # nine channels, each moved by one


def test_norms_and_gates_are_no_blocks():
    names = repeated_blocks(timm.create_model("mobilenetv3_small_050").eval(), torch.randn(1, 3, 64, 64))
    assert names
    assert not any(name.endswith(("se", "norm")) for name in names)


def test_forwards_repeated_in_the_backward_pass_are_not_recorded(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.3, 1: 0.3})
    pruned.set_grad_checkpointing()
    with ShiftTracker(pruned) as tracker:
        logits = pruned(images)
        before = {name: shifts.clone() for name, shifts in tracker.shifts.items()}
        kept = dict(tracker.kept)
        logits.sum().backward()
    assert tracker.kept.keys() == kept.keys() == {"blocks.0", "blocks.1"}
    assert all(tracker.kept[name] is kept[name] for name in kept)
    assert all(torch.equal(tracker.shifts[name], before[name]) for name in before)


def test_a_checkpointed_module_of_a_model_without_a_backbone_is_recorded_once():
    layer = nn.Linear(4, 4)
    calls = []

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, tokens):
            return checkpoint(self.layer, tokens, use_reentrant=False)

    def counted(before, after):
        calls.append(1)
        return (after - before).norm(dim=-1)

    model = Model()
    with ShiftTracker(model, "layer", distance=counted):
        model(torch.randn(1, 9, 4, requires_grad=True)).sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_watched_model_is_not_watched(vit, images, copied):
    with ShiftTracker(vit) as tracker:
        copied(vit)(images)
    assert not tracker.shifts


@pytest.mark.parametrize("result", [None, torch.zeros(3), 1.0])
def test_a_distance_that_gives_no_number_a_token_is_refused(vit, images, result):
    tracker = ShiftTracker(vit, distance=lambda before, after: result)
    with tracker, pytest.raises(RepresentationError, match=r"one number for each token, \(\d+, 64\).*got"):
        vit(images)
