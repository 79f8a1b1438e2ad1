from fractions import Fraction

import pytest
import torch

from repshift import ShiftTracker, UnknownNameError, UnsupportedModelError, load_model
from repshift.analysis.heatmaps import block_names, kept_mask, shift_maps, to_pixels


def covering(position, tokens, length):
    """The tokens that cover the largest part of one pixel along one side; more than one if the pixel is halved."""

    def overlap(token):
        start, end = Fraction(token * length, tokens), Fraction((token + 1) * length, tokens)
        return min(end, Fraction(position + 1)) - max(start, Fraction(position))

    best = max(overlap(token) for token in range(tokens))
    return [token for token in range(tokens) if overlap(token) == best]


@pytest.mark.parametrize(
    ("grid", "size"),
    [((4, 4), (16, 16)), ((2, 3), (14, 30)), ((3, 5), (7, 16)), ((14, 14), (45, 46)), ((1, 2), (1, 9))],
)
def test_every_pixel_has_the_value_of_the_token_that_covers_it(grid, size):
    rows, columns = grid
    maps = torch.arange(2 * rows * columns, dtype=torch.float32).reshape(2, rows, columns)
    enlarged = to_pixels(maps, size)
    assert enlarged.shape == (2, *size)
    of_row = [covering(row, rows, size[0]) for row in range(size[0])]
    of_column = [covering(column, columns, size[1]) for column in range(size[1])]
    for row in range(size[0]):
        for column in range(size[1]):
            allowed = maps[1][of_row[row]][:, of_column[column]]
            assert enlarged[1, row, column] in allowed


def test_tokens_that_were_dropped_stay_blank_when_enlarged():
    maps = torch.tensor([[[1.0, float("nan")], [2.0, 3.0]]])
    enlarged = to_pixels(maps, (4, 4))
    assert enlarged.isnan().sum() == 4
    assert enlarged[0, :2, 2:].isnan().all()


def test_the_mask_marks_exactly_the_kept_positions():
    kept = torch.tensor([[0, 4, 5], [1, 2, 3]])
    mask = kept_mask(kept, (2, 3))
    assert mask.dtype == torch.bool
    for image in range(2):
        for row in range(2):
            for column in range(3):
                assert mask[image, row, column].item() == (row * 3 + column in kept[image].tolist())


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


def test_the_first_the_middle_and_the_last_block_are_shown_by_default(small_vit):
    assert block_names(small_vit, torch.rand(1, 3, 24, 40)) == ["blocks.0", "blocks.2", "blocks.3"]


def test_blocks_are_shown_in_the_order_asked_for(small_vit):
    assert block_names(small_vit, torch.rand(1, 3, 24, 40), [3, 1]) == ["blocks.3", "blocks.1"]


@pytest.mark.parametrize("block", [-1, 4])
def test_a_block_out_of_range_is_refused_with_the_range(small_vit, block):
    with pytest.raises(UnknownNameError, match=rf"no block {block} .* 0 to 3"):
        block_names(small_vit, torch.rand(1, 3, 24, 40), [0, block])


def test_blocks_of_a_model_without_a_backbone_are_found_by_running_it():
    names = block_names(load_model("darknet53"), torch.rand(1, 3, 64, 64), [0])
    assert names == ["stages.0.blocks.0"]


def test_a_model_without_blocks_is_refused_with_what_to_do():
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    with pytest.raises(UnsupportedModelError, match="Name the modules"):
        block_names(plain, torch.rand(1, 3, 8, 8))
