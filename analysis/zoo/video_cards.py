"""Model cards of the embedded video models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import nn

from repshift.analysis.samples.canvases import TRAINING_DIGITS
from repshift.analysis.samples.moving_digits import ANSWERS, SIDE, all_moves
from repshift.analysis.zoo.video_scores import CANDIDATES, answered, drawn, encoded, evaluation_videos, found
from repshift.analysis.zoo.videos import FRAMES_SEEN

if TYPE_CHECKING:
    from repshift.analysis.zoo.video_training import VideoSettings

# What is measured, in words
MEASURES = {
    "text": "captions of videos (V2T R@1), by similarity",
    "video": "videos of captions (T2V R@1), by similarity",
    "matched_text": f"captions of videos, the best {CANDIDATES} matched",
    "matched_video": f"videos of captions, the best {CANDIDATES} matched",
    "first": "which digit comes first",
    "last": "which digit comes last",
    "first_direction": "where the first digit moves",
    "last_direction": "where the last digit moves",
    "all": "all questions",
}


def accuracies(name: str, model: nn.Module) -> dict[str, float]:
    """Evaluate a model on the evaluation videos, drawn and not compressed.

    Args:
        name: ``tiny_umt`` for retrieval, ``tiny_umt_qa`` for question answering.
        model: Its model, on a CPU.

    Returns:
        Shares of 1, by some names of :data:`MEASURES`.
    """
    videos = evaluation_videos()
    moves = [video.moves for video in videos]
    tokens, pooled = encoded(model, drawn(model, videos, FRAMES_SEEN))
    if name == "tiny_umt":
        return found(model, tokens, pooled, moves).mean()
    right = answered(model, tokens, moves).double()
    names = ("first", "last", "first_direction", "last_direction")
    return dict(zip(names, right.mean(0).tolist(), strict=True)) | {"all": float(right.mean())}


def video_model_card(name: str, model: nn.Module, recipe: VideoSettings, measured: Mapping[str, float]) -> str:
    """Describe a trained model: data, licence, recipe, accuracy."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    task = "retrieval" if name == "tiny_umt" else "question answering"
    settings = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in asdict(recipe).items())
    results = "\n".join(f"| {MEASURES[key]} | {100 * value:.2f} % |" for key, value in measured.items())
    start = "" if name == "tiny_umt" else " Training starts from the weights of `tiny_umt`."
    version = torch.__version__.split("+")[0]
    videos = len(evaluation_videos())
    return f"""# {name}

A video model of {parameters:,} parameters for {task} on moving digits: the classes of Unmasked Teacher (UMT, arXiv
2303.16058) in a small configuration, made to show and to test what pruning does. It is of no use for other videos.

- **Input**: {FRAMES_SEEN} frames of {SIDE}x{SIDE} pixels, three equal channels, mean 0.02 and standard deviation 0.5.
- **Data**: two handwritten digits come one after the other, and each hops over the frame in one of four directions; the
  captions say so, {len(all_moves()):,} different ones. Trained on the first {TRAINING_DIGITS:,} digits of MNIST's test
  set, in new videos in every epoch.{start} Evaluated on {videos} videos of the other 2,000, which all differ in their
  captions; questions have {len(ANSWERS)} answers to choose from.
- **Licence**: CC BY-SA 3.0, as MNIST itself (Yann LeCun, Corinna Cortes).
- **Command**: `repshift zoo train {name}` (torch {version}).
  Another machine rounds differently and reaches slightly other weights.

| without pruning | |
| --- | --- |
{results}

| recipe | |
| --- | --- |
| optimiser | AdamW, cosine schedule with warm-up |
{settings}
"""
