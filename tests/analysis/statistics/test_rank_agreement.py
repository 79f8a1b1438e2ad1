import pytest
import torch
from scipy.stats import rankdata, spearmanr

from repshift.analysis.statistics.rank_agreement import RankAgreement, average_ranks, spearman


@pytest.fixture
def scores():
    """Three settings, four images, 30 tokens, many of them tied."""
    return torch.randint(0, 12, (3, 4, 30), generator=torch.Generator().manual_seed(1)).float()


def test_tied_values_share_the_mean_of_their_ranks(scores):
    assert torch.equal(average_ranks(scores), torch.from_numpy(rankdata(scores.numpy(), axis=-1)))


def test_the_correlation_is_scipys_for_every_pair_and_image(scores):
    found = spearman(scores)
    assert found.shape == (3, 3, 4)
    for image in range(4):
        expected = torch.from_numpy(spearmanr(scores[:, image].numpy(), axis=1).statistic)
        assert torch.allclose(found[:, :, image], expected, atol=1e-12)


def test_the_correlation_asks_for_order_alone(scores):
    other = torch.stack([scores[0], scores[0].exp(), -(scores[0] ** 3)])
    expected = torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    assert torch.allclose(spearman(other), expected.unsqueeze(-1).expand(3, 3, 4))


def test_what_ranks_no_token_correlates_with_nothing(scores):
    scores[1, 2] = 5
    found = spearman(scores)
    assert found[1, :, 2].isnan().all()
    assert found[:, 1, 2].isnan().all()
    assert found.isnan().sum() == 5


def test_images_are_averaged_over_batches_of_any_size_and_processes(scores):
    batches = [slice(0, 1), slice(1, 4)]
    parts = []
    for batch in batches:
        part = RankAgreement(["a", "b", "c"])
        part.update({name: {"layer": scores[place, batch]} for place, name in enumerate("abc")})
        parts.append(part)
    parts[0].merge(parts[1])
    assert torch.allclose(parts[0].matrix("layer"), spearman(scores).mean(-1))


def test_images_that_a_setting_does_not_rank_are_left_out_of_its_mean(scores):
    scores[1, 2] = 5
    agreement = RankAgreement(["a", "b", "c"])
    agreement.update({name: {"layer": scores[place]} for place, name in enumerate("abc")})
    assert torch.allclose(agreement.matrix("layer"), spearman(scores).nanmean(-1))


def test_a_setting_may_lack_a_layer(scores):
    agreement = RankAgreement(["a", "b", "c"])
    agreement.update({"a": {"one": scores[0]}, "b": {"one": scores[1], "two": scores[1]}, "c": {"one": scores[2]}})
    assert agreement.layers == ["one", "two"]
    assert torch.equal(agreement.matrix("two").isnan(), torch.arange(3).ne(1)[:, None] | torch.arange(3).ne(1))
    assert not agreement.matrix("one").isnan().any()
