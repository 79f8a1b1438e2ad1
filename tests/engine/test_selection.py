import pytest
import torch

from repshift import RepresentationError, Selection
from repshift.positions import compose, keep_highest, pick, restore


def test_the_highest_are_kept_in_ascending_order():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [4.0, 3.0, 2.0, 1.0]])
    assert keep_highest(scores, 2).tolist() == [[1, 3], [0, 1]]


@pytest.mark.parametrize("count", [1, 7, 50])
def test_keeping_equals_sorting_by_hand(count):
    scores = torch.randn(3, 50)
    expected = [sorted(sorted(range(50), key=lambda i, row=row: -row[i].item())[:count]) for row in scores]
    assert keep_highest(scores, count).tolist() == expected


def test_keeping_all_is_the_identity():
    assert torch.equal(keep_highest(torch.randn(2, 9), 9), torch.arange(9).expand(2, -1))


def test_tied_scores_still_keep_distinct_positions():
    kept = keep_highest(torch.zeros(1, 9), 4)
    assert len(set(kept[0].tolist())) == 4


def test_positions_compose_through_two_cuts():
    earlier = torch.tensor([[1, 4, 6, 9]])
    assert compose(earlier, torch.tensor([[0, 3]])).tolist() == [[1, 9]]


def test_the_first_cut_composes_with_nothing():
    kept = torch.tensor([[2, 5]])
    assert torch.equal(compose(None, kept), kept)


def test_restored_values_lie_where_their_tokens_came_from_and_nan_elsewhere():
    restored = restore(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0, 3], [1, 2]]), 4)
    nan = float("nan")
    expected = torch.tensor([[1.0, nan, nan, 2.0], [nan, 3.0, 4.0, nan]])
    torch.testing.assert_close(restored, expected, equal_nan=True)


def test_restoring_when_nothing_was_dropped_gives_the_values():
    values = torch.randn(2, 5)
    assert torch.equal(restore(values, None, 5), values)


def test_restoring_keeps_the_dtype():
    assert (
        restore(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.int64), 2).dtype == torch.float64
    )


# --- what a selection does to values ------------------------------------------------------------------------------


@pytest.fixture
def merged():
    """Of two images of five tokens, three stay; the first image merges two into the last, the second one each way."""
    return Selection(torch.tensor([[0, 2, 4], [1, 2, 3]]), joins=torch.tensor([[0, 2, 1, 2, 2], [0, 0, 1, 2, 2]]))


def groups(selection):
    """For each image and kept token, the tokens that become it, by a loop."""
    return [
        [[token for token, place in enumerate(joins) if place == kept] for kept in range(selection.kept.shape[1])]
        for joins in selection.joins.tolist()
    ]


def test_taking_picks_the_kept_tokens(merged):
    values = torch.randn(2, 5, 3)
    taken = merged.take(values)
    assert all(torch.equal(taken[i], values[i][kept]) for i, kept in enumerate(merged.kept))


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3), (2, 5, 3, 2)])
def test_adding_sums_up_each_group(merged, shape):
    values = torch.randn(shape)
    expected = [torch.stack([values[i][group].sum(0) for group in of]) for i, of in enumerate(groups(merged))]
    torch.testing.assert_close(merged.add(values), torch.stack(expected))


def test_a_mean_weighs_each_token_by_its_size(merged):
    values, sizes = torch.randn(2, 5, 3), torch.tensor([[1.0, 2, 3, 1, 4], [2, 1, 1, 5, 3]])
    expected = [
        torch.stack([(values[i][g] * sizes[i][g, None]).sum(0) / sizes[i][g].sum() for g in of])
        for i, of in enumerate(groups(merged))
    ]
    torch.testing.assert_close(merged.mean(values, sizes), torch.stack(expected))


