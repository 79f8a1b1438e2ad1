import pytest
import torch

from repshift.selection import compose, keep_highest, restore


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
