"""Moving digits: small videos with captions and questions, on which retrieval and question answering can be watched.

Two handwritten digits come one after the other, and each hops over the frame in one of four directions: "a three moves
left then a seven moves up". What a video shows follows from the digits, a seed and its number, through NumPy's frozen
``RandomState`` streams. The digits are those of the canvases (:mod:`repshift.analysis.samples.canvases`): 8,000 train
the embedded video models, 2,000 are shipped and evaluate them.

Source: after Moving MNIST (Srivastava et al. 2015, arXiv 1502.04681) and its captioned forms (Mittal et al. 2017, arXiv
1611.10314), made easier: digits stand on a grid of 8 pixels, so that a plain patch embedding learns them in minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from repshift.analysis.samples.canvases import Digits

SIDE = 48  # pixels of a frame
DIGIT = 16  # pixels a side of a digit
CELL = 8  # pixels; digits stand at multiples of it
HOP = 2  # cells from one place to the next
PLACES = 3  # of each digit
STAY = 4  # frames at each place
FRAMES = 2 * PLACES * STAY  # of a video of two digits
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows, columns
ANSWERS = (*NUMBERS, *DIRECTIONS)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (
    *SPECIAL,
    *ANSWERS,
    *("a", "moves", "then", "which", "digit", "comes", "first", "last", "where", "does", "the", "move"),
)


@dataclass(frozen=True)
class Move:
    """A digit and the way it goes.

    Attributes:
        digit: 0 to 9.
        direction: A key of :data:`DIRECTIONS`.
    """

    digit: int
    direction: str

    def __str__(self) -> str:
        return f"a {NUMBERS[self.digit]} moves {self.direction}"


Moves = tuple[Move, ...]


@dataclass(frozen=True, eq=False)
class DigitVideo:
    """A video that has not been drawn yet.

    Attributes:
        moves: What happens, in order.
        digits: ``(moves, 16, 16)`` uint8, as they are written.
        corners: ``(frames, 2)`` int64, top and left of the digit that each frame shows.
    """

    moves: Moves
    digits: NDArray[np.uint8]
    corners: NDArray[np.int64]

    @property
    def caption(self) -> str:
        """Say what happens."""
        return caption(self.moves)

    def draw(self, indices: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Draw frames.

        Args:
            indices: Which ones, counted from zero; all by default.

        Returns:
            ``(frames, 48, 48)`` uint8, one channel.
        """
        wanted = range(len(self.corners)) if indices is None else indices
        frames = np.zeros((len(wanted), SIDE, SIDE), np.uint8)
        for frame, index in zip(frames, wanted, strict=True):
            top, left = self.corners[index]
            frame[top : top + DIGIT, left : left + DIGIT] = self.digits[index // (PLACES * STAY)]
        return frames


class DigitPool:
    """Handwritten digits, made small and sorted by what they are.

    Args:
        digits: Images of 28x28 pixels.
    """

    def __init__(self, digits: Digits) -> None:
        self.images = shrink(digits.images)
        self.written = [np.flatnonzero(digits.labels == number) for number in range(len(NUMBERS))]

    def video(self, moves: Moves, random: np.random.RandomState) -> DigitVideo:
        """Choose how the digits of a video are written, and where they go.

        Each crosses the frame in its direction; on which row or column is drawn.
        """
        digits, corners = [], []
        for move in moves:
            written = self.written[move.digit]
            digits.append(self.images[written[random.randint(len(written))]])
            corners.append(_path(move.direction, int(random.randint((SIDE - DIGIT) // CELL + 1))))
        return DigitVideo(moves, np.stack(digits), np.concatenate(corners))


def _path(direction: str, line: int) -> NDArray[np.int64]:
    """Return the corners of a digit that crosses the frame on a row or column, ``(frames, 2)``."""
    rows, columns = DIRECTIONS[direction]
    along = np.arange(PLACES).repeat(STAY) * HOP * CELL
    across = np.full_like(along, line * CELL)
    if rows + columns < 0:
        along = along[::-1]
    return np.stack([along, across] if rows else [across, along], axis=1)


def shrink(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take two pixels off every side of MNIST's images and bring the rest from 24x24 to 16x16 by area.

    Args:
        images: ``(digits, 28, 28)`` uint8.

    Returns:
        ``(digits, 16, 16)`` uint8, the same on every machine: only integers are involved.
    """
    shares = np.kron(
        np.eye(DIGIT // 2, dtype=np.int64), np.array([[2, 1, 0], [0, 1, 2]])
    )  # of 3 pixels for 2, in thirds
    ninths = shares @ images[:, 2:-2, 2:-2].astype(np.int64) @ shares.T
    small: NDArray[np.uint8] = ((ninths + 4) // 9).astype(np.uint8)
    return small


@cache
def all_moves() -> tuple[Moves, ...]:
    """List what can happen in a video: 1,440 pairs of moves of two different digits."""
    pairs = product(permutations(range(len(NUMBERS)), 2), DIRECTIONS, DIRECTIONS)
    return tuple((Move(first, one), Move(last, other)) for (first, last), one, other in pairs)


def caption(moves: Moves) -> str:
    """Say what happens in a video."""
    return " then ".join(map(str, moves))


def numbered_video(pool: DigitPool, seed: int, index: int) -> DigitVideo:
    """Make a video by its number; the first 1,440 of a seed all have different captions.

    Args:
        pool: The digits that are shown.
        seed: Another seed gives other videos in another order.
        index: Number of the video.
    """
    order = np.random.RandomState(seed).permutation(len(all_moves()))
    moves = all_moves()[order[index % len(order)]]
    return pool.video(moves, np.random.RandomState([seed, index]))


def questions(moves: Moves) -> list[tuple[str, str]]:
    """Ask about a video of two different digits: which comes first and last, and where each of them goes.

    Returns:
        Questions with their answers, which are words of :data:`ANSWERS`.
    """
    first, last = moves
    order = [("which digit comes first?", NUMBERS[first.digit]), ("which digit comes last?", NUMBERS[last.digit])]
    return order + [(f"where does the {NUMBERS[move.digit]} move?", move.direction) for move in moves]
