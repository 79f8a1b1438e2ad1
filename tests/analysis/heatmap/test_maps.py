import numpy as np
import pytest
import torch

from repshift import DataError, RepresentationError, ShiftTracker, UnknownNameError, UnsupportedModelError, load_model
from repshift.analysis.heatmap.maps import (
    NORMALISATIONS,
    attention_score,
    heatmap_array,
    shift_maps,
    show_map_on_image,
    token_groups,
)


def test_maps_are_the_distance_between_what_enters_and_what_the_mlp_adds(small_vit):
    seen = {}
    block = small_vit.blocks[2]
    handles = [
        block.norm2.register_forward_pre_hook(lambda module, args: seen.update(before=args[0])),
        block.mlp.register_forward_hook(lambda module, args, output: seen.update(after=output)),
    ]
    images = torch.rand(3, 3, 24, 40)
    maps = shift_maps(small_vit, images, ["blocks.2"])
    for handle in handles:
        handle.remove()
    expected = (seen["after"] - seen["before"])[:, 1:].pow(2).sum(-1).sqrt().reshape(3, 3, 5)
    assert torch.allclose(maps["blocks.2"], expected, atol=1e-5)


def test_settings_reach_the_tracker(small_vit):
    images = torch.rand(2, 3, 24, 40)
    settings = {"operation": "attn", "distance": "l1", "residual": True}
    with ShiftTracker(small_vit, **settings) as tracker, torch.inference_mode():
        small_vit(images)
    maps = shift_maps(small_vit, images, ["blocks.0", "blocks.3"], **settings)
    assert list(maps) == ["blocks.0", "blocks.3"]
    assert all(torch.equal(values, tracker.maps[name]) for name, values in maps.items())


def test_maps_of_a_pruned_model_are_blank_where_a_token_was_dropped(small_vit):
    pruned = ShiftTracker(small_vit).prune({0: 5})
    maps = shift_maps(pruned, torch.rand(2, 3, 24, 40), ["blocks.0", "blocks.1"])
    assert not maps["blocks.0"].isnan().any()
    assert maps["blocks.1"].isnan().sum(dim=(1, 2)).tolist() == [5, 5]


# --- arrays -----------------------------------------------------------------------------------------------------


