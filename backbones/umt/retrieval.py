"""UMT for retrieval: videos and texts compared in one space, and matched pair by pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repshift.backbones.umt.checkpoints import RETRIEVAL
from repshift.backbones.umt.initial import initialise
from repshift.backbones.umt.model import UMTModel
from repshift.backbones.umt.settings import UMTSettings
from repshift.backbones.umt.text import Projected
from repshift.backbones.umt.vision import frames_present


class UMTRetrieval(UMTModel):
    """Video encoder, text encoder, projections and matching head; parameters by the names of the published weights.

    Args:
        settings: Its sizes.
    """

    kind = RETRIEVAL

    def __init__(self, settings: UMTSettings | None = None) -> None:
        super().__init__(settings, normalised=True)
        settings = self.settings
        self.vision_proj = nn.Linear(settings.vision.width, settings.embed_dim)
        self.text_proj = nn.Linear(settings.text.width, settings.embed_dim)
        self.temp = nn.Parameter(torch.tensor(0.07))  # of training alone
        self.itm_head = nn.Linear(settings.text.width, 2)
        self.apply(initialise)

    def encode_text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode texts by themselves (the mode ``text``).

        Args:
            ids: ``(batch, length)`` int64, each beginning with ``[CLS]``.
            mask: ``(batch, length)``, 1 or ``True`` for what is no padding.

        Returns:
            All states ``(batch, length, width)``, and the first one of each, ``(batch, width)``.
        """
        states = self.text_encoder.text(ids, mask)
        return states, states[:, 0]

    def itc(self, pooled: Tensor, first: Tensor) -> Tensor:
        """Compare videos with texts: the mean over frames of the cosine of their projections, without temperature.

        Args:
            pooled: ``(videos, frames, width)``; frames of zeros have no token left and do not count.
            first: ``(texts, width)``, the first states of texts.

        Returns:
            ``(videos, texts)``.
        """
        there = frames_present(pooled).to(pooled.dtype)
        frames = F.normalize(self.vision_proj(pooled), dim=-1) * there.unsqueeze(-1)
        texts = F.normalize(self.text_proj(first), dim=-1)
        # the mean of cosines is the cosine with the mean
        return frames.sum(1) / there.sum(1, keepdim=True).clamp_min(1) @ texts.mT

    def project_video(self, tokens: Tensor) -> Projected:
        """Project videos' tokens ``(videos, tokens, width)`` for matching, once for all texts.

        Returns:
            For each fusion layer keys and values, ``(videos, heads, tokens, channels)``.
        """
        return self.text_encoder.project(tokens)

    def match(self, projected: Projected, states: Tensor, mask: Tensor) -> Tensor:
        """Match pairs of a video and a text (the mode ``fusion``, and the matching head).

        Args:
            projected: Of :meth:`project_video`: of one video for all texts, of as many videos as texts, or of so many
                that they divide the texts, those of the first video first.
            states: ``(pairs, length, width)`` of :meth:`encode_text`.
            mask: ``(pairs, length)``, 1 or ``True`` for what is no padding.

        Returns:
            ``(pairs, 2)`` logits; index 1 says that they match.
        """
        logits: Tensor = self.itm_head(self.text_encoder.fuse(states, mask, projected)[:, 0])
        return logits
