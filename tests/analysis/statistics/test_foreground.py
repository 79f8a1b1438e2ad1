import numpy as np
import pytest
import torch

from repshift.analysis.demo.comparison import tokens_on_digit
from repshift.analysis.statistics.foreground import Foreground, masks_of_boxes, share_on_foreground, tokens_on_masks
from repshift.errors import DataError


@pytest.mark.parametrize(("grid", "size"), [((16, 16), (64, 64)), ((3, 5), (24, 40)), ((7, 7), (64, 64))])
def test_tokens_on_the_mask_of_a_box_are_those_on_the_box(grid, size):
    boxes = torch.tensor([[0, 0, 5, 9], [3, 7, 20, 33], [6, 2, 7, 3], [0, 0, *size]])
    found = tokens_on_masks(masks_of_boxes(boxes, size), grid)
    assert torch.equal(found, tokens_on_digit(boxes, grid, size))


def test_the_share_is_that_of_the_highest_tokens():
    scores = torch.rand(6, 40, generator=torch.Generator().manual_seed(0))
    foreground = torch.rand(6, 40, generator=torch.Generator().manual_seed(1)) < 0.4
    for count in (1, 5, 40):
        order = np.argsort(-scores.numpy(), axis=1)[:, :count]
        expected = np.take_along_axis(foreground.numpy(), order, 1).mean(1)
        assert share_on_foreground(scores, foreground, count).numpy() == pytest.approx(expected)


def test_of_tied_tokens_each_has_its_part_of_the_last_places():
    scores = torch.tensor([[3.0, 1, 1, 1, 0]])
    foreground = torch.tensor([[True, True, False, False, False]])
    assert share_on_foreground(scores, foreground, 2).item() == pytest.approx((1 + 1 / 3) / 2)
    assert share_on_foreground(scores, foreground.roll(1, 1), 2).item() == pytest.approx((0 + 2 / 3) / 2)


def test_a_score_that_ranks_nothing_is_as_good_as_chance():
    foreground = torch.rand(3, 50) < 0.3
    shares = share_on_foreground(torch.ones(3, 50), foreground, 5)
    assert torch.allclose(shares, foreground.float().mean(1))


def masks():
    return masks_of_boxes(torch.tensor([[0, 0, 8, 8], [8, 8, 16, 16], [0, 0, 0, 0]]), (16, 16))


def test_a_map_of_the_object_finds_it_and_one_of_the_rest_does_not():
    found = Foreground()
    inside = tokens_on_masks(masks(), (4, 4)).reshape(3, 4, 4).float()
    found.update({"good": {"layer": inside}, "bad": {"layer": 1 - inside}}, masks())
    good, bad = (found.tallies[name, "layer"].summary() for name in ("good", "bad"))
    assert (good["pointing"], good["top"], bad["pointing"], bad["top"]) == (1, 1, 0, 0)
    assert good["chance"] == bad["chance"] == pytest.approx(4 / 16)


def test_images_without_an_object_say_nothing():
    found = Foreground()
    found.update({"any": {"layer": torch.rand(3, 4, 4)}}, masks())
    assert found.tallies["any", "layer"].images == 2


def test_batches_and_processes_add_up():
    maps = torch.rand(3, 4, 4)
    whole, one, other = Foreground(), Foreground(), Foreground()
    whole.update({"any": {"layer": maps}}, masks())
    one.update({"any": {"layer": maps[:1]}}, masks()[:1])
    other.update({"any": {"layer": maps[1:]}}, masks()[1:])
    one.merge(other)
    assert one.tallies["any", "layer"].summary() == pytest.approx(whole.tallies["any", "layer"].summary())


def test_there_must_be_a_mask_for_each_image():
    with pytest.raises(DataError, match="2 masks for 3 images"):
        Foreground().update({"any": {"layer": torch.rand(3, 4, 4)}}, masks()[:2])
