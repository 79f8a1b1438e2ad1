"""Pruned convolutional networks against forwards written out in plain torch."""

from functools import partial

import pytest
import torch
from timm.layers import BlurPool2d, GroupNorm
from timm.models.res2net import Bottle2neck
from timm.models.resnest import ResNestBottleneck
from timm.models.resnet import BasicBlock, Bottleneck

from repshift import ShiftTracker

VARIANTS = {
    "anti-aliasing": (BasicBlock, {"aa_layer": BlurPool2d}),
    "squeeze and excitation": (Bottleneck, {"block_args": {"attn_layer": "se"}}),
    "groups of channels": (Bottleneck, {"cardinality": 4, "base_width": 32}),
    "wide": (Bottleneck, {"base_width": 128}),
    "drop path": (BasicBlock, {"drop_path_rate": 0.5}),
    "drop block": (BasicBlock, {"drop_block_rate": 0.5}),
    "strided stem": (BasicBlock, {"replace_stem_pool": True, "stem_type": "deep_tiered", "stem_width": 8}),
    "dilation": (Bottleneck, {"output_stride": 8}),
    "group norm": (BasicBlock, {"norm_layer": partial(GroupNorm, num_groups=4)}),
    "ResNeSt": (ResNestBottleneck, {"base_width": 64, "block_args": {"radix": 2, "avd": True}, "avg_down": True}),
    "Res2Net": (Bottle2neck, {"base_width": 64, "block_args": {"scale": 4}}),
}


def test_the_written_out_forward_without_drops_is_the_dense_model(net, model, images, written_out, assert_close):
    assert_close(written_out(net, model, images).logits, model(images))


def test_the_drops_of_these_tests_change_the_logits_by_far_more_than_the_tolerance(model, pruned, images):
    dense = model(images)
    assert (dense - pruned(images)).abs().max() > 1e-2 * dense.abs().max()


@pytest.mark.parametrize("reference", ["stage", "block"])
def test_pruned_logits_equal_a_written_out_forward(net, model, sized_images, reference, written_out, assert_close):
    pruned = ShiftTracker(model, operation=reference).prune(dict(net.drops))
    assert_close(pruned(sized_images), written_out(net, model, sized_images, net.drops, reference).logits)


def test_the_two_references_drop_different_lines(net, model, images, written_out):
    stage, block = (written_out(net, model, images, net.drops, reference).lines for reference in ("stage", "block"))
    assert stage != block


@pytest.fixture
def without_positions(kept_lines):
    """Drop the lowest positions of each row of every image, then of each column of what is left."""

    def shorten(x, scores, drop, channels_last):
        maps = []
        for image, score in zip(x, scores.tolist(), strict=True):
            image = image if channels_last else image.permute(1, 2, 0)
            places = [[(row, column) for column in kept_lines(values, drop)] for row, values in enumerate(score)]
            columns = []
            for places_of_column in zip(*places, strict=True):
                kept = kept_lines([score[row][column] for row, column in places_of_column], drop)
                columns.append(torch.stack([image[places_of_column[index]] for index in kept]))
            shortened = torch.stack(columns, dim=1)
            maps.append(shortened if channels_last else shortened.permute(2, 0, 1))
        return torch.stack(maps), None

    return shorten


@pytest.mark.parametrize("sized_images", ["non-square"], indirect=True)
def test_logits_pruned_by_positions_equal_a_written_out_forward(
    net, model, sized_images, written_out, assert_close, without_positions
):
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner="positions")
    expected = written_out(net, model, sized_images, net.drops, shorten=without_positions)
    assert_close(pruned(sized_images), expected.logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_resnet_equals_its_written_out_forward(images, variant, written_out, assert_close, build_resnet):
    block, options = VARIANTS[variant]
    net, model = build_resnet(block, (2, 2, 1, 1), **options)
    assert_close(
        ShiftTracker(model).prune({0: 4, 1: 1})(images), written_out(net, model, images, ((0, 4), (1, 1))).logits
    )
