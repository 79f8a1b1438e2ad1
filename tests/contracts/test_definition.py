"""The pruned logits against forwards written out in plain torch: the definition applied block by block."""

import itertools
from functools import partial

import pytest
import timm
import torch
from timm.layers import SwiGLU
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from timm.models.vision_transformer_hybrid import ConvStem

from repshift import ShiftTracker, UnsupportedModelError

# 64 patches -> 48 -> 37 -> 19, written out so that no rounding rule is shared with the product
DROPS = {0: 0.25, 1: 11, 2: 0.5}
COUNTS_64 = {0: 16, 1: 11, 2: 18}


# --- the definition, written out ---------------------------------------------------------------------------------


def pre_norm_branches(block, x):
    attn = block.ls1(block.attn(block.norm1(x)))
    between = x + attn
    mlp = block.ls2(block.mlp(block.norm2(between)))
    return attn, between, mlp, between + mlp


def post_norm_branches(block, x):
    attn = block.norm1(block.attn(x))
    between = x + attn
    mlp = block.norm2(block.mlp(between))
    return attn, between, mlp, between + mlp


def parallel_branches(block, x):
    attn = sum(branch.ls(branch.attn(branch.norm(x))) for branch in block.attns)
    between = x + attn
    mlp = sum(branch.ls(branch.mlp(branch.norm(between))) for branch in block.ffns)
    return attn, between, mlp, between + mlp


def joint_branches(block, x):
    return None, None, None, block(x)


def distance_between(a, b, distance):
    if distance == "l2":
        return (a - b).square().sum(-1).sqrt()
    if distance == "l1":
        return (a - b).abs().sum(-1)
    return 1 - (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())


