"""Ranking: which candidates are looked at twice, at which rank the right one stands, and what that comes to.

Of equal scores the candidate with the higher number comes first. That is a stable sort in ascending order, read
backwards, as the published evaluation does it. Whether a candidate is right has nothing to do with its number, so equal
scores give the recall of chance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from repshift.errors import DataError

CUTOFFS = (1, 5, 10)


def best_candidates(scores: Tensor, count: int) -> Tensor:
    """Return the numbers of the candidates with the highest scores, the highest first.

    Args:
        scores: ``(queries, candidates)``.
        count: How many; of fewer candidates all.

    Returns:
        ``(queries, min(count, candidates))`` int64.
    """
    return scores.sort(dim=1, stable=True).indices.flip(1)[:, :count]


def ranks_of_best(scores: Tensor, right: Sequence[Collection[int]]) -> Tensor:
    """Return at which rank the best right candidate of each query stands, from zero.

    Args:
        scores: ``(queries, candidates)``.
        right: Of each query, the numbers of its right candidates.

    Returns:
        ``(queries,)`` int64.

    Raises:
        DataError: If a query has no right candidate, or a score is no number.
    """
    if scores.ndim != 2 or len(scores) != len(right):
        raise DataError(f"Scores of {len(right)} queries are expected, a row each, got {tuple(scores.shape)}.")
    if bool(scores.isnan().any()):
        raise DataError("The model's scores are not numbers (NaN). Give other weights, or compute without --amp.")
    ranks = torch.empty(len(right), dtype=torch.int64)
    for query, numbers in enumerate(right):
        if not numbers or not 0 <= min(numbers) <= max(numbers) < scores.shape[1]:
            raise DataError(
                f"Query {query} has the right candidates {sorted(numbers)}, and there are {scores.shape[1]}. Give at "
                "least one of them."
            )
        row = scores[query]
        best = max(numbers, key=lambda number: (float(row[number]), number))
        ahead = (row > row[best]).sum() + (row[best + 1 :] == row[best]).sum()
        ranks[query] = ahead
    return ranks


def hits(ranks: Tensor) -> Tensor:
    """Say of each query whether the right candidate is among the first 1, 5 and 10: 100 or 0.

    Args:
        ranks: ``(queries,)``, from zero.

    Returns:
        ``(queries, 3)`` float64, whose means are R@1, R@5 and R@10 in per cent.
    """
    return torch.stack([100.0 * (ranks < cutoff).double() for cutoff in CUTOFFS], dim=1)


def recalls(ranks: Tensor) -> dict[str, float]:
    """Return R@1, R@5 and R@10 in per cent: the share of queries whose right candidate is among the first.

    Args:
        ranks: ``(queries,)``, from zero.

    Example:
        >>> recalls(torch.tensor([0, 4, 5, 20]))
        {'r1': 25.0, 'r5': 50.0, 'r10': 75.0}
    """
    return {f"r{cutoff}": value for cutoff, value in zip(CUTOFFS, hits(ranks).mean(0).tolist(), strict=True)}


def arithmetic_mean(first: float, second: float) -> float:
    """Return the mean of two recalls, which is what the paper's column of retrieval fits (it says harmonic)."""
    return (first + second) / 2


def harmonic_mean(first: float, second: float) -> float:
    """Return the harmonic mean of two recalls; zero if one of them is."""
    return 2 * first * second / (first + second) if first and second else 0.0


def summary(video_to_text: Tensor, text_to_video: Tensor) -> dict[str, float]:
    """Sum up the ranks of both directions, as the published evaluation names it.

    Args:
        video_to_text: ``(videos,)``, from zero.
        text_to_video: ``(texts,)``, from zero.

    Returns:
        In per cent: ``txt_r1``, ``txt_r5``, ``txt_r10`` of videos that look for texts, ``img_*`` of texts that look for
        videos, ``txt_r_mean`` and ``img_r_mean``, their means, and ``r_mean``, the mean of these.
    """
    found: dict[str, float] = {}
    for name, ranks in (("txt", video_to_text), ("img", text_to_video)):
        of_one = recalls(ranks)
        found |= {f"{name}_{cutoff}": value for cutoff, value in of_one.items()}
        found[f"{name}_r_mean"] = sum(of_one.values()) / len(of_one)
    found["r_mean"] = arithmetic_mean(found["txt_r_mean"], found["img_r_mean"])
    return found


def means(row: Mapping[str, float]) -> dict[str, float]:
    """Return both means of the two R@1 of a :func:`summary`."""
    both = row["img_r1"], row["txt_r1"]
    return {"mean_r1": arithmetic_mean(*both), "harmonic_r1": harmonic_mean(*both)}
