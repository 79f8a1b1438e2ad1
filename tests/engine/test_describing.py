"""What is said of models, trackers, registries and pruned models."""

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from repshift import (
    BACKBONES,
    DISTANCES,
    PRUNERS,
    Recipe,
    RepresentationError,
    ShiftTracker,
    UnknownNameError,
    UnsupportedModelError,
    describe,
    load_model,
)


def test_a_description_lists_what_can_be_done(vit):
    known = describe(vit)
    assert known.blocks == tuple(f"blocks.{number}" for number in range(4))
    assert known.tokens == 64
    assert known.grid(32, 32) == (8, 8)
    assert list(known.operations) == ["mlp", "attn", "block"]
    assert known.scores == ("shift", "norm", "random", "cls_attention", "mean_attention", "oracle_free")
    assert known.pruners == ("tokens", "cells", "mnn", "mnn1", "ward", "tome", "merge", "fuse", "saliency_merge")
    assert known.why_not is None


def test_everything_that_is_listed_works():
    images = torch.rand(2, 3, 64, 64)
    for name in ("tiny_vit", "tiny_resnet", "tiny_vim"):
        model = load_model(name, pretrained=True)
        known = describe(model)
        for operation, numbers in known.operations.items():
            for pruner in known.pruners:
                if getattr(PRUNERS.get(pruner), "before_mlp", False) and operation != "attn":
                    continue
                for score in known.scores if Recipe("4@0", pruner=pruner).scores else ["shift"]:
                    tracker = ShiftTracker(model, operation=operation)
                    assert tracker.prune({numbers[0]: 4}, pruner=pruner, score=score)(images).isfinite().all()


def test_what_is_missing_is_not_listed(build_vit):
    known_model = build_vit(block_fn=ParallelScalingBlock, class_token=False, global_pool="avg")
    known = describe(known_model)
    assert list(known.operations) == ["block"]
    assert known.scores == ("shift", "norm", "random", "oracle_free")
    assert not {"tome", "saliency_merge"}.intersection(known.pruners)
    with pytest.raises(UnsupportedModelError, match=r"no keys to compare tokens by.*'mnn'"):
        ShiftTracker(known_model, operation="block").prune("0.5@0", pruner="tome")


def test_an_operation_that_some_stages_lack_is_listed_with_those_that_have_it():
    import timm

    with torch.device("meta"):
        known = describe(timm.create_model("caformer_s18"))  # its last two stages hold sequences inside
    assert known.operations["block"] == (0, 1)
    assert "block (at 0, 1)" in str(known)


def test_stages_that_have_nothing_to_compare_with_are_not_counted():
    import timm

    known = describe(timm.create_model("efficientnet_b0"))
    assert known.blocks == ("blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5")


def test_a_model_that_is_not_served_is_described_with_the_reason():
    known = describe(nn.Linear(2, 2))
    assert known.structure is None
    assert "Linear belongs to no known backbone" in str(known)
    assert (known.blocks, known.tokens, known.grid(8, 8), known.operations) == ((), None, None, {})


def test_a_pruned_model_is_described_with_its_recipe(vit):
    assert "recipe: Recipe('0.5@0', operation='mlp', pruner='tokens')" in str(
        describe(ShiftTracker(vit).prune("0.5@0"))
    )


def test_a_pruned_model_keeps_the_names_of_its_classes_and_says_where_it_drops(vit):
    pruned = ShiftTracker(vit, operation="attn", distance="l1").prune({1: 16}, keep="bottom")
    assert repr(pruned) == repr(vit).replace(
        "(1): Block(\n", "(1): Block(\n      drops 16 by l1 of attn, keeps the bottom\n"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "ShiftTracker(VisionTransformer, l2 of mlp at blocks.0 to blocks.3 (4))"),
        ({"score": "norm", "sites": "blocks.2"}, "ShiftTracker(VisionTransformer, norm at blocks.2)"),
    ],
)
def test_a_tracker_says_what_it_watches(vit, options, said):
    assert repr(ShiftTracker(vit, **options)) == said


def test_a_registry_says_what_it_holds():
    assert repr(DISTANCES) == "Registry(distance: l2, l1, cosine)"
    assert repr(BACKBONES).startswith("Registry(backbone: vit, resnet, convnet, biased")


# --- what was recorded --------------------------------------------------------------------------------------------


@pytest.fixture
def tracker(vit, images):
    return ShiftTracker(vit).run(images)


def test_one_call_records_a_forward_without_gradients(vit, images):
    tracker = ShiftTracker(vit)
    assert tracker.run(images) is tracker
    assert torch.equal(tracker.output, vit(images))
    assert not tracker.output.requires_grad
    assert len(tracker.shifts) == 4


def test_blocks_can_be_named_by_number(tracker):
    assert torch.equal(tracker.shifts[2], tracker.shifts["blocks.2"])
    assert torch.equal(tracker.maps[-1], tracker.maps["blocks.3"])
    assert 3 in tracker.shifts
    assert 4 not in tracker.shifts
    with pytest.raises(UnknownNameError, match=r"Nothing is recorded for 4\. "):
        tracker.shifts[4]


def test_numbers_count_blocks_as_a_schedule_does(vit, images):
    tracker = ShiftTracker(ShiftTracker(vit).prune({1: 16, 3: 4}), "blocks.[13]").run(images)
    assert torch.equal(tracker.kept[3], tracker.kept["blocks.3"])
    assert torch.equal(tracker.shifts[1], tracker.shifts["blocks.1"])
    with pytest.raises(UnknownNameError, match="for 0"):
        tracker.kept[0]


def test_numbers_count_what_is_watched_where_no_backbone_lists_blocks(images):
    tracker = ShiftTracker(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), ["0", "1"]).run(images)
    assert torch.equal(tracker.shifts[1], tracker.shifts["1"])


def test_shifts_and_maps_are_stacked(tracker):
    assert torch.equal(tracker.shifts.stacked(), torch.stack(list(tracker.shifts.values())))
    assert tracker.maps.stacked().shape == (4, 3, 8, 8)


def test_shifts_of_several_shapes_are_not_stacked_but_their_maps_are(vit, images):
    tracker = ShiftTracker(ShiftTracker(vit).prune({1: 16})).run(images)
    with pytest.raises(RepresentationError, match=r"several shapes, \(3, 48\), \(3, 64\).*maps\.stacked"):
        tracker.shifts.stacked()
    assert tracker.maps.stacked().isnan().sum() == 2 * 3 * 16


def test_nothing_is_stacked_before_anything_is_recorded(vit):
    for records in (ShiftTracker(vit).shifts, ShiftTracker(vit).maps):
        with pytest.raises(UnknownNameError, match="Nothing is recorded"):
            records.stacked()


def test_records_show_their_shapes(tracker):
    assert repr(tracker.shifts).startswith("PerModule(blocks.0: (3, 64), blocks.1: (3, 64)")
    assert repr(tracker.maps).startswith("Maps(blocks.0: (8, 8), ")
