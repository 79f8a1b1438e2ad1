"""How important each token is: the representation shift, and the controls that it has to beat.

A score is any function of the tokens ``before`` and ``after`` an operation, both ``(batch, tokens, channels)``, that
returns ``(batch, tokens)``; the tokens with the lowest scores are dropped. Each distance is one. The attention scores
of :mod:`repshift.attention_scores` are read from queries and keys instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift.attention_scores import AttentionScore, cls_attention, mean_attention
from repshift.distances import DISTANCES, cosine, l1, l2, length
from repshift.errors import RepresentationError
from repshift.registry import Registry

Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def norm(before: Tensor, after: Tensor) -> Tensor:
    """Return the Euclidean norm of the token that enters the operation, whatever the operation does to it.

    A control: as the paper prints the shift, without the residual, it is close to the norm of the token itself.

    Args:
        before: ``(batch, tokens, channels)`` floating-point.
        after: The same shape; not looked at.

    Returns:
        ``(batch, tokens)`` float32, in the activations' units.

    Example:
        >>> import torch
        >>> norm(torch.tensor([[[3.0, 4.0]]]), torch.zeros(1, 1, 2))
        tensor([[5.]])
    """
    return length(before.float())


def random(before: Tensor, after: Tensor) -> Tensor:
    """Return a uniformly random score for each token of each image; ``torch.manual_seed`` fixes them.

    A control: dropping at random costs little on some models, and a score has to do better.

    Args:
        before: ``(batch, tokens, channels)``; only its shape and device matter.
        after: The same shape; not looked at.

    Returns:
        ``(batch, tokens)`` float32 in [0, 1).
    """
    return torch.rand(before.shape[:-1], device=before.device)


@dataclass(frozen=True)
class PlaceScore:
    """Scores tokens by their place, the first ones highest.

    Not a method but the limit of all: a model pruned by it keeps the first tokens without measuring, ranking or
    gathering anything, so no score can be faster with the same schedule.

    Example:
        >>> import torch
        >>> oracle_free(torch.zeros(1, 3, 8), torch.zeros(1, 3, 8))
        tensor([[3., 2., 1.]])
    """

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        """Score tokens by their place.

        Args:
            before: ``(batch, tokens, channels)``; only its shape and device matter.
            after: The same shape; not looked at.

        Returns:
            ``(batch, tokens)`` float32, descending.
        """
        places = torch.arange(before.shape[1], 0, -1, dtype=torch.float32, device=before.device)
        return places.expand(before.shape[0], -1)


oracle_free = PlaceScore()

# What an operation does is not looked at, so nothing of its input need be kept until it ends
OF_BEFORE = (norm, random)
# These never write into what they are given
READ_ONLY = (l2, l1, cosine, norm, random, oracle_free)


def apply_score(score: Score, before: Tensor, after: Tensor, *, read_only: bool) -> Tensor:
    """Score tokens and check that there is one number for each.

    Args:
        score: Any function of the tokens before and after.
        before: ``(batch, tokens, channels)``.
        after: The same shape.
        read_only: Whether the score is known never to write into these; any other one gets copies, since they are the
            model's own tensors.

    Returns:
        ``(batch, tokens)``, as the score gives them.

    Raises:
        RepresentationError: If the score returns anything else than real floating-point numbers, one for each token.
    """
    scores = score(before, after) if read_only else score(before.clone(), after.clone())
    if not isinstance(scores, Tensor) or scores.shape != before.shape[:2]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise RepresentationError(
            f"A score gives one number for each token, {tuple(before.shape[:2])} for (batch, tokens), got {got}. "
            "Reduce the channels in the score."
        )
    if not scores.is_floating_point() or scores.layout != torch.strided or scores.device != before.device:
        raise RepresentationError(
            f"A score gives real floating-point numbers in a plain tensor on {before.device}, got {scores.dtype}, "
            f"{scores.layout}, on {scores.device}. Convert what the score returns, for example with .float()."
        )
    return scores


def widened(before: Tensor, after: Tensor) -> Tensor:
    """Give tokens as many channels as others have, with zeros in those that they lack.

    Args:
        before: ``(batch, tokens, channels)``.
        after: The same with as many channels or more.

    Returns:
        ``(batch, tokens, channels of after)``, of the dtype of ``before``.

    Source: arXiv 1512.03385, section 3.3, option A (identity shortcuts of growing dimensions).
    """
    return F.pad(before, (0, max(0, after.shape[-1] - before.shape[-1])))


SCORES = Registry(
    "score",
    {
        "norm": norm,
        "random": random,
        "cls_attention": cls_attention,
        "mean_attention": mean_attention,
        "oracle_free": oracle_free,
    },
)


def resolve_distance(distance: str | Score) -> Score:
    """Find the function behind a distance.

    Args:
        distance: A registered name or a function.

    Raises:
        UnknownNameError: If the name is not registered.
    """
    found: Score = distance if callable(distance) else DISTANCES.get(distance)
    return found


def resolve_score(score: str | Score | AttentionScore | None, distance: str | Score) -> Score | AttentionScore:
    """Find the function behind a score.

    Args:
        score: ``None`` or ``"shift"`` for the representation shift, a registered name, or a function.
        distance: The shift's distance, a registered name or a function.

    Raises:
        UnknownNameError: If a name is not registered.
    """
    if score is None or score == "shift":
        return resolve_distance(distance)
    found: Score | AttentionScore = score if callable(score) else SCORES.get(score)
    return found
