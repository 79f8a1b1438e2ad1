"""Ranking answers: by their first word piece, and then the best ones as a whole.

Follows the published evaluation of Unmasked Teacher (arXiv 2303.16058). The first word piece counts twice: once in the
choice, which is added, and once in the whole answer.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from repshift.analysis.subjects.limits import check_candidates
from repshift.errors import DataError

CANDIDATES = 128  # answers of a question that are looked at as a whole


class AnsweringModel(Protocol):
    """What is asked of a model beside its video encoder, as UMT's for answering has it."""

    def question_states(self, tokens: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the states of questions ``(questions, length, channels)`` that look at all tokens of their video."""
        ...

    def first_token_logits(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return logits ``(questions, vocabulary)`` of the first word piece of an answer."""
        ...

    def answer_log_likelihood(self, states: Tensor, mask: Tensor, answer_ids: Tensor, answer_mask: Tensor) -> Tensor:
        """Return the log-likelihood of each answer ``(pairs,)``, as many for each question."""
        ...


def best_first_pieces(logits: Tensor, answer_ids: Tensor, count: int = CANDIDATES) -> tuple[Tensor, Tensor]:
    """Choose the answers whose first word piece is the likeliest; of equal ones, the earlier in the list.

    Args:
        logits: ``(questions, vocabulary)`` of the first word piece.
        answer_ids: ``(answers, length)`` int64, each beginning with ``[CLS]``.
        count: How many; of a shorter list all.

    Returns:
        Their numbers ``(questions, min(count, answers))`` int64, and the logarithms of the probabilities among all word
        pieces, of the same shape.

    Raises:
        DataError: If ``count`` is not positive.
    """
    check_candidates(count)
    first = logits.float().log_softmax(-1)[:, answer_ids[:, 1]]
    found = first.sort(dim=1, descending=True, stable=True)
    return found.indices[:, :count], found.values[:, :count]


def answer_scores(
    model: AnsweringModel,
    states: Tensor,
    mask: Tensor,
    answer_ids: Tensor,
    answer_mask: Tensor,
    count: int = CANDIDATES,
) -> tuple[Tensor, Tensor]:
    """Score the best answers of questions.

    Args:
        model: The model.
        states: ``(questions, length, channels)``, see :meth:`AnsweringModel.question_states`.
        mask: ``(questions, length)``, the questions' own.
        answer_ids: ``(answers, length)`` int64.
        answer_mask: The same shape.
        count: How many are looked at as a whole.

    Returns:
        Their numbers ``(questions, min(count, answers))``, and the scores, of the same shape: log probability of the
        first word piece, plus that of the whole answer.
    """
    numbers, first = best_first_pieces(model.first_token_logits(states, mask), answer_ids, count)
    flat = numbers.flatten()
    whole = model.answer_log_likelihood(states, mask, answer_ids[flat], answer_mask[flat])
    return numbers, first + whole.float().view_as(first)


def best_answers(numbers: Tensor, scores: Tensor) -> Tensor:
    """Return the number of the best answer of each question ``(questions,)``; of equal ones, the likelier first piece.

    Args:
        numbers: Of the answers that were looked at, ``(questions, answers)``.
        scores: Of the same shape.

    Raises:
        DataError: If a score is no number.
    """
    if bool(torch.isnan(scores).any()):
        raise DataError("The model's scores are not numbers (NaN). Give other weights, or compute without --amp.")
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :1]
    return numbers.gather(1, best).squeeze(1)
