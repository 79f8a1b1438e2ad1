"""How important each token is: the representation shift, and the controls that it has to beat.

A score is any function of the tokens ``before`` and ``after`` an operation, both ``(batch, tokens, channels)``, that
returns ``(batch, tokens)``; the tokens with the lowest scores are dropped. Each distance is one. The attention scores
of :mod:`repshift.attention` are read from queries and keys instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from repshift.attention import AttentionScore, cls_attention, mean_attention
from repshift.distances import DISTANCES, length
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


def oracle_free(before: Tensor, after: Tensor) -> Tensor:
    """Score tokens by their place, the first ones highest.

    Not a method but the limit of all: a model pruned by it keeps the first tokens without measuring, ranking or
    gathering anything, so no score can be faster with the same schedule.

    Args:
        before: ``(batch, tokens, channels)``; only its shape and device matter.
        after: The same shape; not looked at.

    Returns:
        ``(batch, tokens)`` float32, descending.

    Example:
        >>> import torch
        >>> oracle_free(torch.zeros(1, 3, 8), torch.zeros(1, 3, 8))
        tensor([[3., 2., 1.]])
    """
    places = torch.arange(before.shape[1], 0, -1, dtype=torch.float32, device=before.device)
    return places.expand(before.shape[0], -1)


def apply_score(score: Score, before: Tensor, after: Tensor) -> Tensor:
    """Score tokens and check that there is one number for each.

    Args:
        score: Any function of the tokens before and after.
        before: ``(batch, tokens, channels)``.
        after: The same shape.

    Returns:
        ``(batch, tokens)``, as the score gives them.

    Raises:
        RepresentationError: If the score returns anything else.
    """
    scores = score(before, after)
    if not isinstance(scores, Tensor) or scores.shape != before.shape[:2]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise RepresentationError(
            f"A score gives one number for each token, {tuple(before.shape[:2])} for (batch, tokens), got {got}. "
            "Reduce the channels in the score."
        )
    return scores


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
