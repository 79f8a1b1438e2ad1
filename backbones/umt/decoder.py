"""The decoder of answers: BERT that looks at a question's states, and predicts the next word piece."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repshift.backbones.umt.settings import TextSettings
from repshift.backbones.umt.text import Projected, TextEncoder


class Decoder(nn.Module):
    """A causal BERT, every layer of which looks at a question's states.

    The last layer over the vocabulary shares its weights with the embeddings of words, and its bias with
    ``cls.predictions.bias``; files hold both copies of each.

    Args:
        settings: Of the text encoder.
        layers: How many.
    """

    def __init__(self, settings: TextSettings, layers: int) -> None:
        super().__init__()
        self.bert = TextEncoder(settings, layers=layers, fusion=0, other=settings.width)
        self.cls = nn.Module()
        predictions = Predictions(settings)
        self.cls.predictions = predictions
        predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def project(self, states: Tensor) -> Projected:
        """Project questions' states ``(questions, length, width)`` into keys and values, once for all answers."""
        return self.bert.project(states)

    def forward(self, ids: Tensor, mask: Tensor, projected: Projected, seen: Tensor) -> Tensor:
        """Predict at each place of answers the word piece behind it.

        Args:
            ids: ``(pairs, length)`` int64.
            mask: ``(pairs, length)``, 1 or ``True`` for what is no padding.
            projected: Of :meth:`project`, of so many questions that they divide the pairs.
            seen: ``(questions, length)``, the questions' own mask.

        Returns:
            Logits ``(pairs, length, vocabulary)``.
        """
        states = self.bert.text(ids, mask)
        states = self.bert.fuse(states, mask, projected, seen=seen, causal=True)
        logits: Tensor = self.cls.predictions(states)  # type: ignore[operator]
        return logits


class Predictions(nn.Module):
    """BERT's head over the vocabulary.

    Args:
        settings: Of the text encoder.
    """

    def __init__(self, settings: TextSettings) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(settings.vocabulary))
        self.transform = Transform(settings.width)
        self.decoder = nn.Linear(settings.width, settings.vocabulary)
        self.decoder.bias = self.bias

    def forward(self, states: Tensor) -> Tensor:
        """Return logits ``(batch, length, vocabulary)`` of states ``(batch, length, width)``."""
        logits: Tensor = self.decoder(self.transform(states))
        return logits


class Transform(nn.Module):
    """A layer, an exact GELU and a norm.

    Args:
        width: Channels of the states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, states: Tensor) -> Tensor:
        """Change states ``(batch, length, width)``."""
        changed: Tensor = self.LayerNorm(F.gelu(self.dense(states)))
        return changed
