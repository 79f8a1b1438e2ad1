"""What each pruner takes away, against plain loops over images, rows and columns."""

import pickle

import pytest
import torch

from repshift import ScheduleError, UnsupportedModelError
from repshift.layouts import FeatureMap, TokenSequence, shortened
from repshift.pruners import PRUNERS, Candidates, LinePruner, PositionPruner, TokenPruner, check_layout

SIDES = [(6, 6), (5, 8), (9, 4)]
ON_MAPS = {"lines": LinePruner(), "positions": PositionPruner()}
every_pruner_of_maps = pytest.mark.parametrize("pruner", ON_MAPS.values(), ids=ON_MAPS)


def example(rows, columns, channels=3, batch=4):
    """A map whose every number is different, and scores."""
    value = torch.arange(float(batch * channels * rows * columns)).reshape(batch, channels, rows, columns)
    return value, torch.rand(batch, rows * columns)


def shorten(pruner, value, scores, drop, layout):
    """Let a pruner choose and apply it, as a cut does."""
    selection = pruner.choose(Candidates(value, layout, scores), drop)
    return (value, None) if selection is None else (shortened(layout, value, selection), selection.kept)


def highest(scores, count):
    """Positions of the highest scores, found one after the other; ascending."""
    left = list(range(len(scores)))
    while len(left) > count:
        left.remove(min(left, key=lambda position: scores[position]))
    return left


def lines_by_hand(score, rows, columns):
    """Kept positions of one image: whole rows and columns with the highest means."""
    means_of_rows = [sum(row) / len(row) for row in score]
    means_of_columns = [sum(column) / len(column) for column in zip(*score, strict=True)]
    width = len(score[0])
    return [
        row * width + column for row in highest(means_of_rows, rows) for column in highest(means_of_columns, columns)
    ]


