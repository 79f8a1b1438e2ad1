from fractions import Fraction

import numpy as np
import pytest
import torch

from repshift.analysis.overlays import dim_dropped, kept_mask, show_map_on_image, to_pixels
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


def test_what_is_kept_stays_as_it_is_and_what_is_dropped_turns_grey():
    images = torch.rand(1, 4, 6, 3)
    kept = torch.tensor([[[True, False, True], [False, False, True]]])
    dimmed = dim_dropped(images, kept)
    covered = kept.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(dimmed[covered], images[covered])
    assert torch.allclose(dimmed[~covered], 0.25 * images[~covered] + 0.375)
