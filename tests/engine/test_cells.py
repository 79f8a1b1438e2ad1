"""The best token of each part of the image stays, against plain loops over cells and tokens."""

import pytest
import torch

from repshift import Recipe, RepresentationError, ScheduleError, ShiftTracker, UnsupportedModelError, load_model
from repshift.cells import CellPruner
from repshift.layouts import TokenSequence
from repshift.pruners import PRUNERS, Candidates, TokenPruner
from repshift.registry import read, written


def kept_by_hand(scores, places, whole, left, side=2):
    """Take the best tokens of the cells one after the other, then the best of the rest."""
    best = {}
    for token, place in enumerate(places):
        cell = place // whole[1] // side, place % whole[1] // side
        if cell not in best or scores[token] > scores[best[cell]]:
            best[cell] = token
    order = sorted(best.values(), key=lambda token: -scores[token])
    order += sorted(set(range(len(places))) - set(order), key=lambda token: -scores[token])
    return sorted(order[:left])


def choose(pruner, scores, places, whole, drop, sizes=None):
    tokens = torch.zeros(*scores.shape, 3)
    return pruner.choose(Candidates(tokens, TokenSequence(), scores, sizes, places=places, whole=whole), drop)


@pytest.mark.parametrize("whole", [(6, 6), (5, 7), (4, 9), (1, 8), (2, 2)])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("side", [2, 3])
def test_the_best_of_each_cell_come_first_and_then_the_best_of_the_others(whole, share, side):
    count = whole[0] * whole[1]
    for there in (count, max(2, count * 2 // 3)):
        scores = torch.rand(4, there)
        places = torch.stack([torch.randperm(count)[:there].sort().values for _ in range(4)])
        selection = choose(CellPruner(side), scores, places, whole, share)
        left = there - int(share * there + 1e-9)
        expected = [
            kept_by_hand(score.tolist(), place.tolist(), whole, left, side)
            for score, place in zip(scores, places, strict=True)
        ]
        assert selection is None if left == there else selection.kept.tolist() == expected


def test_padding_is_nobodys_best():
    scores = torch.tensor([[-torch.inf, 1.0, 2.0, 3.0, 5.0, 4.0, 7.0, 6.0]])
    # the first cell holds padding alone
    places = torch.tensor([[0, 2, 3, 6, 8, 9, 12, 13]])
    assert choose(CellPruner(), scores, places, (4, 4), 1).kept.tolist() == [[1, 2, 3, 4, 5, 6, 7]]


def test_counts_and_shares_that_leave_nothing_or_all():
    scores, places = torch.rand(2, 4), torch.arange(4).expand(2, -1)
    assert choose(CellPruner(), scores, places, (2, 2), 0.2) is None
    with pytest.raises(ScheduleError, match="fewer than one of the 4 tokens"):
        choose(CellPruner(), scores, places, (2, 2), 4)
    with pytest.raises(ScheduleError, match="rows and columns in a cell"):
        CellPruner(0)


def test_places_that_nobody_knows_are_asked_for():
    with pytest.raises(UnsupportedModelError, match=r"places of the tokens behind this block.*wants_places"):
        choose(CellPruner(), torch.rand(1, 4), None, None, 1)


def test_larger_cells_are_written_down():
    assert read(PRUNERS, written(PRUNERS, CellPruner(3))) == CellPruner(3)


# --- within models ------------------------------------------------------------------------------------------------


def expected_in(model, images, drops, whole):
    """Follow the places through the cuts by hand, given the scores that a tracker sees."""
    pruned = ShiftTracker(model).prune(drops, pruner="cells")
    tracker = ShiftTracker(pruned).run(images)
    places = [list(range(whole[0] * whole[1])) for _ in images]
    for block, drop in drops.items():
        name = list(tracker.shifts)[block]
        scores = tracker.shifts[name].tolist()
        places = [
            [place[token] for token in kept_by_hand(score, place, whole, len(place) - drop)]
            for score, place in zip(scores, places, strict=True)
        ]
        assert tracker.kept[name].tolist() == places
    return tracker


def test_cells_are_those_of_the_whole_grid_behind_several_cuts(build_vit):
    model = build_vit(img_size=(20, 28), reg_tokens=2)
    tracker = expected_in(model, torch.randn(3, 3, 20, 28), {0: 8, 1: 6, 2: 5}, (5, 7))
    plain = ShiftTracker(ShiftTracker(model).prune("8@0")).run(torch.randn(3, 3, 20, 28))
    assert tracker.kept["blocks.0"].tolist() != plain.kept["blocks.0"].tolist()


def test_cells_follow_the_images_where_the_model_does(build_vit):
    model = build_vit(dynamic_img_size=True)
    for rows, columns in ((32, 32), (12, 40), (20, 8)):
        expected_in(model, torch.randn(2, 3, rows, columns), {0: 3, 1: 2}, (rows // 4, columns // 4))


def test_cells_are_those_of_state_space_models_too():
    expected_in(load_model("tiny_vim", pretrained=True), torch.rand(2, 3, 64, 64), {0: 20, 1: 20}, (8, 8))


def test_the_limit_and_the_bottom_have_cells(vit, images):
    for settings in ({"score": "oracle_free"}, {"keep": "bottom"}, {"score": "random"}):
        pruned = ShiftTracker(vit).prune(Recipe("0.5@0,2", pruner="cells", **settings))
        kept = ShiftTracker(pruned).run(images).kept["blocks.0"]
        assert all(len({(place // 16, place % 8 // 2) for place in each}) == 16 for each in kept.tolist())


def test_cells_are_found_in_one_graph(vit, images, fresh_dynamo):
    pruned = ShiftTracker(vit).prune("0.5@0;9@1", pruner="cells")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(pruned, backend="eager", fullgraph=True)(images), pruned(images))


def test_the_copy_asks_its_own_embedding(vit):
    pruned = ShiftTracker(vit).prune("0.5@0", pruner="cells")
    (grid,) = [role.grid for role in pruned.patch_embed.repshift_roles if hasattr(role, "grid")]
    assert grid.__self__ is pruned.patch_embed


def test_blocks_that_get_other_tokens_than_the_images_give_are_refused(vit, images):
    class Padded(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x, x[:, -1:]], dim=1)

    vit.norm_pre = Padded()
    with pytest.raises(RepresentationError, match=r"65 tokens entered the blocks.*8x8"):
        ShiftTracker(vit).prune("0.5@0", pruner="cells")(images)


def test_models_of_an_unknown_grid_are_refused(vit, register):
    from dataclasses import replace

    from repshift.backbones.vit import VIT

    class Unknown:
        matches = VIT.matches

        def structure(self, model):
            return replace(VIT.structure(model), grid=None)

    register(Unknown())
    with pytest.raises(UnsupportedModelError, match=r"CellPruner asks where the tokens stood.*pruner='tokens'"):
        ShiftTracker(vit).prune("0.5@0", pruner="cells")
    ShiftTracker(vit).prune("0.5@0", pruner=TokenPruner())
