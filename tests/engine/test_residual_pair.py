from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from repshift import RepresentationError, Selection
from repshift.residual_pairs import ResidualPair

SPREAD = ResidualPair(protected="protected")


class Spread(NamedTuple):
    """A pair whose protected tokens may stand anywhere."""

    hidden: Tensor
    residual: Tensor | None
    protected: Tensor
    extra: object = None


def numbered(batch, length, channels=3):
    """Tokens that hold their own position, a hundred for each image before it."""
    numbers = torch.arange(float(length)) + 100 * torch.arange(float(batch)).unsqueeze(1)
    return numbers.unsqueeze(2).expand(-1, -1, channels)


def first(value):
    return value[..., 0].tolist()


@pytest.fixture
def pair():
    """Two images of five tokens; the residual is a thousand more than the hidden values."""
    return numbered(2, 5), numbered(2, 5) + 1000


@pytest.fixture
def spread(pair):
    """The same, with two protected tokens at places of each image's own."""
    return Spread(*pair, torch.tensor([[1, 3], [0, 4]]))


# --- reading -------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_pair_are_its_change_its_stream_and_their_sum(pair):
    hidden, residual = pair
    assert torch.equal(ResidualPair().tokens(pair), hidden)
    assert torch.equal(ResidualPair(part="residual").tokens(pair), residual)
    assert torch.equal(ResidualPair(part="sum").tokens(pair), hidden + residual)


@pytest.mark.parametrize("part", ["hidden", "residual", "sum"])
def test_before_the_first_layer_the_stream_is_the_embedding(pair, part):
    assert torch.equal(ResidualPair(part=part).tokens((pair[0], None)), pair[0])


@pytest.mark.parametrize("part", ["hidden", "residual", "sum"])
def test_a_bare_tensor_is_the_embedding(pair, part):
    assert torch.equal(ResidualPair(prefix=1, part=part).tokens(pair[0]), pair[0][:, 1:])


@pytest.mark.parametrize("part", ["hidden", "residual", "sum"])
def test_the_prefix_is_left_out(pair, part):
    value = ResidualPair(part=part).tokens(pair)
    assert torch.equal(ResidualPair(prefix=2, part=part).tokens(pair), value[:, 2:])


def test_protected_tokens_are_left_out_for_each_image_at_their_own_places(spread):
    assert first(SPREAD.tokens(spread)) == [[0, 2, 4], [101, 102, 103]]
    assert first(ResidualPair(part="sum", protected="protected").tokens(spread)) == [
        [1000, 1004, 1008],
        [1202, 1204, 1206],
    ]


def test_what_the_value_says_goes_before_the_prefix(spread):
    assert first(ResidualPair(prefix=1, protected="protected").tokens(spread)) == [[0, 2, 4], [101, 102, 103]]


def test_a_pair_does_not_tell_its_grid(pair):
    assert ResidualPair().grid(pair) is None


def test_a_sum_keeps_what_bfloat16_would_lose():
    residual, hidden = torch.full((1, 2, 3), 256.0).bfloat16(), torch.full((1, 2, 3), 0.5).bfloat16()
    assert first(ResidualPair(part="sum").tokens((hidden, residual))) == [[256.5, 256.5]]


# --- positions -----------------------------------------------------------------------------------------------------


def test_positions_are_those_of_the_prefix_and_the_kept_tokens(pair):
    kept = torch.tensor([[0, 2], [1, 2]])
    assert ResidualPair(prefix=2).positions(pair, kept).tolist() == [[0, 1, 2, 4], [0, 1, 3, 4]]


def test_positions_without_any_protected_token_are_the_kept_ones(pair):
    kept = torch.tensor([[0, 2], [1, 4]])
    assert torch.equal(ResidualPair().positions(pair, kept), kept)


def test_positions_ascend_with_the_protected_tokens_among_them(spread):
    # the others are at 0, 2, 4 and at 1, 2, 3
    kept = torch.tensor([[0, 2], [1, 2]])
    assert SPREAD.positions(spread, kept).tolist() == [[0, 1, 3, 4], [0, 2, 3, 4]]


# --- keeping -------------------------------------------------------------------------------------------------------


def test_both_parts_lose_the_same_tokens(pair):
    hidden, residual = ResidualPair(prefix=1).keep(pair, Selection(torch.tensor([[0, 3], [1, 2]])))
    assert first(hidden) == [[0, 1, 4], [100, 102, 103]]
    assert torch.equal(residual, hidden + 1000)


def test_a_pair_without_protected_tokens_keeps_the_kept_ones_alone(pair):
    hidden, residual = ResidualPair().keep(pair, Selection(torch.tensor([[0, 3], [1, 2]])))
    assert first(hidden) == [[0, 3], [101, 102]]
    assert torch.equal(residual, hidden + 1000)


def test_a_plain_tuple_stays_a_plain_tuple(pair):
    assert type(ResidualPair().keep(pair, Selection(torch.tensor([[0], [1]])))) is tuple


def test_a_pair_before_the_first_layer_keeps_its_missing_stream(pair):
    hidden, residual = ResidualPair(prefix=1).keep((pair[0], None), Selection(torch.tensor([[0], [1]])))
    assert hidden.shape == (2, 2, 3)
    assert residual is None


