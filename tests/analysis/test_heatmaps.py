import pytest
import torch

from repshift import ShiftTracker
from repshift.analysis.heatmaps import shift_maps


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
