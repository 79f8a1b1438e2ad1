"""What models are given: frames of each video, word pieces of each text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from repshift.analysis.video.frames import MEAN, STD
from repshift.analysis.video.texts import Tokeniser
from repshift.errors import DataError


@dataclass(frozen=True)
class VideoInput:
    """What a model is given of each video.

    Attributes:
        frames: How many.
        size: Pixels a side.
        mean: Of each channel.
        std: Of each channel.
        seconds: Only so much of the beginning of each video counts.
    """

    frames: int
    size: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    seconds: float | None = None

    @classmethod
    def of(cls, model: nn.Module, frames: int | None, seconds: float | None = None) -> VideoInput:
        """Settle it: as many frames as were asked for, else those of the model.

        Raises:
            DataError: If there are no frames.
        """
        known: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        chosen = known.get("frames", 12) if frames is None else frames
        if chosen < 1:
            raise DataError(f"{chosen} frames are no video. Give 1 or more (--frames).")
        return cls(
            chosen,
            int(known.get("input_size", (3, 224, 224))[-1]),
            tuple(known.get("mean", MEAN)),
            tuple(known.get("std", STD)),
            seconds,
        )

    def shape(self, frames: int) -> tuple[int, int, int, int]:
        """Return the shape of a video of so many frames."""
        return frames, 3, self.size, self.size


@dataclass(frozen=True)
class TextInput:
    """What a model takes of texts.

    Attributes:
        words: How many word pieces it knows.
        length: The longest text.
        first: The number of ``[CLS]``, which every text begins with. ``None``, like the others, if it does not tell.
    """

    words: int | None = None
    length: int | None = None
    first: int | None = None

    @classmethod
    def of(cls, model: nn.Module) -> TextInput:
        """Ask a model, whose settings say it as UMT's do."""
        text = getattr(getattr(model, "settings", None), "text", None)
        return cls(*(getattr(text, name, None) for name in ("vocabulary", "positions", "class_token")))

    def check(self, tokeniser: Tokeniser, length: int) -> None:
        """Refuse a vocabulary or a length that the model has no embeddings for.

        Raises:
            DataError: If there are more word pieces, or longer texts, than the model knows, or another ``[CLS]``.
        """
        if self.words is not None and len(tokeniser) > self.words:
            raise DataError(
                f"{tokeniser.file} has {len(tokeniser)} word pieces, and the model knows {self.words}. Give the "
                "vocabulary that the model was trained with (--vocab)."
            )
        if self.first is not None and tokeniser.cls != self.first:
            raise DataError(
                f"[CLS] is number {tokeniser.cls} of {tokeniser.file}, and the model knows it as {self.first}. Give "
                "the vocabulary that the model was trained with (--vocab)."
            )
        if self.length is not None and length > self.length:
            raise DataError(
                f"Texts of {length} word pieces are longer than the {self.length} that the model knows. Give a smaller "
                "length (--text-length, --question-length, --answer-length)."
            )