def test_protected_tokens_stay_in_their_order_among_the_kept(spread):
    kept = SPREAD.keep(spread, Selection(torch.tensor([[0, 2], [1, 2]])))
    assert first(kept.hidden) == [[0, 1, 3, 4], [100, 102, 103, 104]]
    assert torch.equal(kept.residual, kept.hidden + 1000)


def test_protected_tokens_are_found_where_they_stand_afterwards(spread):
    kept = SPREAD.keep(spread, Selection(torch.tensor([[0, 2], [1, 2]])))
    assert kept.protected.tolist() == [[1, 2], [0, 3]]
    assert kept.protected.dtype == torch.int64
    places = kept.protected.unsqueeze(2).expand(-1, -1, 3)
    assert first(kept.hidden.gather(1, places)) == [[1, 3], [100, 104]]


def test_cuts_in_a_row_follow_the_protected_tokens(spread):
    layout = SPREAD
    once = layout.keep(spread, Selection(torch.tensor([[1, 2], [0, 1]])))
    twice = layout.keep(once, Selection(torch.tensor([[1], [0]])))
    assert first(twice.hidden) == [[1, 3, 4], [100, 101, 104]]
    assert twice.protected.tolist() == [[0, 1], [0, 2]]


def test_protected_tokens_alone_can_be_left(spread):
    kept = SPREAD.keep(spread, Selection(torch.zeros(2, 0, dtype=torch.int64)))
    assert first(kept.hidden) == [[1, 3], [100, 104]]
    assert kept.protected.tolist() == [[0, 1], [0, 1]]


def test_registers_spread_over_the_sequence_are_all_protected():
    places = torch.stack([torch.arange(0, 30, 5), torch.arange(4, 30, 5)])
    value = Spread(numbered(2, 30), numbered(2, 30), places)
    layout = SPREAD
    assert layout.tokens(value).shape == (2, 24, 3)
    kept = layout.keep(value, Selection(torch.arange(0, 24, 3).expand(2, -1)))
    assert kept.hidden.shape == (2, 6 + 8, 3)
    registers = kept.hidden.gather(1, kept.protected.unsqueeze(2).expand(-1, -1, 3))
    assert first(registers) == [places[0].tolist(), (places[1] + 100).tolist()]
    assert all(row == sorted(row) for row in first(kept.hidden))


def test_whatever_else_has_one_entry_a_token_is_shortened_too(spread):
    steps, table = numbered(2, 5, channels=7) + 50, torch.zeros(2, 9)
    value = spread._replace(extra=(steps, (steps + 1,), table, None, "name"))
    kept = SPREAD.keep(value, Selection(torch.tensor([[0, 2], [1, 2]])))
    own, (nested,), *rest = kept.extra
    assert first(own) == [[50, 51, 53, 54], [150, 152, 153, 154]]
    assert torch.equal(nested, own + 1)
    assert rest[0] is table
    assert rest[1:] == [None, "name"]


def test_keeping_all_tokens_changes_nothing(spread):
    kept = SPREAD.keep(spread, Selection(torch.arange(3).expand(2, -1)))
    assert all(map(torch.equal, kept[:3], spread[:3]))


def test_gradients_go_to_the_kept_and_the_protected_tokens_alone(spread):
    hidden = spread.hidden.clone().requires_grad_()
    SPREAD.keep(spread._replace(hidden=hidden), Selection(torch.tensor([[0], [1]]))).hidden.sum().backward()
    assert first(hidden.grad) == [[1, 1, 0, 1, 0], [1, 0, 1, 0, 1]]


def test_the_given_value_is_not_changed(spread):
    before = [part.clone() for part in spread[:3]]
    SPREAD.keep(spread, Selection(torch.tensor([[0], [1]])))
    assert all(map(torch.equal, spread[:3], before))


# --- what is no pair -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, {}, (), (torch.zeros(1, 2, 3),), [torch.zeros(1, 2, 3)] * 2, (None, None)])
@pytest.mark.parametrize("part", ["hidden", "sum"])
def test_what_is_no_pair_is_refused_with_its_type(value, part):
    with pytest.raises(RepresentationError, match=rf"\(hidden, residual\), got {type(value).__name__}\. Choose"):
        ResidualPair(part=part).tokens(value)


@pytest.mark.parametrize("value", [None, {}, (), (torch.zeros(1, 2, 3),), [torch.zeros(1, 2, 3)] * 2, (None, None)])
def test_tokens_of_what_is_no_pair_cannot_be_kept(value):
    with pytest.raises(RepresentationError, match=rf"\(hidden, residual\), got {type(value).__name__}\. Choose"):
        ResidualPair().keep(value, Selection(torch.tensor([[0]])))


def test_tokens_of_a_bare_tensor_cannot_be_kept_since_its_stream_is_missing(pair):
    with pytest.raises(RepresentationError, match=r"\(hidden, residual\), got Tensor\. Choose"):
        ResidualPair().keep(pair[0], Selection(torch.tensor([[0], [1]])))


def test_a_sequence_with_nothing_behind_the_prefix_is_refused(pair):
    with pytest.raises(RepresentationError, match=r"more than 5 prefix token\(s\), got \(2, 5, 3\)"):
        ResidualPair(prefix=5).tokens(pair)
