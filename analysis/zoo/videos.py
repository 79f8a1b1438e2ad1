"""What the embedded video models learn from: moving digits drawn into batches, and texts as numbers of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from repshift.analysis.samples.images import normalised
from repshift.analysis.samples.moving_digits import (
    DIRECTIONS,
    FRAMES,
    NUMBERS,
    PLACES,
    STAY,
    VOCABULARY,
    DigitPool,
    Move,
    all_moves,
    caption,
)
from repshift.analysis.video.sampling import frame_indices

FRAMES_SEEN = 6  # of a video, by the embedded models
WORDS = {word: number for number, word in enumerate(VOCABULARY)}


Phrases = tuple[Move | None, ...]  # what happens in each half of a video; nothing where it is empty


@dataclass(frozen=True, eq=False)
class VideoBatch:
    """Some videos.

    Attributes:
        videos: ``(batch, frames, 1, 48, 48)`` uint8.
        moves: What happens in each.
        random: Where further choices of this batch come from.
    """

    videos: Tensor
    moves: list[Phrases]
    random: np.random.RandomState


def video_batches(pool: DigitPool, seed: int, videos: int, size: int, moves: int) -> Iterator[VideoBatch]:
    """Draw the batches of an epoch; they follow from seed and numbers alone.

    Args:
        pool: The digits that are shown.
        seed: Of the epoch.
        videos: How many an epoch has.
        size: Videos in a batch.
        moves: Digits in a video: two, or one in the first or the second half, while the other half is empty.
    """
    indices = frame_indices(FRAMES, FRAMES_SEEN)
    halves = np.array(indices) // (PLACES * STAY)
    for start in range(0, videos, size):
        random = np.random.RandomState([seed, start])
        chosen: list[Phrases] = []
        drawn = []
        for _ in range(min(size, videos - start)):
            happens = all_moves()[random.randint(len(all_moves()))]
            frames = pool.video(happens, random).draw(indices)
            if moves == 1:
                half = int(random.randint(2))
                frames[halves != half] = 0
                chosen.append((happens[0], None) if half == 0 else (None, happens[1]))
            else:
                chosen.append(happens)
            drawn.append(frames)
        yield VideoBatch(torch.from_numpy(np.stack(drawn)).unsqueeze(2), chosen, random)


def phrase_caption(moves: Phrases) -> str:
    """Say what happens: "a three moves left" in the first half, "then a three moves left" in the second, or both."""
    first, last = moves
    return caption((first,)) if first is not None and last is None else f"{first or ''} then {last}".strip()


def foil(moves: Phrases, random: np.random.RandomState) -> Phrases:
    """Exchange one digit or one direction, so that the video is told apart by one word alone."""
    changed = list(moves)
    places = [place for place, move in enumerate(moves) if move is not None]
    place = places[random.randint(len(places))]
    move = moves[place]
    assert move is not None
    if random.randint(2):
        shown = {each.digit for each in moves if each is not None}
        others = [number for number in range(len(NUMBERS)) if number not in shown]
        changed[place] = Move(others[random.randint(len(others))], move.direction)
    else:
        ways = [direction for direction in DIRECTIONS if direction != move.direction]
        changed[place] = Move(move.digit, ways[random.randint(len(ways))])
    return tuple(changed)


def word_numbers(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Look words up, which for this vocabulary is what a tokeniser of word pieces does.

    Args:
        texts: Of words of the vocabulary, with question marks.

    Returns:
        Numbers ``(texts, length)`` int64, each text behind ``[CLS]``, and the mask of what is no padding.
    """
    rows = [torch.tensor([WORDS[word] for word in ("[CLS]", *text.replace("?", "").split())]) for text in texts]
    numbers = pad_sequence(rows, batch_first=True)
    return numbers, numbers != 0


def model_input(model: nn.Module, videos: Tensor) -> Tensor:
    """Scale ``(batch, frames, 1, rows, columns)`` uint8 to what a model was trained with, in three channels."""
    batch, frames, _, rows, columns = videos.shape
    return normalised(model, videos.flatten(0, 1).expand(-1, 3, -1, -1)).view(batch, frames, 3, rows, columns)
