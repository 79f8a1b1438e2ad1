"""How important each token is: the representation shift, and the controls that it has to beat.

A score is any function of the tokens ``before`` and ``after`` an operation, both ``(batch, tokens, channels)``, that
returns ``(batch, tokens)``; the tokens with the lowest scores are dropped. Each distance is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from repshift.distances import DISTANCES, length
from repshift.errors import RepresentationError
from repshift.registry import Registry

Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def norm(before: Tensor, after: Tensor) -> Tensor:
    """Return the Euclidean norm of the token that enters the operation, whatever the operation does to it.

    A control: as the paper prints the shift, without the residual, it is close to the norm of the token itself.
    """
    return length(before.float())


def random(before: Tensor, after: Tensor) -> Tensor:
    """Return a uniformly random score for each token of each image; ``torch.manual_seed`` fixes them.

    A control: dropping at random costs little on some models, and a score has to do better.
    """
    return torch.rand(before.shape[:-1], device=before.device)


def apply_score(score: Score, before: Tensor, after: Tensor) -> Tensor:
    """Score tokens and check that there is one number for each.

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


SCORES = Registry("score", {"norm": norm, "random": random})


def resolve_score(score: str | Score | None, distance: str | Score) -> Score:
    """Find the function behind a score.

    Args:
        score: ``None`` or ``"shift"`` for the representation shift, a registered name, or a function.
        distance: The shift's distance, a registered name or a function.

    Raises:
        UnknownNameError: If a name is not registered.
    """
    if score is None or score == "shift":
        registry, chosen = DISTANCES, distance
    else:
        registry, chosen = SCORES, score
    if callable(chosen):
        return chosen
    function: Score = registry.get(chosen)
    return function
