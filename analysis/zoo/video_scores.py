"""How well the embedded video models find and answer, on evaluation videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repshift.analysis.answering.ranking import answer_scores, best_answers
from repshift.analysis.retrieval.matrices import encode_texts, itc_matrix, reranked_matrices
from repshift.analysis.retrieval.ranking import ranks_of_best
from repshift.analysis.samples.canvases import EVALUATION_SEED, read_digits
from repshift.analysis.samples.moving_digits import (
    ANSWERS,
    FRAMES,
    DigitPool,
    DigitVideo,
    Moves,
    caption,
    numbered_video,
    questions,
)
from repshift.analysis.video.sampling import frame_indices
from repshift.analysis.zoo.videos import model_input, word_numbers

EVALUATED = 400  # videos; their captions all differ
CANDIDATES = 16  # that are looked at twice
BATCH = 50


@dataclass(frozen=True, eq=False)
class Found:
    """Of each video whether its own caption was found first, or of each caption its own video; all ``(videos,)`` bool.

    Attributes:
        text: By similarity, videos that look for their captions.
        video: By similarity, captions that look for their videos.
        matched_text: The same after the best candidates were matched.
        matched_video: The same after the best candidates were matched.
    """

    text: Tensor
    video: Tensor
    matched_text: Tensor
    matched_video: Tensor

    def mean(self) -> dict[str, float]:
        """Return R@1 by name, shares of 1."""
        return {name: float(values.double().mean()) for name, values in vars(self).items()}


def evaluation_videos(count: int = EVALUATED) -> list[DigitVideo]:
    """List the evaluation videos of moving digits, the same on every machine; captions differ for the first 1,440."""
    folder = resources.files("repshift.analysis.samples") / "cluttered_mnist"
    with resources.as_file(folder) as path:
        pool = DigitPool(read_digits(Path(path)))
    return [numbered_video(pool, EVALUATION_SEED, index) for index in range(count)]


def drawn(model: nn.Module, videos: Sequence[DigitVideo], frames: int) -> Tensor:
    """Draw the frames of videos as a model takes them, ``(videos, frames, 3, 48, 48)`` float32."""
    indices = frame_indices(FRAMES, frames)
    return model_input(model, torch.from_numpy(np.stack([video.draw(indices) for video in videos])).unsqueeze(2))


@torch.inference_mode()
def encoded(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Encode videos batch by batch: their tokens, and pooled vectors."""
    parts = [model(part) for part in torch.split(inputs, BATCH)]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([pooled for _, pooled in parts])


@torch.inference_mode()
def found(model: Any, tokens: Tensor, pooled: Tensor, moves: Sequence[Moves]) -> Found:
    """Look for the captions of videos and for the videos of captions.

    Args:
        model: A UMT model for retrieval.
        tokens: ``(videos, tokens, channels)``.
        pooled: ``(videos, frames, channels)``.
        moves: What happens in each, no two alike.
    """
    texts = encode_texts(model, *word_numbers([caption(each) for each in moves]), 256)
    itc = itc_matrix(model, pooled, texts.first)
    of_videos, of_texts = reranked_matrices(model, tokens.__getitem__, texts, itc, CANDIDATES)
    own = [[number] for number in range(len(moves))]
    return Found(*(ranks_of_best(scores, own) == 0 for scores in (itc, itc.T, of_videos, of_texts)))


@torch.inference_mode()
def answered(model: Any, tokens: Tensor, moves: Sequence[Moves]) -> Tensor:
    """Ask all questions about videos, and say which answers were right.

    Args:
        model: A UMT model for question answering.
        tokens: ``(videos, tokens, channels)``.
        moves: What happens in each.

    Returns:
        ``(videos, 4)`` bool, in the order of :func:`repshift.analysis.samples.moving_digits.questions`.
    """
    asked = [questions(each) for each in moves]
    ids, mask = word_numbers([question for pairs in asked for question, _ in pairs])
    answers = word_numbers([f"{answer} [SEP]" for answer in ANSWERS])
    right = torch.tensor([[ANSWERS.index(answer) for _, answer in pairs] for pairs in asked])
    chosen = []
    size = BATCH * right.shape[1]
    parts = torch.split(tokens, BATCH), torch.split(ids, size), torch.split(mask, size)
    for part, ids_part, mask_part in zip(*parts, strict=True):
        states = model.question_states(part, ids_part, mask_part)
        chosen.append(best_answers(*answer_scores(model, states, mask_part, *answers)))
    return torch.cat(chosen).view(right.shape) == right
