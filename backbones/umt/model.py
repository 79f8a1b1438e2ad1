"""What UMT's models of tasks have in common: a video encoder, and what they take from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from repshift.backbones.umt.checkpoints import fitted
from repshift.backbones.umt.settings import UMTSettings
from repshift.backbones.umt.text import TextEncoder
from repshift.backbones.umt.vision import UMTVideoEncoder


class UMTModel(nn.Module):
    """A video encoder and a text encoder, by the names of the published weights.

    Args:
        settings: Their sizes; by default those of B.
        normalised: Whether pooled vectors are normalised.

    Attributes:
        kind: Of its files; see :func:`repshift.backbones.umt.checkpoints.fitted`.
    """

    kind: ClassVar[str]

    def __init__(self, settings: UMTSettings | None, *, normalised: bool) -> None:
        super().__init__()
        self.settings = settings = settings or UMTSettings()
        self.vision_encoder = UMTVideoEncoder(settings.vision, normalised=normalised)
        self.text_encoder = TextEncoder(settings.text)

    def forward(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """Encode videos ``(batch, frames, 3, rows, columns)``; see :meth:`encode_vision`."""
        return self.encode_vision(videos)

    def encode_vision(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """Encode videos ``(batch, frames, 3, rows, columns)``.

        Returns:
            All tokens ``(batch, tokens, width)`` and pooled vectors ``(batch, frames or 1, width)``; see
            :meth:`repshift.backbones.umt.vision.UMTVideoEncoder.forward`. Answering does not use the latter, and its
            weights have no norm for them.
        """
        encoded: tuple[Tensor, Tensor] = self.vision_encoder(videos)
        return encoded

    def fit_checkpoint(self, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """Take from a file what this model has; see :func:`repshift.backbones.umt.checkpoints.fitted`.

        Args:
            weights: Of any shapes, by their names in the file.
            path: The file, for messages.
        """
        return fitted(weights, self.state_dict(), self.kind, path)