def received_attention(vit, images, block, rows):
    """The attention map written out: what each patch gets from the class token, or from all tokens on average."""
    seen = {}
    attn = vit.blocks[block].attn
    handle = attn.register_forward_pre_hook(lambda module, args: seen.update(tokens=args[0]))
    with torch.no_grad():
        vit(images)
    handle.remove()
    tokens = seen["tokens"]
    queries, keys, _ = (
        attn.qkv(tokens).reshape(len(tokens), -1, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    )
    attention = (queries @ keys.transpose(-2, -1) / attn.head_dim**0.5).softmax(-1).mean(1)
    patches = attention[:, :, vit.num_prefix_tokens :]
    return (patches[:, 0] if rows == "class" else patches.mean(1)).detach()


def test_arrays_are_the_measured_maps_by_block(small_vit):
    images = torch.rand(2, 3, 24, 40)
    heatmaps = heatmap_array(small_vit, images, blocks=[3, 0], distance="l1")
    maps = shift_maps(small_vit, images, ["blocks.3", "blocks.0"], distance="l1")
    assert list(heatmaps) == ["blocks.3", "blocks.0"]
    assert len(heatmaps) == 2
    for name, values in heatmaps.items():
        assert values.dtype == np.float32
        assert values.shape == (2, 3, 5)
        assert np.array_equal(values, maps[name].numpy())


@pytest.mark.parametrize(
    ("settings", "unit"),
    [
        ({}, "shift (mlp, l2)"),
        ({"operation": "attn", "distance": "cosine", "residual": True}, "shift (attn, cosine, residual)"),
        ({"sites": "blocks.*.attn"}, "shift (l2)"),
        ({"sites": "blocks.2"}, "shift (mlp, l2)"),
        ({"distance": torch.nn.functional.pairwise_distance}, "shift (mlp, pairwise_distance)"),
        ({"score": "cls_attention"}, "attention received (class token)"),
        ({"score": "mean_attention"}, "attention received (mean of all tokens)"),
        ({"score": "norm"}, "norm of the token"),
        ({"normalisation": "map"}, "shift (mlp, l2), scaled to 0..1"),
    ],
)
def test_the_unit_says_what_is_measured_and_how(small_vit, settings, unit):
    assert heatmap_array(small_vit, torch.rand(1, 3, 24, 40), **settings).unit == unit


@pytest.mark.parametrize(
    ("model", "size", "unit"),
    [("tiny_resnet", (64, 96), "shift (stage, l2)"), ("tiny_vim", (64, 64), "shift (mixer, l2)")],
)
def test_other_kinds_of_models_have_maps_in_the_proportions_of_the_image(model, size, unit):
    heatmaps = heatmap_array(load_model(model), torch.rand(2, 3, *size))
    assert heatmaps.unit == unit
    for values in heatmaps.values():
        rows, columns = values.shape[1:]
        assert rows * size[1] == columns * size[0]


def test_registers_and_other_prefix_tokens_are_no_part_of_a_map(build_vit):
    vit = build_vit(img_size=(32, 48), reg_tokens=4)
    images = torch.rand(2, 3, 32, 48)
    shift = heatmap_array(vit, images, blocks=[1])["blocks.1"]
    attention = heatmap_array(vit, images, blocks=[1], score="cls_attention")["blocks.1"]
    assert shift.shape == attention.shape == (2, 8, 12)
    expected = received_attention(vit, images, 1, "class").reshape(2, 8, 12).numpy()
    assert np.allclose(attention, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "score", "rows"),
    [({}, "cls_attention", "class"), ({"class_token": False, "global_pool": "avg"}, "mean_attention", "mean")],
)
def test_the_attention_beside_a_shift_is_the_class_tokens_or_else_the_mean(build_vit, images, options, score, rows):
    vit = build_vit(**options)
    assert attention_score(vit) == score
    measured = heatmap_array(vit, images, blocks=[2], score=score)["blocks.2"]
    assert np.allclose(measured.reshape(3, 64), received_attention(vit, images, 2, rows).numpy(), atol=1e-6)


@pytest.mark.parametrize("model", ["tiny_resnet", "tiny_vim", "swin_tiny_patch4_window7_224"])
def test_a_model_without_attention_to_show_is_refused(model):
    with torch.device("meta"):
        built = load_model(model)
    with pytest.raises(UnsupportedModelError, match="--attention"):
        attention_score(built)


# --- normalisation ----------------------------------------------------------------------------------------------


@pytest.fixture
def pruned(small_vit):
    return ShiftTracker(small_vit).prune({0: 5})


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_normalised_values_are_measured_ones_between_the_ends_of_their_group(pruned, normalisation):
    images = torch.rand(2, 3, 24, 40)
    measured = heatmap_array(pruned, images, blocks=[0, 1, 2])
    heatmaps = heatmap_array(pruned, images, blocks=[0, 1, 2], normalisation=normalisation)
    assert heatmaps.normalisation == NORMALISATIONS[normalisation]
    everything = np.stack(list(measured.values()))
    for name, values in measured.items():
        for image, one in enumerate(values):
            group = {"map": one, "block": values, "shared": everything}.get(normalisation)
            low, high = (0, 1) if group is None else (np.nanmin(group), np.nanmax(group))
            assert np.allclose(heatmaps[name][image], (one - low) / (high - low), atol=1e-6, equal_nan=True)
            assert heatmaps[name].dtype == np.float32


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("normalisation", ["map", "block", "shared"])
def test_a_flat_map_is_0_everywhere(small_vit, normalisation):
    flat = heatmap_array(
        small_vit,
        torch.rand(2, 3, 24, 40),
        score=lambda before, after: torch.full(before.shape[:2], 3.0),
        normalisation=normalisation,
    )
    assert all((values == 0).all() for values in flat.values())


def test_normalised_arrays_can_be_laid_over_a_picture(small_vit):
    images = torch.rand(2, 3, 24, 40)
    heatmaps = heatmap_array(small_vit, input_tensor=images, normalisation="map")
    shown = show_map_on_image(images[1].permute(1, 2, 0), heatmaps["blocks.0"][1])
    assert shown.shape == (24, 40, 3)


