"""What the embedded video models learn from: texts that fit, pairs that match, answers that are right."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift.analysis.samples.moving_digits import questions
from repshift.analysis.zoo.videos import VideoBatch, foil, model_input, phrase_caption, word_numbers

COLDEST, WARMEST = 0.001, 0.5  # temperatures, as UMT bounds them


def retrieval_loss(model: Any, batch: VideoBatch, foils: int, wrong: int) -> Tensor:
    """Return the contrastive and the matching loss of a batch, added up.

    Each video is compared with all captions of the batch, and with some of its own in which one word was exchanged.
    Matching sees each video with its caption and with wrong captions, and each caption with a wrong video; the wrong
    ones are drawn by how near the comparison finds them.

    Args:
        model: A UMT model for retrieval.
        batch: The videos.
        foils: Captions with an exchanged word, for each video.
        wrong: Captions that each video is matched with besides its own.

    Source: UMT (arXiv 2303.16058), section 3.3, after ALBEF (arXiv 2107.07651), equations 1 to 5, without a momentum
    model.
    """
    texts = [phrase_caption(moves) for moves in batch.moves]
    count = len(texts)
    candidates = texts + [phrase_caption(foil(moves, batch.random)) for moves in batch.moves for _ in range(foils)]
    tokens, pooled = model.encode_vision(model_input(model, batch.videos))
    ids, mask = word_numbers(candidates)
    states, first = model.encode_text(ids, mask)
    with torch.no_grad():
        model.temp.clamp_(COLDEST, WARMEST)
    logits = model.itc(pooled, first) / model.temp
    right = torch.tensor([[text == other for other in candidates] for text in texts])
    backwards, right_backwards = logits[:, :count].T, right[:, :count].T
    contrastive = (shared_cross_entropy(logits, right) + shared_cross_entropy(backwards, right_backwards)) / 2
    own = torch.arange(count).unsqueeze(1)
    texts_of = torch.cat([own, _drawn(logits.detach(), right, wrong)], 1)  # of each video
    wrong_videos = _drawn(backwards.detach(), right_backwards, 1).flatten()
    projected = model.project_video(tokens)
    others = [(keys[wrong_videos], values[wrong_videos]) for keys, values in projected]
    matched = model.match(projected, states[texts_of.flatten()], mask[texts_of.flatten()])
    mismatched = model.match(others, states[:count], mask[:count])
    belongs = torch.cat([texts_of == own, torch.zeros_like(own, dtype=torch.bool)], 1)
    logits_of_pairs = torch.cat([matched.unflatten(0, texts_of.shape), mismatched.unsqueeze(1)], 1)
    return contrastive + F.cross_entropy(logits_of_pairs.flatten(0, 1), belongs.flatten().long())


def shared_cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Return the cross entropy where a row has several right columns, of equal shares.

    Args:
        logits: ``(rows, columns)``.
        right: ``(rows, columns)`` bool.
    """
    shares = right.to(logits.dtype)
    return F.cross_entropy(logits, shares / shares.sum(1, keepdim=True))


def _drawn(logits: Tensor, right: Tensor, count: int) -> Tensor:
    """Draw different wrong columns for each row, near ones more often: ``(rows, count)``."""
    shares = logits.softmax(1) + 1e-5
    return torch.multinomial(shares.masked_fill(right, 0.0), count)


def answering_loss(model: Any, batch: VideoBatch) -> Tensor:
    """Return how unlikely a model finds the right answers: the mean over questions of minus their log likelihood.

    Args:
        model: A UMT model for question answering.
        batch: Videos of two digits; all questions about each are asked.

    Source: UMT (arXiv 2303.16058), fine-tuning for question answering, after ALBEF (arXiv 2107.07651), section 4.
    """
    whole = [tuple(move for move in moves if move is not None) for moves in batch.moves]
    asked = [pair for moves in whole for pair in questions(moves)]
    ids, mask = word_numbers([question for question, _ in asked])
    answer_ids, answer_mask = word_numbers([f"{answer} [SEP]" for _, answer in asked])
    tokens, _ = model.encode_vision(model_input(model, batch.videos))
    states = model.question_states(tokens, ids, mask)
    loss: Tensor = -model.answer_log_likelihood(states, mask, answer_ids, answer_mask).mean()
    return loss
