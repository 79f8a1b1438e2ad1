"""Tracking any model by the names of its modules."""

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from repshift import ShiftTracker


class Video(nn.Module):
    """Takes (batch, channels, frames, rows, columns)."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv3d(3, 3, 3, padding=1)

    def forward(self, clips):
        return self.mix(clips)


@pytest.fixture
def mixer():
    return MlpMixer(img_size=64, embed_dim=32, num_blocks=2).eval()


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("resnet18").eval()


def l2(after, before):
    return (after - before).square().sum(-1).sqrt()


def positions(feature_map):
    return feature_map.permute(0, 2, 3, 1).reshape(feature_map.shape[0], -1, feature_map.shape[1])


def test_a_vit_is_tracked_at_its_blocks_by_default(vit, images):
    with ShiftTracker(vit) as tracker:
        vit(images)
    assert list(tracker.shifts) == [f"blocks.{index}" for index in range(4)]
    assert {tuple(shift.shape) for shift in tracker.shifts.values()} == {(3, 64)}


def test_attention_is_tracked_by_glob_across_its_own_input_and_output(vit, images):
    with ShiftTracker(vit, "blocks.*.attn") as tracker, torch.no_grad():
        vit(images)
    with torch.no_grad():
        before = vit.blocks[0].norm1(vit._pos_embed(vit.patch_embed(images)))
        expected = l2(vit.blocks[0].attn(before), before)[:, 1:]
    assert list(tracker.shifts) == [f"blocks.{index}.attn" for index in range(4)]
    torch.testing.assert_close(tracker.shifts["blocks.0.attn"], expected)


def test_one_block_by_name_is_tracked_at_the_operation(vit, images):
    with ShiftTracker(vit, operation="attn") as every, torch.no_grad():
        vit(images)
    with ShiftTracker(vit, "blocks.2", operation="attn") as one, torch.no_grad():
        vit(images)
    assert list(one.shifts) == ["blocks.2"]
    assert torch.equal(one.shifts["blocks.2"], every.shifts["blocks.2"])


def test_a_model_of_no_known_backbone_is_tracked_by_glob(mixer):
    images = torch.randn(2, 3, 64, 64)
    with ShiftTracker(mixer, "blocks.*.mlp_channels") as tracker, torch.no_grad():
        mixer(images)
    assert {name: tuple(shift.shape) for name, shift in tracker.shifts.items()} == {
        "blocks.0.mlp_channels": (2, 16),
        "blocks.1.mlp_channels": (2, 16),
    }


def test_shifts_of_a_model_of_no_known_backbone_equal_those_by_hand(mixer):
    seen = []
    handle = mixer.blocks[1].register_forward_hook(lambda module, args, output: seen.append((args[0].clone(), output)))
    with ShiftTracker(mixer, "blocks.1") as tracker, torch.no_grad():
        mixer(torch.randn(2, 3, 64, 64))
    handle.remove()
    [(before, after)] = seen
    torch.testing.assert_close(tracker.shifts["blocks.1"], l2(after, before))


@pytest.mark.parametrize("site", ["layer1", "layer2.1"])
def test_a_stage_or_block_of_a_resnet_is_tracked_position_by_position(resnet, site):
    images = torch.randn(2, 3, 64, 64)
    with ShiftTracker(resnet, site) as tracker, torch.no_grad():
        resnet(images)
    with torch.no_grad():
        x = resnet.maxpool(resnet.act1(resnet.bn1(resnet.conv1(images))))
        x = x if site == "layer1" else resnet.layer2[0](resnet.layer1(x))
        y = resnet.get_submodule(site)(x.clone())
    torch.testing.assert_close(tracker.shifts[site], l2(positions(y), positions(x)))
    assert tracker.maps[site].shape == (2, *x.shape[-2:])


def test_an_in_place_module_is_compared_with_what_it_was_given():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
    images = torch.randn(1, 3, 6, 6)
    with ShiftTracker(model, "1") as tracker, torch.no_grad():
        model(images)
        before = model[0](images)
    expected = positions(before.clamp(max=0)).square().sum(-1).sqrt()  # what a ReLU takes away
    assert expected.max() > 0
    torch.testing.assert_close(tracker.shifts["1"], expected)


def test_an_in_place_first_layer_inside_a_site_does_not_corrupt_its_score():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)))
    images = torch.randn(1, 3, 6, 6)
    with ShiftTracker(model, "1") as tracker, torch.no_grad():
        output = model(images)
        before = model[0](images)
    torch.testing.assert_close(tracker.shifts["1"], l2(positions(output), positions(before)))


def test_an_in_place_layer_behind_a_site_does_not_corrupt_its_score():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True))
    images = torch.randn(1, 3, 6, 6)
    with ShiftTracker(model, "0") as tracker, torch.no_grad():
        model(images)
        output = model[0](images)
    torch.testing.assert_close(tracker.shifts["0"], l2(positions(output), positions(images)))


def test_a_module_that_returns_a_tuple_is_tracked_at_its_first_tensor():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    tokens = torch.randn(2, 5, 16)
    with ShiftTracker(encoder, "layers.*.self_attn") as tracker, torch.no_grad():
        encoder(tokens)
        attended, _ = encoder.layers[0].self_attn(tokens, tokens, tokens)
    torch.testing.assert_close(tracker.shifts["layers.0.self_attn"], l2(attended, tokens))


def test_the_residual_setting_measures_what_a_module_adds():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    images = torch.randn(1, 3, 4, 4)
    with ShiftTracker(model, "0", residual=True) as tracker, torch.no_grad():
        output = model(images)
    torch.testing.assert_close(tracker.shifts["0"], positions(output).square().sum(-1).sqrt())


def test_a_video_has_maps_of_frames_rows_and_columns():
    model = Video()
    clips = torch.randn(2, 3, 4, 6, 8)
    with ShiftTracker(model, "mix") as tracker, torch.no_grad():
        output = model(clips)
    assert tracker.maps["mix"].shape == (2, 4, 6, 8)
    torch.testing.assert_close(tracker.maps["mix"], (output - clips).square().sum(1).sqrt())


def test_a_distance_can_be_a_function(vit, images):
    with ShiftTracker(vit, distance=lambda before, after: after.sum(-1) * 0 + 7) as tracker:
        vit(images)
    assert torch.equal(tracker.shifts["blocks.1"], torch.full((3, 64), 7.0))


def test_shifts_carry_no_gradient(vit, images):
    with ShiftTracker(vit) as tracker:
        vit(images)
    assert not any(shift.requires_grad for shift in tracker.shifts.values())


def test_gradients_are_the_same_while_tracked(vit, images):
    parameters = list(vit.parameters())
    expected = torch.autograd.grad(vit(images).sum(), parameters)
    with ShiftTracker(vit):
        actual = torch.autograd.grad(vit(images).sum(), parameters)
    assert all(map(torch.equal, actual, expected))


def test_the_last_forward_counts(vit, images):
    with ShiftTracker(vit) as tracker:
        vit(images)
        vit(images[:1])
    assert tracker.shifts["blocks.0"].shape == (1, 64)


def test_forwards_behind_the_with_block_are_not_recorded(vit, images):
    with ShiftTracker(vit) as tracker:
        vit(images)
    recorded = tracker.shifts["blocks.0"].clone()
    vit(images + 1)
    assert torch.equal(tracker.shifts["blocks.0"], recorded)


def test_entering_again_forgets_what_was_recorded(vit, images):
    tracker = ShiftTracker(vit)
    with tracker:
        vit(images)
    with tracker:
        assert dict(tracker.shifts) == {}


def test_two_trackers_watch_one_model_at_once(vit, images):
    with ShiftTracker(vit, operation="attn") as attn, ShiftTracker(vit, operation="mlp") as mlp:
        vit(images)
    with ShiftTracker(vit, operation="attn") as alone:
        vit(images)
    assert torch.equal(attn.shifts["blocks.0"], alone.shifts["blocks.0"])
    assert not torch.equal(mlp.shifts["blocks.0"], alone.shifts["blocks.0"])


def test_a_dense_model_has_no_kept_positions(vit, images):
    with ShiftTracker(vit) as tracker:
        vit(images)
    assert dict(tracker.kept) == {}


@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
def test_a_pruned_model_is_tracked_at_the_tokens_that_are_there(vit, images, operation):
    pruned = ShiftTracker(vit, operation=operation).prune({0: 0.5, 2: 8})
    with ShiftTracker(pruned, operation=operation) as tracker:
        pruned(images)
    assert [shift.shape[1] for shift in tracker.shifts.values()] == [64, 32, 32, 24]


@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
def test_shifts_before_the_first_cut_are_those_of_the_dense_model(vit, images, operation):
    pruned = ShiftTracker(vit).prune({1: 0.5})
    with ShiftTracker(vit, operation=operation) as dense, ShiftTracker(pruned, operation=operation) as cut:
        vit(images)
        pruned(images)
    for name in ("blocks.0", "blocks.1"):
        assert torch.equal(cut.shifts[name], dense.shifts[name])


def test_kept_positions_are_ascending_and_nested(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.5, 2: 8})
    with ShiftTracker(pruned) as tracker:
        pruned(images)
    first, second = tracker.kept["blocks.0"], tracker.kept["blocks.2"]
    assert all((kept.diff(dim=1) > 0).all() for kept in (first, second))
    assert all(set(late.tolist()) < set(early.tolist()) for early, late in zip(first, second, strict=True))


def test_kept_positions_are_those_with_the_highest_shifts(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.5})
    with ShiftTracker(pruned) as tracker:
        pruned(images)
    for shift, kept in zip(tracker.shifts["blocks.0"], tracker.kept["blocks.0"], strict=True):
        dropped = [position for position in range(64) if position not in kept.tolist()]
        assert shift[dropped].max() < shift[kept].min()


def test_kept_positions_are_of_the_last_forward_even_if_it_drops_nothing(build_vit):
    pruned = ShiftTracker(build_vit(dynamic_img_size=True)).prune({0: 0.2})
    with ShiftTracker(pruned) as tracker:
        pruned(torch.randn(3, 3, 32, 32))
        pruned(torch.randn(1, 3, 8, 8))  # 20 % of 4 patches is none
    every = torch.arange(4).expand(1, -1)
    assert all(torch.equal(kept, every) for kept in tracker.kept.values())  # or nothing is listed


def test_a_cut_is_not_observed_behind_the_with_block(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.5})
    with ShiftTracker(pruned) as tracker:
        pruned(images)
    kept = tracker.kept["blocks.0"].clone()
    pruned(images.flip(0))
    assert torch.equal(tracker.kept["blocks.0"], kept)


def test_the_norm_score_keeps_the_tokens_with_the_largest_norm(vit, images):
    pruned = ShiftTracker(vit, operation="block").prune({0: 0.5}, score="norm")
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
        norms = vit._pos_embed(vit.patch_embed(images))[:, 1:].square().sum(-1)
    expected = norms.argsort(dim=1, descending=True)[:, :32].sort(dim=1).values
    assert torch.equal(tracker.kept["blocks.0"], expected)


def test_the_random_score_is_fixed_by_the_seed(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.5}, score="random")
    logits = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        logits.append(pruned(images))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[1], logits[2])