def written_out(model, images, counts, prefix, branches, operation="mlp", distance="l2", residual=False):
    """Return the logits and the positions kept, both from the definition alone."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    kept = {}
    for index, block in enumerate(model.blocks):
        attn, between, mlp, y = branches(block, x)
        before, branch = {"attn": (x, attn), "mlp": (between, mlp), "block": (x, None)}[operation]
        after = y if operation == "block" else before + branch if residual else branch
        scores = distance_between(after, before, distance)[:, prefix:]
        x = y
        if index in counts:
            order = scores.sort(dim=1, descending=True)
            count = scores.shape[1] - counts[index]
            margin = (order.values[:, count - 1] - order.values[:, count]) / order.values[:, count]
            assert margin.min() > 1e-5, "the scores nearly tie: the comparison would depend on rounding"
            rows = []
            for image, positions in zip(x, order.indices[:, :count], strict=True):
                patches = image[prefix:]
                rows.append(torch.cat([image[:prefix], patches[positions.sort().values]]))
            kept[index] = order.indices[:, :count].sort(dim=1).values
            x = torch.stack(rows)
    return model.forward_head(model.norm(x)), kept


SETTINGS = list(itertools.product(("attn", "mlp", "block"), ("l2", "l1", "cosine"), (False, True)))


@pytest.mark.parametrize(("operation", "distance", "residual"), SETTINGS)
def test_pruned_logits_equal_a_written_out_forward(vit, images, operation, distance, residual):
    pruned = ShiftTracker(vit, operation=operation, distance=distance, residual=residual).prune(DROPS)
    with torch.no_grad():
        expected, _ = written_out(vit, images, COUNTS_64, 1, pre_norm_branches, operation, distance, residual)
        actual = pruned(images)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_every_setting_keeps_different_tokens_so_the_comparison_can_tell_them_apart(vit, images):
    # a block contains the residuals either way, so it has one setting a distance
    settings = [setting for setting in SETTINGS if setting[0] != "block" or not setting[2]]
    with torch.no_grad():
        choices = [written_out(vit, images, COUNTS_64, 1, pre_norm_branches, *setting)[1][0] for setting in settings]
    for one, other in itertools.combinations(choices, 2):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_a_block_is_scored_alike_with_either_residual_setting(vit, images, distance):
    outside = ShiftTracker(vit, operation="block", distance=distance, residual=False).prune(DROPS)
    inside = ShiftTracker(vit, operation="block", distance=distance, residual=True).prune(DROPS)
    assert torch.equal(outside(images), inside(images))


@pytest.mark.parametrize(("operation", "distance", "residual"), SETTINGS)
def test_tracked_shifts_equal_the_definition_at_every_block(vit, images, operation, distance, residual):
    with ShiftTracker(vit, operation=operation, distance=distance, residual=residual) as tracker, torch.no_grad():
        vit(images)
    with torch.no_grad():
        x = vit._pos_embed(vit.patch_embed(images))
        for index, block in enumerate(vit.blocks):
            attn, between, mlp, y = pre_norm_branches(block, x)
            before, branch = {"attn": (x, attn), "mlp": (between, mlp), "block": (x, None)}[operation]
            after = y if operation == "block" else before + branch if residual else branch
            expected = distance_between(after, before, distance)[:, 1:]
            torch.testing.assert_close(tracker.shifts[f"blocks.{index}"], expected, atol=2e-5, rtol=1e-5)
            x = y


# --- every shape of vision transformer ---------------------------------------------------------------------------


def conv_stem():
    stem = ConvStem(depth=2, channels=(8, 16), stride=(2, 2))
    return {"patch_size": 1, "embed_layer": partial(HybridEmbed, backbone=stem)}


# options, prefix tokens, how a block is written out
SHAPES = {
    "class token": ({}, 1, pre_norm_branches),
    "distillation token": ({"model_class": VisionTransformerDistilled}, 2, pre_norm_branches),
    "registers": ({"reg_tokens": 4}, 5, pre_norm_branches),
    "registers alone": ({"reg_tokens": 4, "class_token": False, "global_pool": "avg"}, 4, pre_norm_branches),
    "average pooling": ({"class_token": False, "global_pool": "avg"}, 0, pre_norm_branches),
    "average pooling beside a class token": ({"global_pool": "avg"}, 1, pre_norm_branches),
    "map pooling": ({"class_token": False, "global_pool": "map"}, 0, pre_norm_branches),
    "layer scale": ({"init_values": 0.1}, 1, pre_norm_branches),
    "res-post-norm": ({"block_fn": ResPostBlock}, 1, post_norm_branches),
    "parallel branches": ({"block_fn": ParallelThingsBlock, "init_values": 0.1}, 1, parallel_branches),
    "query and key norm": ({"qk_norm": True}, 1, pre_norm_branches),
    "differential attention": ({"attn_layer": "diff"}, 1, pre_norm_branches),
    "scaled norms": ({"scale_attn_norm": True, "scale_mlp_norm": True}, 1, pre_norm_branches),
    "gated mlp": ({"mlp_layer": SwiGLU}, 1, pre_norm_branches),
    "positions without the class token": ({"no_embed_class": True, "init_values": 0.1}, 1, pre_norm_branches),
    "no positions": ({"pos_embed": "none", "class_token": False, "global_pool": "avg"}, 0, pre_norm_branches),
    "pre-norm": ({"pre_norm": True}, 1, pre_norm_branches),
    "conv stem": ("conv stem", 1, pre_norm_branches),
}
JOINT_BLOCKS = {"scaling": ParallelScalingBlock, "differential scaling": DiffParallelScalingBlock}


def build_shape(build_vit, name):
    options, prefix, branches = SHAPES[name]
    return build_vit(**(conv_stem() if options == "conv stem" else options)), prefix, branches


@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_vit_shape_equals_its_written_out_forward(build_vit, images, shape, operation):
    model, prefix, branches = build_shape(build_vit, shape)
    pruned = ShiftTracker(model, operation=operation).prune(DROPS)
    with torch.no_grad():
        expected, _ = written_out(model, images, COUNTS_64, prefix, branches, operation)
        torch.testing.assert_close(pruned(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", ["registers", "res-post-norm", "parallel branches", "layer scale"])
def test_residual_scores_equal_the_written_out_forward_beyond_the_plain_block(build_vit, images, shape):
    model, prefix, branches = build_shape(build_vit, shape)
    pruned = ShiftTracker(model, residual=True).prune(DROPS)
    with torch.no_grad():
        expected, _ = written_out(model, images, COUNTS_64, prefix, branches, residual=True)
        torch.testing.assert_close(pruned(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", JOINT_BLOCKS)
def test_joint_blocks_are_pruned_by_the_whole_block(build_vit, images, block):
    model = build_vit(block_fn=JOINT_BLOCKS[block])
    pruned = ShiftTracker(model, operation="block").prune(DROPS)
    with torch.no_grad():
        expected, _ = written_out(model, images, COUNTS_64, 1, joint_branches, "block")
        torch.testing.assert_close(pruned(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("operation", ["attn", "mlp"])
@pytest.mark.parametrize("block", JOINT_BLOCKS)
def test_joint_blocks_refuse_operations_that_they_do_not_have(build_vit, block, operation):
    model = build_vit(block_fn=JOINT_BLOCKS[block])
    with pytest.raises(UnsupportedModelError, match=rf"'{operation}'.*share one branch.*operation='block'"):
        ShiftTracker(model, operation=operation)


def test_a_non_square_image_on_a_dynamic_model_equals_the_written_out_forward(build_vit):
    model = build_vit(dynamic_img_size=True)
    images = torch.randn(2, 3, 24, 48)  # 6 x 12 = 72 patches -> 54 -> 43 -> 22
    pruned = ShiftTracker(model).prune(DROPS)
    with torch.no_grad():
        expected, _ = written_out(model, images, {0: 18, 1: 11, 2: 21}, 1, pre_norm_branches)
        torch.testing.assert_close(pruned(images), expected, atol=1e-5, rtol=0)


def test_a_cut_after_the_last_block_drops_its_tokens_too(build_vit, images):
    model = build_vit(class_token=False, global_pool="avg")
    pruned = ShiftTracker(model).prune({3: 0.5})
    with torch.no_grad():
        expected, _ = written_out(model, images, {3: 32}, 0, pre_norm_branches)
        torch.testing.assert_close(pruned(images), expected, atol=1e-5, rtol=0)


def test_a_share_drops_the_floor_of_its_tokens(vit, images):
    with ShiftTracker(ShiftTracker(vit).prune({1: 0.3})) as tracker, torch.no_grad():
        tracker.model(images)
    assert tracker.kept["blocks.1"].shape == (3, 64 - 19)  # 0.3 * 64 = 19.2


def test_kept_positions_equal_the_definition_and_count_from_the_first_patch(vit, images):
    pruned = ShiftTracker(vit).prune(DROPS)
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
        _, local = written_out(vit, images, COUNTS_64, 1, pre_norm_branches)
    first = local[0]
    second = torch.stack([row[chosen] for row, chosen in zip(first, local[1], strict=True)])
    third = torch.stack([row[chosen] for row, chosen in zip(second, local[2], strict=True)])
    for name, expected in {"blocks.0": first, "blocks.1": second, "blocks.2": third}.items():
        assert torch.equal(tracker.kept[name], expected)


def test_prefix_tokens_survive_a_cut_that_leaves_one_patch(build_vit, images):
    model = build_vit(reg_tokens=4)
    pruned = ShiftTracker(model).prune({0: 63})
    assert pruned.forward_features(images).shape == (3, 5 + 1, 32)


# --- the paper's counts ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned_deit():
    return ShiftTracker(timm.create_model("deit_tiny_patch16_224").eval()).prune({0: 0.2, 3: 0.2, 6: 0.2})


def test_deit_keeps_157_126_and_101_patches(pruned_deit):
    with ShiftTracker(pruned_deit) as tracker, torch.no_grad():
        pruned_deit(torch.randn(2, 3, 224, 224))
    assert {name: tuple(kept.shape) for name, kept in tracker.kept.items()} == {
        "blocks.0": (2, 157),
        "blocks.3": (2, 126),
        "blocks.6": (2, 101),
    }


def test_deit_attention_and_mlp_really_run_on_the_shorter_sequences(pruned_deit):
    tokens = {"attn": [], "mlp": []}
    handles = [
        getattr(block, part).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].shape[1]))
        for block in pruned_deit.blocks
        for part, seen in tokens.items()
    ]
    with torch.no_grad():
        pruned_deit(torch.randn(1, 3, 224, 224))
    for handle in handles:
        handle.remove()
    # a cut comes after the whole block, so block 0 itself still runs on all 197
    expected = [197] + 3 * [158] + 3 * [127] + 5 * [102]
    assert tokens == {"attn": expected, "mlp": expected}
