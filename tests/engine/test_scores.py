import pytest
import torch

from repshift import SCORES, UnknownNameError
from repshift.distances import l1, l2
from repshift.scores import resolve_score, widened


def test_the_norm_is_that_of_the_token_that_enters():
    before = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    assert SCORES.get("norm")(before, torch.randn(1, 2, 2)).tolist() == [[5, 2]]


def test_the_norm_is_float32():
    assert SCORES.get("norm")(torch.ones(1, 2, 4).bfloat16(), torch.ones(1, 2, 4)).dtype == torch.float32


def test_random_scores_depend_on_the_seed_and_not_on_the_tokens():
    random = SCORES.get("random")
    torch.manual_seed(1)
    one = random(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3))
    torch.manual_seed(1)
    again = random(torch.ones(2, 5, 3), torch.ones(2, 5, 3))
    other = random(torch.ones(2, 5, 3), torch.ones(2, 5, 3))
    assert one.shape == (2, 5)
    assert torch.equal(one, again)
    assert not torch.equal(again, other)


def test_random_scores_differ_between_images():
    scores = SCORES.get("random")(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3))
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("score", [None, "shift"])
def test_the_default_score_is_the_distance(score):
    assert resolve_score(score, "l1") is l1


def test_a_function_is_a_score():
    def own(before, after):
        return after.mean(-1)

    assert resolve_score(own, "l2") is own
    assert resolve_score(None, own) is own


def test_a_named_score_ignores_the_distance():
    assert resolve_score("norm", "l2") is SCORES.get("norm") is not l2


def test_an_unknown_score_names_the_closest():
    with pytest.raises(UnknownNameError, match=r"Unknown score 'randm'\. Did you mean 'random'"):
        resolve_score("randm", "l2")


def test_channels_that_a_token_lacks_count_as_zeros():
    before, after = torch.ones(1, 3, 2), torch.ones(1, 3, 4)
    assert widened(before, after).tolist() == [[[1, 1, 0, 0]] * 3]
    assert torch.equal(widened(after, after), after)
