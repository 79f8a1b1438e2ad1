"""UMT for question answering: a question that looks at a video, and a decoder that ranks given answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift.backbones.checkpoints import load_weights
from repshift.backbones.umt.checkpoints import ANSWERING, started
from repshift.backbones.umt.decoder import Decoder
from repshift.backbones.umt.initial import initialise
from repshift.backbones.umt.model import UMTModel
from repshift.backbones.umt.settings import UMTSettings
from repshift.backbones.umt.text import require_pairs


class UMTAnswering(UMTModel):
    """Video encoder, encoder of questions and decoder of answers; parameters by the names of the published weights.

    Args:
        settings: Its sizes.
    """

    kind = ANSWERING
    _starting = False

    def __init__(self, settings: UMTSettings | None = None) -> None:
        super().__init__(settings, normalised=False)
        self.text_decoder = Decoder(self.settings.text, self.settings.decoder_layers)
        self.apply(initialise)

    def start_from(self, checkpoint: str | Path) -> None:
        """Take over the weights that the published fine-tuning for question answering starts from.

        Until it is trained the model cannot answer; a trained one is loaded by ``load_model(checkpoint=)``. See
        :func:`repshift.backbones.umt.checkpoints.started` for what becomes of what.

        Args:
            checkpoint: A file of pretraining or of retrieval.

        Raises:
            CheckpointError: If it is of another kind or size, or cannot be read safely.
        """
        self._starting = True
        try:
            load_weights(self, Path(checkpoint))
        finally:
            self._starting = False

    def fit_checkpoint(self, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """Take from a file what this model has, or starts from; see :mod:`repshift.backbones.umt.checkpoints`.

        Args:
            weights: Of any shapes, by their names in the file.
            path: The file, for messages.
        """
        if self._starting:
            return started(weights, self.state_dict(), self.settings.text.fusion, path)
        return super().fit_checkpoint(weights, path)

    def question_states(self, tokens: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode questions while they look at all tokens of their videos (the mode ``multi_modal``).

        Args:
            tokens: ``(videos, tokens, width)``, of so many videos that they divide the questions, those of the first
                video first.
            ids: ``(questions, length)`` int64, each beginning with ``[CLS]``.
            mask: ``(questions, length)``, 1 or ``True`` for what is no padding.

        Returns:
            ``(questions, length, width)``.
        """
        states: Tensor = self.text_encoder(ids, mask, self.text_encoder.project(tokens))
        return states

    def first_token_logits(self, states: Tensor, mask: Tensor) -> Tensor:
        """Predict the first word piece of answers: run the decoder on ``[CLS]`` alone.

        Args:
            states: ``(questions, length, width)`` of :meth:`question_states`.
            mask: ``(questions, length)``, the questions' own.

        Returns:
            Logits ``(questions, vocabulary)``.
        """
        ids = mask.new_full((mask.shape[0], 1), self.settings.text.class_token, dtype=torch.int64)
        logits: Tensor = self.text_decoder(ids, torch.ones_like(ids), self.text_decoder.project(states), mask)
        return logits[:, 0]

    def answer_log_likelihood(self, states: Tensor, mask: Tensor, answer_ids: Tensor, answer_mask: Tensor) -> Tensor:
        """Say how likely answers are as a whole.

        Args:
            states: ``(questions, length, width)`` of :meth:`question_states`.
            mask: ``(questions, length)``, the questions' own.
            answer_ids: ``(pairs, length)`` int64, each beginning with ``[CLS]``. The questions divide the pairs: those
                of the first question first.
            answer_mask: ``(pairs, length)``, 1 or ``True`` for what is no padding.

        Returns:
            ``(pairs,)`` float32: the sum of the log probabilities of all word pieces behind ``[CLS]`` that are no
            padding, each given those before it.

        Raises:
            RepresentationError: If the questions do not divide the pairs.
        """
        require_pairs(answer_ids.shape[0], states.shape[0])
        logits = self.text_decoder(answer_ids, answer_mask, self.text_decoder.project(states), mask)
        known = F.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, answer_ids[:, 1:].unsqueeze(2)).squeeze(2)
        return known.masked_fill(~answer_mask[:, 1:].to(torch.bool), 0.0).sum(1)