def positions_by_hand(score, rows, columns):
    """Kept positions of one image: the highest of each row, then the highest of each column of what is left."""
    width = len(score[0])
    flat = [[row * width + column for column in highest(values, columns)] for row, values in enumerate(score)]
    columns_left = []
    for column in zip(*flat, strict=True):
        values = [score[position // width][position % width] for position in column]
        columns_left.append([column[index] for index in highest(values, rows)])
    return [column[row] for row in range(rows) for column in columns_left]


BY_HAND = {"lines": lines_by_hand, "positions": positions_by_hand}


@pytest.mark.parametrize("drop", [1, 2, 3])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", ON_MAPS)
def test_what_is_kept_of_each_image_equals_loops_over_its_own_scores(name, sides, drop):
    value, scores = example(*sides)
    _, kept = shorten(ON_MAPS[name], value, scores, drop, FeatureMap())
    expected = [BY_HAND[name](score.view(sides).tolist(), sides[0] - drop, sides[1] - drop) for score in scores]
    assert kept.tolist() == expected
    assert expected[0] != expected[1]


MEMORY = {
    "channels first": (FeatureMap(), lambda value: value),
    "channels first, last in memory": (FeatureMap(), lambda value: value.contiguous(memory_format=torch.channels_last)),
    "channels last": (FeatureMap(channels_last=True), lambda value: value.permute(0, 2, 3, 1).contiguous()),
    "channels last, first in memory": (FeatureMap(channels_last=True), lambda value: value.permute(0, 2, 3, 1)),
}


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("sides", SIDES)
@every_pruner_of_maps
def test_the_shorter_map_holds_the_kept_positions_in_their_order(pruner, sides, memory):
    value, scores = example(*sides)
    layout, held = MEMORY[memory]
    shorter, kept = shorten(pruner, held(value), scores, 2, layout)
    shorter = shorter.permute(0, 3, 1, 2) if layout.channels_last else shorter
    assert shorter.shape == (4, 3, sides[0] - 2, sides[1] - 2)
    for image, whole, positions in zip(shorter, value, kept.tolist(), strict=True):
        expected = [whole[:, position // sides[1], position % sides[1]].tolist() for position in positions]
        assert image.flatten(1).T.tolist() == expected


@pytest.mark.parametrize("memory", MEMORY)
@every_pruner_of_maps
def test_channels_that_lie_together_in_memory_still_do(pruner, memory):
    value, scores = example(5, 6)
    layout, held = MEMORY[memory]
    shorter, _ = shorten(pruner, held(value), scores, 1, layout)
    together = memory in ("channels first, last in memory", "channels last")
    if together:
        assert shorter.stride(-1 if layout.channels_last else 1) == 1
    elif not layout.channels_last:
        assert shorter.is_contiguous()


def test_lines_go_by_their_mean_and_not_by_their_highest_position():
    scores = torch.tensor([[9.0, 0.0, 1.0], [4.0, 4.0, 5.0], [5.0, 5.0, 6.0]])
    _, kept = shorten(LinePruner(), torch.zeros(1, 1, 3, 3), scores.view(1, 9), 1, FeatureMap())
    assert kept.tolist() == [[3, 5, 6, 8]]  # rows 1 and 2, columns 0 and 2


def test_positions_go_from_the_rows_before_they_go_from_the_columns():
    scores = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    _, kept = shorten(PositionPruner(), torch.zeros(1, 1, 2, 2), scores.view(1, 4), 1, FeatureMap())
    assert kept.tolist() == [[2]]
    scores = torch.tensor([[5.0, 9.0, 6.0], [8.0, 1.0, 2.0], [3.0, 4.0, 7.0]])
    _, kept = shorten(PositionPruner(), torch.zeros(1, 1, 3, 3), scores.view(1, 9), 1, FeatureMap())
    # rows leave 9 6 | 8 2 | 4 7 at positions 1 2 | 3 5 | 7 8; then the columns lose 4 and 2
    assert kept.tolist() == [[1, 2, 3, 8]]


def test_means_of_half_precision_scores_are_taken_in_float32():
    low, high = [256.0, 0.0, 0.0, 0.0], [256.0, 1.0, 0.0, 0.0]  # means 64 and 64.25, which bfloat16 cannot tell apart
    for rows in ([low, high], [high, low]):
        scores = torch.tensor(rows, dtype=torch.bfloat16).view(1, 8)
        _, kept = shorten(LinePruner(), torch.zeros(1, 1, 2, 4), scores, 1, FeatureMap())
        assert {position // 4 for position in kept[0].tolist()} == {rows.index(high)}


# --- counts and shares ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sides", "drop", "left"),
    [
        ((56, 56), 8, (48, 48)),
        ((24, 24), 4, (20, 20)),
        ((7, 10), 0.3, (5, 7)),  # 2.1 and 3
        ((100, 50), 0.29, (71, 36)),  # 29, which binary fractions miss, and 14.5
        ((4, 20), 0.2, (4, 16)),  # 0.8 of a row is none
        ((20, 4), 0.2, (16, 4)),
        ((5, 9), 4, (1, 5)),
    ],
)
@every_pruner_of_maps
def test_a_count_and_a_share_are_taken_of_rows_and_of_columns(pruner, sides, drop, left):
    value, scores = example(*sides, channels=1, batch=2)
    shorter, kept = shorten(pruner, value, scores, drop, FeatureMap())
    assert shorter.shape == (2, 1, *left)
    assert kept.shape == (2, left[0] * left[1])


@every_pruner_of_maps
def test_a_share_of_less_than_one_line_leaves_the_map_alone(pruner):
    value, scores = example(4, 4)
    shorter, kept = shorten(pruner, value, scores, 0.2, FeatureMap())
    assert shorter is value
    assert kept is None


@pytest.mark.parametrize(
    ("sides", "drop", "message"),
    [
        ((6, 9), 6, r"Dropping 6 at this block leaves fewer than one of the 6 rows there. Drop at most 5"),
        ((9, 6), 6, r"Dropping 6 at this block leaves fewer than one of the 6 columns there. Drop at most 5"),
        ((3, 3), 50, r"fewer than one of the 3 rows.*at most 2"),
    ],
)
@every_pruner_of_maps
def test_a_count_that_leaves_no_line_is_refused_with_the_side(pruner, sides, drop, message):
    with pytest.raises(ScheduleError, match=message):
        shorten(pruner, *example(*sides), drop, FeatureMap())


@every_pruner_of_maps
def test_tied_scores_still_leave_a_map_of_distinct_positions(pruner):
    value, _ = example(5, 7)
    shorter, kept = shorten(pruner, value, torch.zeros(4, 35), 2, FeatureMap())
    assert shorter.shape == (4, 3, 3, 5)
    assert all(len(set(positions)) == 15 for positions in kept.tolist())


def test_tied_lines_are_kept_in_ascending_order():
    value, _ = example(5, 7)
    _, kept = shorten(LinePruner(), value, torch.zeros(4, 35), 2, FeatureMap())
    assert torch.equal(kept, kept.sort(dim=1).values)


@every_pruner_of_maps
def test_a_single_position_can_be_left(pruner):
    value, scores = example(3, 3)
    shorter, kept = shorten(pruner, value, scores, 2, FeatureMap())
    for image, whole, (position,) in zip(shorter, value, kept.tolist(), strict=True):
        assert torch.equal(image.flatten(), whole.flatten(1)[:, position])


@pytest.mark.parametrize(("channels_last", "shape"), [(False, (0, 3, 5, 7)), (True, (0, 5, 7, 3))])
@every_pruner_of_maps
def test_a_batch_of_no_images_is_shortened_all_the_same(pruner, channels_last, shape):
    shorter, kept = shorten(pruner, torch.zeros(shape), torch.zeros(0, 35), 1, FeatureMap(channels_last))
    assert shorter.shape == ((0, 4, 6, 3) if channels_last else (0, 3, 4, 6))
    assert kept.shape == (0, 24)


@every_pruner_of_maps
def test_the_gradient_is_one_where_a_position_is_kept_and_zero_elsewhere(pruner):
    value, scores = example(5, 6, channels=1)
    value.requires_grad_()
    shorter, kept = shorten(pruner, value, scores, 2, FeatureMap())
    shorter.sum().backward()
    assert torch.equal(value.grad.flatten(1), torch.zeros(4, 30).scatter(1, kept, 1.0))


@every_pruner_of_maps
def test_the_map_itself_is_not_changed(pruner):
    value, scores = example(5, 6)
    before, scores_before = value.clone(), scores.clone()
    shorten(pruner, value, scores, 2, FeatureMap())
    assert torch.equal(value, before)
    assert torch.equal(scores, scores_before)


# --- single tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize(("drop", "left"), [(3, 7), (0.29, 8), (9, 1)])
def test_tokens_kept_of_each_image_equal_a_loop_over_its_own_scores(prefix, drop, left):
    value, scores = torch.rand(4, prefix + 10, 5), torch.rand(4, 10)
    shorter, kept = shorten(TokenPruner(), value, scores, drop, TokenSequence(prefix))
    expected = [highest(score.tolist(), left) for score in scores]
    assert kept.tolist() == expected
    for image, whole, positions in zip(shorter, value, expected, strict=True):
        assert torch.equal(image, torch.cat([whole[:prefix], whole[[prefix + each for each in positions]]]))


def test_a_share_of_less_than_one_token_leaves_the_sequence_alone():
    value = torch.rand(2, 4, 3)
    shorter, kept = shorten(TokenPruner(), value, torch.rand(2, 4), 0.2, TokenSequence())
    assert shorter is value
    assert kept is None


def test_a_count_that_leaves_no_token_is_refused():
    with pytest.raises(ScheduleError, match=r"Dropping 4 at .*fewer than one of the 4 tokens.*at most 3"):
        shorten(TokenPruner(), torch.rand(2, 5, 3), torch.rand(2, 4), 4, TokenSequence(1))


# --- which pruner for which layout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lines", "positions"])
def test_pruners_of_maps_refuse_sequences_and_name_the_right_one(name):
    message = (
        rf"{type(PRUNERS.get(name)).__name__} cannot shorten the TokenSequence of Some.*no arrange.*pruner='tokens'"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        check_layout(PRUNERS.get(name), TokenSequence(), "Some", "tokens")


@pytest.mark.parametrize("name", ["tokens", "sequence"])
def test_pruners_of_tokens_refuse_maps_and_name_the_right_one(name):
    message = rf"{type(PRUNERS.get(name)).__name__} cannot shorten the FeatureMap of Some.*no keep.*pruner='lines'"
    with pytest.raises(UnsupportedModelError, match=message):
        check_layout(PRUNERS.get(name), FeatureMap(), "Some", "lines")


def test_a_pruner_that_says_nothing_of_its_needs_is_welcome_everywhere():
    for layout in (FeatureMap(), TokenSequence()):
        check_layout(object(), layout, "Some", "lines")


@every_pruner_of_maps
def test_maps_of_video_are_refused(pruner):
    with pytest.raises(UnsupportedModelError, match=r"maps of rows and columns, got a grid \(2, 4, 4\)"):
        shorten(pruner, torch.zeros(1, 3, 2, 4, 4), torch.zeros(1, 32), 1, FeatureMap())


@pytest.mark.parametrize("name", PRUNERS.names())
def test_registered_pruners_survive_pickle(name):
    assert pickle.loads(pickle.dumps(PRUNERS.get(name))) == PRUNERS.get(name)
