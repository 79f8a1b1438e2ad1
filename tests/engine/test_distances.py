import pytest
import torch

from repshift import DISTANCES, RepresentationError, UnknownNameError

# one image, three tokens of two channels, distances by hand
BEFORE = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [3.0, 4.0]]])
AFTER = torch.tensor([[[3.0, 4.0], [1.0, -1.0], [6.0, 8.0]]])
BY_HAND = {"l2": [5.0, 2.0, 5.0], "l1": [7.0, 2.0, 7.0], "cosine": [1.0, 1.0, 0.0]}

IN_FLOAT64 = {
    "l2": lambda a, b: (a - b).pow(2).sum(-1).pow(0.5),
    "l1": lambda a, b: (a - b).abs().sum(-1),
    "cosine": lambda a, b: 1 - (a * b).sum(-1) / (a.pow(2).sum(-1) * b.pow(2).sum(-1)).pow(0.5),
}


@pytest.fixture(params=["l2", "l1", "cosine"])
def name(request):
    return request.param


def test_a_distance_equals_the_one_by_hand(name):
    torch.testing.assert_close(DISTANCES.get(name)(BEFORE, AFTER), torch.tensor([BY_HAND[name]]))


def test_a_distance_equals_the_formula_in_float64(name):
    before, after = torch.randn(2, 5, 48), torch.randn(2, 5, 48)
    expected = IN_FLOAT64[name](before.double(), after.double())
    torch.testing.assert_close(DISTANCES.get(name)(before, after).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_distance_is_float32_whatever_the_tokens_are(name, dtype):
    assert (
        DISTANCES.get(name)(torch.randn(1, 2, 4, dtype=dtype), torch.randn(1, 2, 4, dtype=dtype)).dtype == torch.float32
    )


def test_bfloat16_tokens_are_measured_in_float32(name):
    before, after = torch.randn(1, 9, 256).bfloat16(), torch.randn(1, 9, 256).bfloat16()
    expected = IN_FLOAT64[name](before.double(), after.double())
    torch.testing.assert_close(DISTANCES.get(name)(before, after).double(), expected, atol=1e-4, rtol=1e-5)


def test_tokens_of_two_dtypes_are_compared():
    distance = DISTANCES.get("l2")(torch.ones(1, 1, 4, dtype=torch.bfloat16), torch.zeros(1, 1, 4))
    assert distance.item() == 2


def test_a_token_has_no_distance_to_itself(name):
    tokens = torch.randn(2, 3, 8)
    torch.testing.assert_close(DISTANCES.get(name)(tokens, tokens), torch.zeros(2, 3), atol=1e-6, rtol=0)


def test_opposite_tokens_have_the_largest_cosine_distance():
    tokens = torch.randn(1, 4, 8)
    torch.testing.assert_close(DISTANCES.get("cosine")(tokens, -3 * tokens), torch.full((1, 4), 2.0))


def test_the_cosine_distance_of_a_zero_vector_is_one():
    assert DISTANCES.get("cosine")(torch.zeros(1, 1, 4), torch.ones(1, 1, 4)).item() == 1


def test_float16_tokens_far_apart_do_not_overflow():
    far = torch.full((1, 1, 4), 6e4, dtype=torch.float16)
    assert DISTANCES.get("l2")(far, -far).isfinite().all()


def test_tokens_of_different_shapes_are_refused_with_both_shapes(name):
    with pytest.raises(RepresentationError, match=r"\(1, 4, 8\) before and \(1, 3, 8\) after.*Choose a module"):
        DISTANCES.get(name)(torch.randn(1, 4, 8), torch.randn(1, 3, 8))


def test_whole_numbers_are_refused_with_their_dtype(name):
    with pytest.raises(RepresentationError, match=r"torch\.int64.*\.float\(\)"):
        DISTANCES.get(name)(torch.ones(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.int64))


def test_an_unknown_distance_names_the_closest():
    with pytest.raises(UnknownNameError, match=r"Unknown distance 'cosin'\. Did you mean 'cosine'\?"):
        DISTANCES.get("cosin")


def test_cosine_ranks_small_angles_as_float64_does():
    # a layer that hardly turns its tokens: in float32, 1 - cos of these is rounding noise
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(1, 200, 64, generator=generator)
    after = before + 1e-3 * (0.5 + torch.rand(1, 200, 1, generator=generator)) * torch.randn(
        1, 200, 64, generator=generator
    )
    exact = IN_FLOAT64["cosine"](before.double(), after.double())
    measured = DISTANCES.get("cosine")(before, after)
    torch.testing.assert_close(measured.double(), exact, atol=0, rtol=1e-3)
    assert set(measured[0].topk(100).indices.tolist()) == set(exact[0].topk(100).indices.tolist())


def test_a_zero_vector_has_cosine_distance_one_to_anything():
    zero, one = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    cosine = DISTANCES.get("cosine")
    assert [cosine(a, b).item() for a, b in ((zero, one), (one, zero), (zero, zero))] == [1.0, 1.0, 1.0]
