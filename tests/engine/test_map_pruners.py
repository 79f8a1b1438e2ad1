"""Lines that stay by their places alone, against plain loops."""

from itertools import pairwise

import pytest
import torch

from repshift import Recipe, ScheduleError, ShiftTracker, UnknownNameError, load_model, recipe_of
from repshift.layouts import FeatureMap
from repshift.pruners import PRUNERS, Candidates, FixedLinePruner

NAMES = ("crop", "centre", "even")


def kept(name, rows, columns, drop, batch=2):
    candidates = Candidates(torch.zeros(batch, 3, rows, columns), FeatureMap(), None)
    return PRUNERS.get(name).choose(candidates, drop)


def lines_by_hand(name, side, stay):
    if name == "crop":
        return list(range(stay))
    if name == "centre":
        before = (side - stay) // 2
        return list(range(side))[before : before + stay]
    # the line under the centre of each of so many equal parts
    return [next(line for line in range(side) if (2 * part + 1) * side < 2 * stay * (line + 1)) for part in range(stay)]


@pytest.mark.parametrize(("sides", "drop"), [((7, 10), 3), ((7, 10), 0.3), ((5, 4), 1), ((9, 6), 5), ((56, 28), 12)])
@pytest.mark.parametrize("name", NAMES)
def test_lines_stay_by_their_places(name, sides, drop):
    selection = kept(name, *sides, drop)
    going = [int(drop * side) if isinstance(drop, float) else drop for side in sides]
    rows, columns = (lines_by_hand(name, side, side - less) for side, less in zip(sides, going, strict=True))
    assert selection.grid == (len(rows), len(columns))
    assert selection.kept.tolist() == [[row * sides[1] + column for row in rows for column in columns]] * 2


def test_lines_that_go_evenly_lie_apart_as_evenly_as_can_be():
    for side in range(2, 40):
        for stay in range(1, side):
            lines = lines_by_hand("even", side, stay)
            assert lines == kept("even", side, side, side - stay, 1).kept[0, ::stay].div(side).int().tolist()
            gone = sorted(set(range(side)) - set(lines))
            apart = {second - first for first, second in pairwise(gone)}
            assert not apart or max(apart) - min(apart) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_share_of_less_than_one_line_leaves_the_map_alone(name):
    assert kept(name, 4, 4, 0.2) is None
    with pytest.raises(ScheduleError, match="fewer than one of the 4 rows"):
        kept(name, 4, 9, 4)


def test_what_is_no_way_to_choose_lines_is_refused():
    with pytest.raises(UnknownNameError, match=r"crop, centre, even.*'center'"):
        FixedLinePruner("center")


@pytest.mark.parametrize("name", NAMES)
def test_a_network_keeps_the_same_lines_of_every_image(name):
    recipe = Recipe("5@0;2@1", pruner=name)
    pruned = ShiftTracker(load_model("tiny_resnet", pretrained=True)).prune(recipe)
    places = ShiftTracker(pruned).run(torch.rand(2, 3, 64, 64)).kept
    assert places["layer1"].tolist() == kept(name, 32, 32, 5).kept.tolist()
    assert Recipe.from_json(recipe_of(pruned).to_json()) == recipe_of(pruned)
    assert f"drops 5 by {name}" in repr(pruned)
