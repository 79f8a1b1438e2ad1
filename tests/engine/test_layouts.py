import pytest
import torch

from repshift import RepresentationError, Selection
from repshift.layouts import FeatureMap, TokenSequence, UnrolledMap, first_tensor, guess_layout


def test_a_sequence_leaves_its_prefix_out():
    value = torch.randn(2, 7, 3)
    assert torch.equal(TokenSequence(prefix=2).tokens(value), value[:, 2:])


def test_a_sequence_keeps_its_prefix_and_the_kept_tokens():
    value = torch.arange(7.0).reshape(1, 7, 1).expand(2, 7, 3)
    kept = TokenSequence(prefix=2).keep(value, Selection(torch.tensor([[0, 4], [1, 2]])))
    assert kept[..., 0].tolist() == [[0, 1, 2, 6], [0, 1, 3, 4]]


def test_a_sequence_without_prefix_keeps_the_kept_tokens_alone():
    value = torch.arange(5.0).reshape(1, 5, 1)
    assert TokenSequence().keep(value, Selection(torch.tensor([[1, 3]])))[..., 0].tolist() == [[1, 3]]


@pytest.mark.parametrize("shape", [(2, 7), (2, 3, 4, 4), (2, 2, 8)])
def test_a_sequence_refuses_what_holds_no_token_behind_the_prefix(shape):
    with pytest.raises(RepresentationError) as caught:
        TokenSequence(prefix=2).tokens(torch.zeros(shape))
    assert f"more than 2 prefix token(s), got {shape}. Choose a module" in str(caught.value)


def test_a_feature_map_lists_its_positions_row_by_row():
    value = torch.randn(2, 5, 3, 4)
    tokens = FeatureMap().tokens(value)
    assert tokens.shape == (2, 12, 5)
    assert torch.equal(tokens[:, 1 * 4 + 2], value[:, :, 1, 2])


def test_a_feature_map_with_channels_last_lists_its_positions_row_by_row():
    value = torch.randn(2, 3, 4, 5)
    tokens = FeatureMap(channels_last=True).tokens(value)
    assert tokens.shape == (2, 12, 5)
    assert torch.equal(tokens[:, 1 * 4 + 2], value[:, 1, 2])


def test_a_map_of_video_lists_its_frames_first():
    value = torch.randn(1, 5, 2, 3, 4)
    assert torch.equal(FeatureMap().tokens(value)[:, 12 + 4 + 2], value[:, :, 1, 1, 2])


@pytest.mark.parametrize(
    ("shape", "channels_last", "grid"),
    [
        ((1, 5, 3, 4), False, (3, 4)),
        ((1, 3, 4, 5), True, (3, 4)),
        ((1, 5, 2, 3, 4), False, (2, 3, 4)),
        ((1, 2, 3, 4, 5), True, (2, 3, 4)),
    ],
)
def test_a_feature_map_tells_its_grid(shape, channels_last, grid):
    assert FeatureMap(channels_last).grid(torch.zeros(shape)) == grid


def test_a_feature_map_refuses_a_sequence():
    with pytest.raises(RepresentationError, match=r"4 or 5 dimensions, got \(1, 2, 3\)\. Choose a module"):
        FeatureMap().tokens(torch.zeros(1, 2, 3))


def test_layouts_are_guessed_by_the_number_of_dimensions():
    assert guess_layout(torch.zeros(1, 2, 3)) == TokenSequence(0)
    assert guess_layout(torch.zeros(1, 2, 3, 4)) == FeatureMap(False)
    assert guess_layout(torch.zeros(1, 2, 3, 4, 5)) == FeatureMap(False)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1,) * 6])
def test_a_tensor_without_tokens_is_refused_with_its_shape(shape):
    with pytest.raises(RepresentationError) as caught:
        guess_layout(torch.zeros(shape))
    assert f"got {shape}. Choose a module" in str(caught.value)


def test_the_first_tensor_of_a_tuple_is_its_value():
    tensor = torch.zeros(1)
    assert first_tensor((None, tensor, torch.ones(1))) is tensor
    assert first_tensor([tensor]) is tensor


@pytest.mark.parametrize("value", [None, {}, (), (None, 3), "text"])
def test_a_value_without_a_tensor_is_refused_with_its_type(value):
    with pytest.raises(RepresentationError, match=rf"got {type(value).__name__}\. Choose a module"):
        first_tensor(value)


def test_a_map_that_is_unrolled_tells_its_grid_only_where_it_is_laid_out():
    layout, sequence = UnrolledMap(), torch.randn(2, 12, 5)
    laid_out = sequence.view(2, 3, 4, 5)
    assert torch.equal(layout.tokens(sequence), layout.tokens(laid_out))
    assert (layout.grid(sequence), layout.grid(laid_out)) == (None, (3, 4))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_a_smaller_map_lies_in_memory_as_the_whole_one_did(channels_last, together):
    torch.manual_seed(0)
    value = torch.randn((2, 3, 4, 5), dtype=torch.float64)  # channels first
    value = value.contiguous(memory_format=torch.channels_last if together else torch.contiguous_format)
    value = value.permute(0, 2, 3, 1) if channels_last else value
    kept = torch.tensor([[0, 1, 5, 6], [12, 14, 17, 19]])
    smaller = FeatureMap(channels_last).arrange(value, Selection(kept, grid=(2, 2)))
    axes = ("batch", "rows", "columns", "channels") if channels_last else ("batch", "channels", "rows", "columns")
    order, expected = (
        [axes[axis] for axis in sorted(range(4), key=lambda axis: -each.stride(axis))] for each in (smaller, value)
    )
    assert order == expected
    layout = FeatureMap(channels_last)
    picked = layout.tokens(value).gather(1, kept.unsqueeze(2).expand(-1, -1, 3))
    assert torch.equal(layout.tokens(smaller), picked)
