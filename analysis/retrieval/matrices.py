"""The scores of videos and texts: cosine similarities of all pairs, and matching of the best candidates in either way.

Follows the published evaluation of Unmasked Teacher (arXiv 2303.16058). A video's keys and values are projected once, a
pair that is a candidate in both directions is matched once, and the tokens of one video at a time are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from repshift.analysis.retrieval.ranking import best_candidates
from repshift.analysis.subjects.limits import check_candidates
from repshift.errors import DataError

CANDIDATES = 128  # that are looked at twice
NO_CANDIDATE = -100.0  # the score of all others
MATCH = 1  # the matching head's logit for "they belong together"

# Called after every step with how many are done, and of how many
Observer = Callable[[int, int], None]


class RetrievalModel(Protocol):
    """What is asked of a retrieval model beside its video encoder, as UMT's for retrieval has it."""

    def encode_text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states of texts ``(texts, length, channels)``, and those of their first tokens."""
        ...

    def itc(self, pooled: Tensor, first: Tensor) -> Tensor:
        """Return similarities ``(videos, texts)`` of pooled videos ``(videos, frames, channels)`` and first tokens."""
        ...

    def project_video(self, tokens: Tensor) -> Any:
        """Return the keys and values of a video's tokens for each layer that reads them."""
        ...

    def match(self, projected: Any, states: Tensor, mask: Tensor) -> Tensor:
        """Return the logits ``(pairs, 2)`` of texts and one video, or as many."""
        ...


