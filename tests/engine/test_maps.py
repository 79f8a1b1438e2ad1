import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from repshift import RepresentationError, ShiftTracker, UnknownNameError


def length_before(before, after):
    return before.norm(dim=-1)


def bright_patch(rows, columns, row, column, patch=4):
    images = torch.zeros(1, 3, rows * patch, columns * patch)
    images[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 1
    return images


def odd_one_out(shift_map):
    """The one position whose value differs from all others."""
    [position] = (shift_map - shift_map.median()).abs().gt(1e-4).nonzero().tolist()
    return tuple(position)


@pytest.fixture
def unpositioned(build_vit):
    def build(**options):
        model = build_vit(**options)
        with torch.no_grad():
            model.pos_embed.zero_()
        return model

    return build


@pytest.mark.parametrize("where", [(0, 0), (1, 7), (5, 11)])
def test_a_map_of_a_non_square_image_shows_a_patch_where_it_is(unpositioned, where):
    model = unpositioned(img_size=(24, 48))
    with ShiftTracker(model, operation="attn", distance=length_before) as tracker, torch.no_grad():
        model(bright_patch(6, 12, *where))
    assert tracker.maps["blocks.0"].shape == (1, 6, 12)
    assert odd_one_out(tracker.maps["blocks.0"][0]) == where


@pytest.mark.parametrize("grid", [(6, 12), (12, 6), (3, 5)])
def test_a_map_of_a_dynamic_model_follows_the_image(unpositioned, grid):
    model = unpositioned(dynamic_img_size=True)
    with ShiftTracker(model, operation="attn", distance=length_before) as tracker, torch.no_grad():
        model(bright_patch(*grid, 2, 4))
    assert tracker.maps["blocks.0"].shape == (1, *grid)
    assert odd_one_out(tracker.maps["blocks.0"][0]) == (2, 4)


def test_a_map_holds_the_shifts_row_by_row(vit, images):
    with ShiftTracker(vit) as tracker:
        vit(images)
    assert torch.equal(tracker.maps["blocks.1"], tracker.shifts["blocks.1"].reshape(3, 8, 8))


def test_a_map_of_a_resnet_has_the_rows_and_columns_of_its_feature_map():
    model = timm.create_model("resnet18").eval()
    with ShiftTracker(model, ["layer1", "layer2.1"]) as tracker, torch.no_grad():
        model(torch.randn(1, 3, 64, 96))
    assert tracker.maps["layer1"].shape == (1, 16, 24)
    assert tracker.maps["layer2.1"].shape == (1, 8, 12)


@pytest.mark.parametrize("shape", [(64, 64), (48, 96)])
def test_a_map_of_a_model_of_no_known_backbone_has_the_proportions_of_the_image(shape):
    model = MlpMixer(img_size=shape, embed_dim=32, num_blocks=1).eval()
    with ShiftTracker(model, "blocks.*.mlp_channels") as tracker, torch.no_grad():
        model(torch.randn(1, 3, *shape))
    assert tracker.maps["blocks.0.mlp_channels"].shape == (1, shape[0] // 16, shape[1] // 16)


def test_a_map_of_channels_last_has_the_rows_and_columns_of_its_feature_map():
    small = {"img_size": (28, 56), "window_size": 7, "embed_dim": 16, "depths": (2,), "num_heads": (1,)}
    model = timm.create_model("swin_tiny_patch4_window7_224", **small).eval()
    with ShiftTracker(model, "layers.*.blocks.*") as tracker, torch.no_grad():
        model(torch.randn(1, 3, 28, 56))
    assert tracker.maps["layers.0.blocks.0"].shape == (1, 7, 14)


def test_a_pruned_map_is_nan_exactly_where_tokens_were_dropped(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.5, 2: 8})
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
    for name, cut in {"blocks.1": "blocks.0", "blocks.2": "blocks.0", "blocks.3": "blocks.2"}.items():
        for shown, kept in zip(tracker.maps[name], tracker.kept[cut], strict=True):
            assert shown.flatten().isnan().logical_not().nonzero().flatten().tolist() == kept.tolist()


def test_a_pruned_map_has_the_shifts_at_the_original_positions(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.5, 2: 8})
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
    for name, cut in {"blocks.1": "blocks.0", "blocks.3": "blocks.2"}.items():
        for shown, kept, shift in zip(tracker.maps[name], tracker.kept[cut], tracker.shifts[name], strict=True):
            assert torch.equal(shown.flatten()[kept], shift)


def test_a_pruned_map_up_to_the_cut_is_the_dense_model_s(vit, images):
    pruned = ShiftTracker(vit).prune({1: 0.5})
    with ShiftTracker(vit) as dense, ShiftTracker(pruned) as cut, torch.no_grad():
        vit(images)
        pruned(images)
    for name in ("blocks.0", "blocks.1"):
        assert torch.equal(cut.maps[name], dense.maps[name])


def test_modules_inside_the_blocks_of_a_pruned_model_have_maps_too(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.5})
    with ShiftTracker(pruned, "blocks.*.attn") as tracker, torch.no_grad():
        pruned(images)
    assert [int(tracker.maps[f"blocks.{index}.attn"].isnan().sum()) for index in range(4)] == [0, 96, 96, 96]


def test_maps_list_what_was_recorded(vit, images):
    with ShiftTracker(vit, "blocks.[01]") as tracker:
        vit(images)
    assert list(tracker.maps) == ["blocks.0", "blocks.1"]
    assert len(tracker.maps) == 2
    assert "blocks.0" in tracker.maps
    assert "blocks.3" not in tracker.maps


def test_an_unknown_map_names_the_closest(vit, images):
    with ShiftTracker(vit) as tracker:
        vit(images)
    with pytest.raises(UnknownNameError, match=r"Nothing is recorded for 'block\.3'\. Did you mean 'blocks\.3'"):
        tracker.maps["block.3"]


def test_tokens_that_do_not_come_from_an_image_have_no_map():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    with ShiftTracker(model, "layers.0") as tracker, torch.no_grad():
        model(torch.randn(1, 5, 8))
    with pytest.raises(RepresentationError, match=r"The 5 tokens of 'layers\.0' have no known rows.*reshape"):
        tracker.maps["layers.0"]


def test_a_pruned_post_norm_model_is_watched_where_the_dense_one_is(build_vit, images):
    model = build_vit(block_fn=ResPostBlock)
    pruned = ShiftTracker(model).prune({2: 0.5})
    maps = []
    for watched in (model, pruned):
        with ShiftTracker(watched) as tracker:
            watched(images)
        maps.append([tracker.shifts[f"blocks.{index}"] for index in range(3)])  # all of them before anything is gone
    for dense, seen in zip(*maps, strict=True):
        assert torch.equal(seen, dense)
