"""All the ways to score the tokens of one model, and what they give, in one forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repshift import ShiftTracker
from repshift.distances import DISTANCES
from repshift.sites import Structure


@dataclass(frozen=True)
class ScoreSetting:
    """One way to score.

    Attributes:
        operation: Whose change is scored, or at whose input the norm is read.
        distance: ``l2``, ``l1`` or ``cosine``; ``None`` if it is not the shift that is scored.
        residual: Compare ``x + F(x)`` with ``x``.
        score: What else is scored: ``norm``, ``random``, ``cls_attention`` or ``mean_attention``.
    """

    operation: str
    distance: str | None = "l2"
    residual: bool = False
    score: str | None = None

    @property
    def name(self) -> str:
        """Name it in tables and figures."""
        if self.score is not None:
            return self.score.replace("_", " ")
        return " ".join([self.operation, str(self.distance), *(["residual"] if self.residual else [])])

    def tracker(self, model: nn.Module, sites: Sequence[str] | None = None) -> ShiftTracker[nn.Module]:
        """Make a tracker that records it; of a model whose blocks differ, only in those that have it."""
        distance = self.distance or "l2"
        return ShiftTracker(
            model, sites, operation=self.operation, distance=distance, residual=self.residual, score=self.score
        )


def own_setting(structure: Structure) -> ScoreSetting:
    """Return the paper's: the model's own operation, l2, without the residual."""
    return ScoreSetting(structure.operation)


def shift_settings(structure: Structure) -> list[ScoreSetting]:
    """List the shift of all operations, by all distances, with the residual outside and, where it can be, inside."""
    settings = []
    for operation in dict.fromkeys(name for site in structure.sites for name in site.operations):
        outside = any(
            not site.operations[operation].on_stream for site in structure.sites if operation in site.operations
        )
        for residual in (False, True) if outside else (False,):
            settings += [ScoreSetting(operation, distance, residual) for distance in DISTANCES.names()]
    return settings


def controls(structure: Structure) -> list[ScoreSetting]:
    """List what the shift is held against: the token's norm, and attention where there is any; not chance."""
    settings = [ScoreSetting(structure.operation, None, score="norm")]
    heads = [site.heads for site in structure.sites]
    having = [one for one in heads if one is not None]
    if heads and len(having) == len(heads):
        score = "cls_attention" if all(one.class_token for one in having) else "mean_attention"
        settings.append(ScoreSetting(structure.operation, None, score=score))
    return settings


def foreground_settings(structure: Structure) -> list[ScoreSetting]:
    """List the few that are held against a foreground: the paper's, that with the residual, and all controls."""
    own = own_setting(structure)
    inside = [one for one in shift_settings(structure) if one == ScoreSetting(own.operation, residual=True)]
    return [own, *inside, *controls(structure), ScoreSetting(structure.operation, None, score="random")]


@dataclass(frozen=True)
class Observed:
    """What a batch gave.

    Attributes:
        scores: ``(images, tokens)`` float32 by setting and layer.
        maps: The same, ``(images, rows, columns)``.
        logits: What the model returned.
    """

    scores: Mapping[str, Mapping[str, Tensor]]
    maps: Mapping[str, Mapping[str, Tensor]]
    logits: Tensor


def observe(
    model: nn.Module, inputs: Tensor, settings: Sequence[ScoreSetting], sites: Sequence[str] | None = None
) -> Observed:
    """Score a batch in every way, in one forward.

    Args:
        model: In evaluation mode, with a known backbone.
        inputs: ``(images, channels, rows, columns)`` float32.
        settings: How.
        sites: Names of layers; by default all.
    """
    trackers = {setting.name: setting.tracker(model, sites) for setting in settings}
    with ExitStack() as stack, torch.inference_mode():
        for tracker in trackers.values():
            stack.enter_context(tracker)
        logits = model(inputs)
    scores = {name: dict(tracker.shifts) for name, tracker in trackers.items()}
    return Observed(scores, {name: tracker.maps for name, tracker in trackers.items()}, logits)