def test_a_mean_without_sizes_is_the_plain_one(merged):
    values = torch.randn(2, 5, 3)
    torch.testing.assert_close(merged.mean(values), merged.mean(values, torch.full((2, 5), 7.0)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_token_that_nothing_joins_keeps_its_value_bit_for_bit(merged, dtype):
    values, sizes = torch.randn(2, 5, 3, dtype=dtype), torch.full((2, 5), 3.0)
    mean = merged.mean(values, sizes)
    assert mean.dtype == dtype
    assert torch.equal(mean[0, :2], values[0, [0, 2]])
    assert torch.equal(mean[1, 1], values[1, 2])


def test_padding_weighs_nothing_and_a_group_of_padding_keeps_the_value_of_its_kept_token(merged):
    values, sizes = torch.randn(2, 5, 3), torch.tensor([[1.0, 0, 1, 0, 1], [0, 0, 1, 1, 1]])
    mean = merged.mean(values, sizes)
    assert torch.equal(mean[0], values[0, [0, 2, 4]])
    assert torch.equal(mean[1, 0], values[1, 1])


def test_gradients_of_a_mean_are_shared_by_size(merged):
    values, sizes = torch.randn(2, 5, 3, requires_grad=True), torch.tensor([[1.0, 2, 3, 1, 4], [2, 1, 1, 5, 3]])
    merged.mean(values, sizes)[0, 2, 0].backward()
    assert values.grad[0, :, 0].tolist() == pytest.approx([0, 2 / 7, 0, 1 / 7, 4 / 7])


def test_what_joined_comes_back_as_what_it_joined(merged):
    values = torch.randn(2, 3, 4)
    back = merged.back(values)
    assert all(torch.equal(back[i], values[i][joins]) for i, joins in enumerate(merged.joins))


def test_what_was_dropped_comes_back_as_it_was():
    before, values = torch.randn(2, 4, 3), torch.randn(2, 2, 3)
    back = Selection(torch.tensor([[0, 3], [1, 2]])).back(values, before)
    assert torch.equal(back[0], torch.stack([values[0, 0], before[0, 1], before[0, 2], values[0, 1]]))
    assert torch.equal(back[1], torch.stack([before[1, 0], values[1, 0], values[1, 1], before[1, 3]]))


def test_what_was_dropped_cannot_come_back_from_nowhere():
    with pytest.raises(RepresentationError, match="as they were before, which was not given"):
        Selection(torch.tensor([[0]])).back(torch.zeros(1, 1, 2))


def test_the_first_tokens_are_a_view_of_what_was_there():
    values = torch.randn(2, 5, 3)
    first = Selection.first(2, values)
    assert first.take(values).data_ptr() == values.data_ptr()
    assert first.kept.tolist() == [[0, 1], [0, 1]]


def test_the_corner_of_a_map_lists_its_positions_row_by_row():
    corner = Selection.corner((4, 5), (2, 3), torch.zeros(1, 20))
    assert corner.kept.tolist() == [[0, 1, 2, 5, 6, 7]]
    assert corner.grid == (2, 3)


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3), (2, 5, 3, 2), (0, 5, 3)])
def test_picking_equals_indexing_each_image(shape):
    values, positions = torch.randn(shape), torch.tensor([[4, 0, 2], [1, 1, 3]])[: shape[0]]
    picked = pick(values, positions)
    assert picked.shape == (shape[0], 3, *shape[2:])
    assert all(torch.equal(picked[i], values[i][row]) for i, row in enumerate(positions))


@pytest.mark.parametrize("kept", [None, [0, 1], torch.ones(1, 2), torch.tensor([1, 2])])
def test_positions_that_are_none_are_refused(kept):
    with pytest.raises(RepresentationError, match="A selection's kept are positions"):
        Selection(kept)


def test_values_of_other_images_and_positions_outside_are_refused():
    selection = Selection(torch.tensor([[0, 2]]), joins=torch.tensor([[0, 0, 1]]))
    with pytest.raises(RepresentationError, match="Positions of 1 images"):
        selection.take(torch.rand(2, 3, 4))
    with pytest.raises(RepresentationError, match="A position lies outside of the 2"):
        selection.take(torch.rand(1, 2, 4))
    with pytest.raises(RepresentationError, match="values of all tokens"):
        selection.add(torch.rand(1, 2, 4))
