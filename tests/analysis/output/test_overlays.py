from fractions import Fraction

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from repshift.analysis.output.overlays import (
    blend_merged,
    dim_dropped,
    group_outlines,
    kept_mask,
    show_map_on_image,
    to_pixels,
)
from repshift.errors import DataError, UnknownNameError


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


def test_merged_places_come_half_way_to_their_mean_colour_and_others_stay():
    images = torch.rand(2, 4, 6, 3)
    groups = torch.tensor([[[0, 1, 0], [2, -1, -1]], [[3, 3, 3], [0, 1, 2]]])
    blended = blend_merged(images, groups)
    expected = images.clone()
    apart = images[0, :2].reshape(2, 3, 2, 3)[:, ::2]  # the first and the last of three tokens, 2x2 pixels each
    expected[0, :2].reshape(2, 3, 2, 3)[:, ::2] = (apart + apart.mean((0, 1, 2))) / 2
    expected[1, :2] = (images[1, :2] + images[1, :2].mean((0, 1))) / 2
    assert torch.allclose(blended, expected, atol=1e-6)


def test_outlines_stand_between_places_of_different_tokens():
    groups = torch.tensor([[0, 0, 1], [0, 2, 1]])
    lines = {tuple(map(tuple, line)) for line in group_outlines(groups, (20, 60)).tolist()}
    assert lines == {
        ((40, 0), (40, 10)), ((20, 10), (20, 20)), ((40, 10), (40, 20)),  # upright
        ((20, 10), (40, 10)),  # level
    }  # fmt: skip
    assert group_outlines(torch.zeros(2, 3, dtype=torch.int64), (20, 60)).shape == (0, 2, 2)


def test_what_is_kept_stays_as_it_is_and_what_is_dropped_turns_grey():
    images = torch.rand(1, 4, 6, 3)
    kept = torch.tensor([[[True, False, True], [False, False, True]]])
    dimmed = dim_dropped(images, kept)
    covered = kept.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(dimmed[covered], images[covered])
    assert torch.allclose(dimmed[~covered], 0.25 * images[~covered] + 0.375)


# --- maps over pictures -----------------------------------------------------------------------------------------


@pytest.fixture
def picture():
    return np.random.RandomState(0).rand(6, 10, 3)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("colormap", ["viridis", "jet"])
def test_a_map_over_a_picture_is_the_weighted_mean_of_colours_and_picture(picture, weight, colormap):
    heatmap = np.random.RandomState(1).rand(3, 5).astype(np.float32)
    shown = show_map_on_image(picture, heatmap, colormap=colormap, image_weight=weight)
    table = colormaps[colormap](np.arange(256))[:, :3]
    assert shown.dtype == np.uint8
    assert shown.shape == (6, 10, 3)
    for row in range(6):
        for column in range(10):
            colour = table[min(int(heatmap[row // 2, column // 2] * 256), 255)]
            expected = 255 * (weight * picture[row, column] + (1 - weight) * colour)
            assert np.abs(shown[row, column] - expected).max() <= 0.5 + 1e-3


def test_a_map_as_large_as_the_picture_colours_each_pixel(picture):
    heatmap = np.random.RandomState(1).rand(6, 10)
    shown = show_map_on_image(picture, heatmap, image_weight=0)
    assert np.abs(shown - 255 * colormaps["viridis"](heatmap)[..., :3]).max() <= 0.5 + 1e-9


def test_tensors_are_taken_too(picture):
    heatmap = np.random.RandomState(1).rand(3, 5)
    of_tensors = show_map_on_image(torch.from_numpy(picture), torch.from_numpy(heatmap))
    assert np.array_equal(of_tensors, show_map_on_image(picture, heatmap))


def test_the_picture_is_faded_where_the_map_has_no_value(picture):
    heatmap = np.full((3, 5), np.nan)
    heatmap[0, 0] = 1
    shown = show_map_on_image(picture, heatmap)
    faded = 255 * (0.25 * picture + 0.75 * 0.5)
    assert np.abs(shown - faded)[2:].max() <= 0.5 + 1e-9
    assert np.abs(shown - faded)[:2, 2:].max() <= 0.5 + 1e-9
    assert np.abs(shown - faded)[:2, :2].max() > 1


BAD = {
    "8-bit picture": ({"image": np.zeros((6, 10, 3), np.uint8)}, r"picture is .*uint8.*255"),
    "bright picture": ({"image": 255 * np.ones((6, 10, 3))}, r"values in 0\.\.1, got 255"),
    "channels first": ({"image": np.zeros((3, 6, 10))}, r"\(rows, columns, 3\).*\(3, 6, 10\)"),
    "batch of maps": ({"heatmap": np.zeros((2, 3, 5))}, r"map is .*\(2, 3, 5\).*one image of a batch"),
    "map as measured": ({"heatmap": np.full((3, 5), 7.5)}, r"got 7\.5 to 7\.5.*normalisation='map'"),
    "negative map": ({"heatmap": np.full((3, 5), -0.1)}, r"got -0\.1"),
    "infinite map": ({"heatmap": np.full((3, 5), np.inf)}, "got inf"),
    "empty map": ({"heatmap": np.zeros((0, 5))}, r"got \(0, 5\)"),
    "weight": ({"image_weight": 1.5}, r"image_weight .*1\.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_laid_over_each_other_is_refused_with_what_to_do(picture, case):
    given, message = BAD[case]
    with pytest.raises(DataError, match=message):
        show_map_on_image(**{"image": picture, "heatmap": np.zeros((3, 5)), **given})


def test_an_unknown_colour_map_is_refused_with_the_closest(picture):
    with pytest.raises(UnknownNameError, match=r"'virids'.*'viridis'"):
        show_map_on_image(picture, np.zeros((3, 5)), colormap="virids")