@dataclass(frozen=True)
class Texts:
    """The states of all texts, without their padding.

    Attributes:
        states: Of each text, ``(its length, channels)``.
        first: States of the first tokens, ``(texts, channels)``.
    """

    states: list[Tensor]
    first: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def batch(self, numbers: Sequence[int], device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Put some texts together, padded to the longest of them, which is what the mask says.

        Args:
            numbers: Of the texts.
            device: Where to.

        Returns:
            ``(texts, length, channels)``, and ``(texts, length)`` bool.
        """
        chosen = [self.states[number] for number in numbers]
        padded = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        lengths = torch.tensor([len(states) for states in chosen])
        mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
        return padded.to(device), mask.to(device)


def encode_texts(
    model: RetrievalModel,
    ids: Tensor,
    mask: Tensor,
    batch_size: int,
    device: torch.device | str = "cpu",
    observe: Observer = lambda done, total: None,
) -> Texts:
    """Encode all texts; what is kept of them is in the memory of the CPU.

    Args:
        model: The model.
        ids: ``(texts, length)`` int64.
        mask: The same shape; padding, behind the text, is zero.
        batch_size: Texts a step.
        device: Where the model is.
        observe: Told about the progress.
    """
    states: list[Tensor] = []
    first: list[Tensor] = []
    lengths = mask.long().sum(1).tolist()
    for start in range(0, len(ids), batch_size):
        part = slice(start, start + batch_size)
        longest = max(lengths[part])
        found, own = model.encode_text(ids[part, :longest].to(device), mask[part, :longest].to(device))
        states += [text[:length].clone() for text, length in zip(found.cpu(), lengths[part], strict=True)]
        first.append(own.cpu())
        observe(len(states), len(ids))
    return Texts(states, torch.cat(first))


def itc_matrix(
    model: RetrievalModel, pooled: Tensor, first: Tensor, batch_size: int = 256, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the similarities of all videos and texts: cosines of the projections, mean over frames, no temperature.

    Args:
        model: The model.
        pooled: ``(videos, frames or 1, channels)``.
        first: ``(texts, channels)``, states of the texts' first tokens.
        batch_size: Videos a step.
        device: Where the model is.

    Returns:
        ``(videos, texts)`` float32, on the CPU.
    """
    texts = first.to(device)
    parts = [model.itc(part.to(device), texts).float().cpu() for part in torch.split(pooled, batch_size)]
    return torch.cat(parts)


@dataclass(frozen=True)
class Candidates:
    """The pairs that are looked at twice.

    Attributes:
        of_videos: The best texts of each video, ``(videos, at most k)`` int64.
        of_texts: The best videos of each text, ``(texts, at most k)`` int64.
    """

    of_videos: Tensor
    of_texts: Tensor

    @classmethod
    def of(cls, itc: Tensor, count: int = CANDIDATES) -> Candidates:
        """Choose them by similarity ``(videos, texts)``; of fewer than ``count`` all are candidates.

        Raises:
            DataError: If ``count`` is not positive, or a similarity is no number.
        """
        check_candidates(count)
        if bool(itc.isnan().any()):
            raise DataError("The model's similarities are not numbers (NaN). Give other weights.")
        return cls(best_candidates(itc, count), best_candidates(itc.T, count))

    def texts_by_video(self) -> list[list[int]]:
        """List of each video the texts that it is matched with, in either direction, each once and in order."""
        chosen = [set(row) for row in self.of_videos.tolist()]
        for text, videos in enumerate(self.of_texts.tolist()):
            for video in videos:
                chosen[video].add(text)
        return [sorted(texts) for texts in chosen]


def match_video(
    model: RetrievalModel,
    tokens: Tensor,
    texts: Texts,
    numbers: Sequence[int],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Match one video with some texts.

    Args:
        model: The model.
        tokens: ``(tokens, channels)`` of the video.
        texts: All texts.
        numbers: Of those that it is matched with.
        batch_size: Pairs a step.
        device: Where the model is.

    Returns:
        ``(len(numbers),)`` float32 on the CPU: raw logits of the matching head.
    """
    projected = model.project_video(tokens[None].to(device))
    found = [
        model.match(projected, *texts.batch(numbers[start : start + batch_size], device))[:, MATCH].float().cpu()
        for start in range(0, len(numbers), batch_size)
    ]
    return torch.cat(found)


def matched_matrices(
    candidates: Candidates, scores: Iterator[tuple[int, Sequence[int], Tensor]]
) -> tuple[Tensor, Tensor]:
    """Lay out the scores of both directions; whatever is no candidate of a direction has the score -100 in it.

    Args:
        candidates: Of both directions.
        scores: A video, numbers of texts, and their scores.

    Returns:
        ``(videos, texts)`` of videos that look for texts, and ``(texts, videos)`` of texts that look for videos.
    """
    videos, count = len(candidates.of_videos), len(candidates.of_texts)
    both = torch.full((videos, count), NO_CANDIDATE)
    for video, numbers, found in scores:
        both[video, list(numbers)] = found
    to_text = torch.full_like(both, NO_CANDIDATE)
    to_text.scatter_(1, candidates.of_videos, both.gather(1, candidates.of_videos))
    turned = both.T
    to_video = torch.full((count, videos), NO_CANDIDATE)
    to_video.scatter_(1, candidates.of_texts, turned.gather(1, candidates.of_texts))
    return to_text, to_video


def reranked_matrices(
    model: RetrievalModel,
    tokens_of: Callable[[int], Tensor],
    texts: Texts,
    itc: Tensor,
    count: int = CANDIDATES,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Match the best candidates of every video and of every text.

    Args:
        model: The model.
        tokens_of: Given the number of a video, its tokens ``(tokens, channels)``; asked once a video.
        texts: All texts.
        itc: ``(videos, texts)``, see :func:`itc_matrix`.
        count: How many candidates in either direction.
        batch_size: Pairs a step.
        device: Where the model is.

    Returns:
        ``(videos, texts)`` of videos that look for texts, and ``(texts, videos)`` of texts that look for
        videos; float32.
    """
    candidates = Candidates.of(itc, count)
    return matched_matrices(
        candidates,
        (
            (video, numbers, match_video(model, tokens_of(video), texts, numbers, batch_size, device))
            for video, numbers in enumerate(candidates.texts_by_video())
            if numbers
        ),
    )
