import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch import nn

from repshift.analysis.statistics.imputation import impute
from repshift.analysis.statistics.removal import KINDS, SHARES, Removal, area, changed, places

DELETION, INSERTION, ROAD_MOST, ROAD_LEAST = KINDS


# --- filling in -------------------------------------------------------------------------------------------------


def solved(image, missing):
    """Write the equations of the paper out, pixel by pixel, and solve them exactly."""
    rows, columns = image.shape
    equations, right = lil_matrix((rows * columns, rows * columns)), np.zeros(rows * columns)
    for row in range(rows):
        for column in range(columns):
            here = row * columns + column
            if not missing[row, column]:
                equations[here, here], right[here] = 1, image[row, column]
                continue
            for down in (-1, 0, 1):
                for along in (-1, 0, 1):
                    y, x = row + down, column + along
                    if (down or along) and 0 <= y < rows and 0 <= x < columns:
                        weight = 1 / 12 if down and along else 1 / 6
                        equations[here, here] += weight
                        equations[here, y * columns + x] -= weight
    return spsolve(equations.tocsr(), right).reshape(rows, columns)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_missing_pixels_solve_the_equations_of_their_neighbours(share):
    generator = torch.Generator().manual_seed(2)
    images, missing = torch.rand(2, 3, 9, 13, generator=generator), torch.rand(2, 9, 13, generator=generator) < share
    found = impute(images, missing, noise=0)
    for image in range(2):
        for channel in range(3):
            expected = solved(images[image, channel].double().numpy(), missing[image].numpy())
            assert found[image, channel].numpy() == pytest.approx(expected, abs=5e-3)


def test_a_slope_goes_on_through_a_hole():
    slope = (torch.arange(12.0)[:, None] + 2 * torch.arange(12.0)).expand(1, 1, 12, 12)
    missing = torch.zeros(1, 12, 12, dtype=torch.bool)
    missing[:, 4:8, 3:9] = True
    assert torch.allclose(impute(slope.contiguous(), missing, noise=0), slope, atol=0.05)


def test_what_is_known_stays_and_what_was_removed_does_not_matter():
    images, missing = torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8) < 0.5
    hidden = images.masked_fill(missing.unsqueeze(1), 99.0)
    found = impute(hidden, missing, noise=0)
    assert torch.equal(found[~missing.unsqueeze(1).expand_as(found)], images[~missing.unsqueeze(1).expand_as(images)])
    assert torch.equal(found, impute(images, missing, noise=0))


def test_a_grey_picture_is_filled_in_as_one_of_colours_is():
    grey, missing = torch.rand(2, 1, 8, 8).expand(2, 3, 8, 8), torch.rand(2, 8, 8) < 0.5
    colours = torch.cat([grey, grey * 0 + torch.rand(2, 1, 8, 8)], 1)
    assert torch.allclose(impute(grey, missing, noise=0), impute(colours, missing, noise=0)[:, :3], atol=1e-5)


def test_a_picture_without_any_known_pixel_becomes_the_mean():
    assert torch.equal(impute(torch.rand(1, 3, 8, 8), torch.ones(1, 8, 8).bool(), noise=0), torch.zeros(1, 3, 8, 8))