# --- what is kept -----------------------------------------------------------------------------------------------


def test_kept_tokens_are_groups_of_their_own_at_every_cut(small_vit):
    pruned = ShiftTracker(small_vit).prune({0: 5, 2: 3})
    images = torch.rand(2, 3, 24, 40)
    tracker = ShiftTracker(pruned).run(images)
    groups = token_groups(pruned, images)
    assert list(groups) == ["blocks.0", "blocks.2"]
    for name, numbers in groups.items():
        assert numbers.shape == (2, 3, 5)
        for image, kept in zip(numbers.flatten(1).tolist(), tracker.kept[name].tolist(), strict=True):
            assert image == [kept.index(place) if place in kept else -1 for place in range(15)]


@pytest.mark.parametrize("pruner", ["mnn", "tome", "fuse"])
def test_merged_tokens_are_one_group_over_all_their_places(small_vit, pruner):
    pruned = ShiftTracker(small_vit).prune({0: 5, 2: 3}, pruner=pruner)
    images = torch.rand(2, 3, 24, 40)
    groups = token_groups(pruned, images)
    shifts = ShiftTracker(pruned).run(images).maps["blocks.3"]
    assert [[len(image.unique()) for image in each] for each in groups.values()] == [[10, 10], [7, 7]]
    for numbers, values in zip(groups["blocks.2"], shifts, strict=True):
        assert numbers.min() == 0
        assert all(len(values[numbers == number].unique()) == 1 for number in range(7))


def test_kept_tokens_of_a_convolutional_network_are_whole_rows_and_columns():
    pruned = ShiftTracker(load_model("tiny_resnet", pretrained=True)).prune({0: 4, 1: 2})
    groups = token_groups(pruned, torch.rand(2, 3, 64, 64))
    assert {name: tuple(each.shape) for name, each in groups.items()} == {
        "layer1": (2, 32, 32), "layer2": (2, 16, 16)
    }  # fmt: skip
    first = groups["layer1"] >= 0
    rows, columns = first.any(2), first.any(1)
    assert torch.equal(first, rows.unsqueeze(2) & columns.unsqueeze(1))
    assert (rows.sum(1) == 28).all()
    assert (columns.sum(1) == 28).all()


def test_groups_of_a_dense_model_are_refused(small_vit):
    with pytest.raises(UnsupportedModelError, match="--drop"):
        token_groups(small_vit, torch.rand(1, 3, 24, 40))


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [torch.rand(3, 24, 40), torch.rand(0, 3, 24, 40), np.zeros((1, 3, 24, 40))])
def test_an_input_that_is_no_batch_of_images_is_refused(small_vit, given):
    with pytest.raises(DataError, match=r"\(images, channels, rows, columns\)"):
        heatmap_array(small_vit, given)


def test_an_unknown_normalisation_is_refused_with_the_closest(small_vit):
    with pytest.raises(UnknownNameError, match=r"'shred'.*'shared'"):
        heatmap_array(small_vit, torch.rand(1, 3, 24, 40), normalisation="shred")


def test_a_block_that_was_not_measured_is_refused_with_those_that_were(small_vit):
    heatmaps = heatmap_array(small_vit, torch.rand(1, 3, 24, 40))
    assert "blocks.1" not in heatmaps
    with pytest.raises(UnknownNameError, match=r"'blocks\.1'.*'blocks\.0'"):
        heatmaps["blocks.1"]


def test_what_is_not_finite_is_an_error_and_not_a_blank_place(small_vit):
    images = torch.randn(2, 3, 24, 40)
    images[1, 0, 3, 3] = torch.nan
    with pytest.raises(DataError, match=r"What was measured at blocks\.0 is not finite"):
        heatmap_array(small_vit, images, "blocks.0")


@pytest.mark.parametrize("shape", [(1, 1, 24, 40), (1, 3, 25, 40)], ids=["channels", "size"])
def test_images_that_the_model_does_not_take_are_an_error(small_vit, shape):
    with pytest.raises(RepresentationError, match=rf"takes images \(batch, 3, 24, 40\), got \({shape[0]}, {shape[1]}"):
        heatmap_array(small_vit, torch.randn(shape), "blocks.0")
