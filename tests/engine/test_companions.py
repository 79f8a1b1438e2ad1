"""Arguments with an entry for each token, shortened as loops over images would."""

import pytest
import torch

from repshift import RepresentationError
from repshift.companions import Companion

KEPT = torch.tensor([[1, 4, 6], [0, 2, 7]])
PREFIXED = [[0, 2, 5, 7], [0, 1, 3, 8]]  # behind one prefix token


def test_a_table_becomes_one_for_each_image():
    table = torch.randn(8, 5)
    got = Companion("rope", "token channels -> batch 1 token channels").shortened(table, KEPT)
    assert got.shape == (2, 1, 3, 5)
    assert all(torch.equal(got[i, 0], table[KEPT[i]]) for i in range(2))


def test_every_value_of_a_tuple_is_shortened_and_checked():
    cosines, sines = torch.randn(8, 5), torch.randn(8, 5)
    companion = Companion("rope", "token channels -> batch 1 token channels")
    got = companion.shortened((cosines, sines), KEPT)
    assert [torch.equal(each[1, 0], table[KEPT[1]]) for each, table in zip(got, (cosines, sines), strict=True)] == [
        True,
        True,
    ]
    companion.check((cosines, sines), torch.randn(2, 8, 5))
    with pytest.raises(RepresentationError, match=r"rope is \(8, channels\)"):
        companion.check((cosines, sines[1:]), torch.randn(2, 8, 5))


def test_a_relative_bias_loses_rows_and_columns():
    bias = torch.randn(1, 3, 9, 9)
    got = Companion("bias", "batch heads token token", prefix=1).shortened(bias, KEPT)
    assert got.is_contiguous()  # or kernels of GPUs would refuse it
    for i, places in enumerate(PREFIXED):
        assert torch.equal(got[i], bias[0][:, places][:, :, places])


def test_a_mask_for_each_image_loses_its_own_tokens():
    mask = torch.randn(2, 1, 9, 9)
    got = Companion("mask", "batch 1 token token", prefix=1).shortened(mask, KEPT)
    for i, places in enumerate(PREFIXED):
        assert torch.equal(got[i, 0], mask[i, 0][places][:, places])


def test_a_single_row_for_all_queries_stays_a_single_row():
    mask = torch.randn(2, 1, 1, 9)
    got = Companion("mask", "batch 1 token token", prefix=1).shortened(mask, KEPT)
    assert got.shape == (2, 1, 1, 4)
    assert torch.equal(got[0, 0, 0], mask[0, 0, 0, PREFIXED[0]])


def test_dimensions_that_are_missing_in_front_are_for_all():
    bias = torch.randn(9, 9)
    got = Companion("bias", "batch heads token token", prefix=1).shortened(bias, KEPT)
    assert got.shape == (2, 1, 4, 4)
    assert torch.equal(got[1, 0], bias[PREFIXED[1]][:, PREFIXED[1]])


def test_the_value_itself_is_not_changed():
    table = torch.randn(8, 5)
    before = table.clone()
    Companion("rope", "token channels -> batch token channels").shortened(table, KEPT)
    assert torch.equal(table, before)


@pytest.mark.parametrize(
    "pattern", ["batch channels", "token channels", "batch token -> token batch", "batch a token -> batch token"]
)
def test_a_pattern_that_cannot_be_meant_is_refused(pattern):
    with pytest.raises(RepresentationError, match=r"at least one 'token'.*batch"):
        Companion("rope", pattern)


def test_a_value_with_more_dimensions_than_the_pattern_is_refused():
    with pytest.raises(
        RepresentationError, match=r"'mask' to have the dimensions 'batch 1 token token', got \(1, 1, 1, 9, 9\)"
    ):
        Companion("mask", "batch 1 token token").shortened(torch.zeros(1, 1, 1, 9, 9), KEPT)


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[True, True, True, False]]),
        torch.tensor([[0.0, 0.0, 0.0, -1e9]]),
        torch.tensor([[True, True, True, False]])[:, None, None].expand(1, 1, 4, 4),
        torch.tensor([[0.0, 0.0, 0.0, torch.finfo(torch.float32).min]])[:, None, None],
    ],
    ids=["words", "added", "a row a query", "one row"],
)
def test_padding_is_read_from_a_mask(mask):
    assert Companion("mask", "batch 1 token token", prefix=1, padding=True).valid(mask).tolist() == [[1, 1, 0]]