def test_noise_is_added_where_pixels_are_missing_only():
    images, missing = torch.zeros(1, 1, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    missing[:, :32] = True
    found = impute(images, missing, noise=0.5)
    assert found[:, :, 32:].abs().max() == 0
    assert float(found[:, :, :32].std()) == pytest.approx(0.5, rel=0.1)


# --- the order --------------------------------------------------------------------------------------------------


def test_every_pixel_has_the_place_of_its_token():
    maps = torch.tensor([[[3.0, 9.0], [5.0, 1.0]]])
    expected = torch.tensor([[0.5, 0.0], [0.25, 0.75]]).repeat_interleave(3, 0).repeat_interleave(2, 1)
    assert torch.equal(places(maps, (6, 4))[0], expected)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_as_many_pixels_are_changed_as_the_share_says(kind):
    where = places(torch.rand(3, 10, 10), (20, 20))
    for share in SHARES:
        gone = 1 - share if kind.reversed else share
        assert changed(kind, share, where).float().mean().item() == pytest.approx(gone, abs=0.011)


def test_the_highest_go_first_or_last():
    maps = torch.arange(100.0).reshape(1, 10, 10)
    where = places(maps, (10, 10))
    assert set(maps[changed(DELETION, 0.1, where)].tolist()) == set(range(90, 100))
    assert set(maps[changed(ROAD_MOST, 0.1, where)].tolist()) == set(range(90, 100))
    assert set(maps[changed(ROAD_LEAST, 0.1, where)].tolist()) == set(range(10))
    assert set(maps[~changed(INSERTION, 0.1, where)].tolist()) == set(range(90, 100))


# --- curves -----------------------------------------------------------------------------------------------------


class Corner(nn.Module):
    """Says class 1 as surely as the corner of the picture is bright."""

    def forward(self, images):
        brightness = images[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(brightness), 8 * (brightness - 0.5)], 1)


@pytest.fixture
def bright():
    images = torch.full((2, 3, 16, 16), -1.0)
    images[:, :, :4, :4] = 1
    return images


def corner_first():
    maps = torch.zeros(2, 4, 4)
    maps[:, 0, 0] = 1
    return maps


def test_a_score_that_finds_what_matters_is_better_in_every_curve(bright):
    removal = Removal()
    removal.update(Corner(), bright, {"right": {"a": corner_first()}, "wrong": {"a": -corner_first()}})
    for kind in KINDS:
        right, wrong = (area(removal.curve(kind.name, name, "a")) for name in ("right", "wrong"))
        assert (right > wrong) == kind.higher_is_better, kind.name


def test_a_curve_is_what_the_model_says_of_the_changed_pictures(bright):
    maps = torch.rand(2, 4, 4)
    removal = Removal([DELETION])
    removal.update(Corner(), bright, {"any": {"a": maps}})
    expected = []
    for share in SHARES:
        pictures = bright.clone()
        for image in range(2):
            count = int(np.ceil(share * 16 - 1e-6))
            for token in maps[image].flatten().argsort(descending=True)[:count].tolist():
                row, column = 4 * (token // 4), 4 * (token % 4)
                pictures[image, :, row : row + 4, column : column + 4] = 0
        expected.append(Corner()(pictures).softmax(1)[:, 1].mean().item())
    assert removal.curve("deletion", "any", "a") == pytest.approx(expected, abs=1e-6)


def test_whole_pictures_are_asked_for_once_a_kind(bright):
    calls = []
    model = Corner()
    model.register_forward_hook(lambda *args: calls.append(1))
    Removal([DELETION, ROAD_MOST]).update(model, bright, {"any": {"a": corner_first(), "b": corner_first()}})
    between = len(SHARES) - 2
    assert len(calls) == 1 + 2 * 2 + 2 * 2 * between  # the class, both ends a kind, and the rest


def test_batches_and_processes_add_up_to_one_curve(bright):
    maps = torch.rand(2, 4, 4)
    whole, one, other = Removal([DELETION]), Removal([DELETION]), Removal([DELETION])
    whole.update(Corner(), bright, {"any": {"a": maps}})
    one.update(Corner(), bright[:1], {"any": {"a": maps[:1]}})
    other.update(Corner(), bright[1:], {"any": {"a": maps[1:]}})
    one.merge(other)
    assert one.curve("deletion", "any", "a") == pytest.approx(whole.curve("deletion", "any", "a"))


def test_the_area_is_that_of_trapezoids():
    values = [1.0, 0.8, 0.5, 0.5, 0.3, 0.2, 0.1, 0.0]
    assert area(values) == pytest.approx(
        np.trapezoid(values, SHARES) if hasattr(np, "trapezoid") else np.trapz(values, SHARES)
    )
