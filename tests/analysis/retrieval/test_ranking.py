import numpy as np
import pytest
import torch

from repshift.analysis.retrieval.ranking import best_candidates, harmonic_mean, means, ranks_of_best, recalls, summary
from repshift.errors import DataError


def rank_by_brute_force(row, numbers):
    """Read off the published rule: an ascending stable sort, read backwards."""
    order = np.argsort(row.numpy(), kind="stable")[::-1].tolist()
    return min(order.index(number) for number in numbers)


def random_case(queries=40, candidates=30, seed=0, values=None):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(queries, candidates, generator=generator)
    if values is not None:
        scores = torch.randint(values, (queries, candidates), generator=generator).float()
    counts = torch.randint(1, 5, (queries,), generator=generator).tolist()
    return scores, [torch.randperm(candidates, generator=generator)[:count].tolist() for count in counts]


@pytest.mark.parametrize("values", [None, 3], ids=["distinct scores", "many ties"])
def test_the_rank_is_where_the_best_right_candidate_stands(values):
    scores, right = random_case(values=values)
    expected = [rank_by_brute_force(row, numbers) for row, numbers in zip(scores, right, strict=True)]
    assert ranks_of_best(scores, right).tolist() == expected


@pytest.mark.parametrize("cutoff", [1, 5, 10])
def test_recall_of_one_right_candidate_is_that_of_torchmetrics(cutoff):
    from torchmetrics.functional.retrieval import retrieval_recall

    scores, right = random_case()
    right = [numbers[:1] for numbers in right]
    expected = []
    for row, numbers in zip(scores, right, strict=True):
        target = torch.zeros(len(row), dtype=torch.bool)
        target[numbers] = True
        expected.append(float(retrieval_recall(row, target, top_k=cutoff)))
    assert recalls(ranks_of_best(scores, right))[f"r{cutoff}"] == pytest.approx(100 * np.mean(expected))


@pytest.mark.parametrize("cutoff", [1, 5, 10])
def test_recall_of_several_right_candidates_is_the_hit_rate_of_torchmetrics(cutoff):
    from torchmetrics.functional.retrieval import retrieval_hit_rate

    scores, right = random_case(seed=1)
    expected = []
    for row, numbers in zip(scores, right, strict=True):
        target = torch.zeros(len(row), dtype=torch.bool)
        target[numbers] = True
        expected.append(float(retrieval_hit_rate(row, target, top_k=cutoff)))
    assert recalls(ranks_of_best(scores, right))[f"r{cutoff}"] == pytest.approx(100 * np.mean(expected))


def test_equal_scores_give_the_recall_of_chance():
    right = [[number] for number in range(50)]
    assert recalls(ranks_of_best(torch.zeros(50, 50), right)) == {"r1": 2.0, "r5": 10.0, "r10": 20.0}


def test_the_best_candidates_are_those_with_the_highest_scores_the_last_of_equal_ones_first():
    assert best_candidates(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), 3).tolist() == [[2, 1, 0]]
    assert best_candidates(torch.tensor([[1.0, 3.0]]), 128).tolist() == [[1, 0]]


def test_the_summary_has_the_published_names():
    found = summary(torch.tensor([0, 7]), torch.tensor([0, 0, 3, 100]))
    assert (found["txt_r1"], found["txt_r5"], found["txt_r10"]) == (50.0, 50.0, 100.0)
    assert (found["img_r1"], found["img_r5"], found["img_r10"]) == (50.0, 75.0, 75.0)
    assert found["r_mean"] == pytest.approx(200 / 3)


def test_only_the_arithmetic_mean_gives_the_papers_column():
    # MSVD, UMT-B: 50.8 and 73.3 are published, and the paper's column says 62.1
    found = means({"img_r1": 50.8, "txt_r1": 73.3})
    assert found["mean_r1"] == pytest.approx(62.05)
    assert found["harmonic_r1"] == pytest.approx(60.01, abs=0.01)
    assert harmonic_mean(0.0, 50.0) == 0.0


@pytest.mark.parametrize(
    ("scores", "right", "named"),
    [
        (torch.zeros(2, 3), [[0], []], "Query 1"),
        (torch.zeros(1, 3), [[3]], "there are 3"),
        (torch.tensor([[0.0, float("nan")]]), [[0]], "NaN"),
        (torch.zeros(2, 3), [[0]], "1 queries"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, right, named):
    with pytest.raises(DataError, match=named):
        ranks_of_best(scores, right)
