"""Numbers of the command line that mean nothing: checked in one way, whichever command is given them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral

from repshift.errors import DataError, UnknownNameError

SEEDS = 2**32  # what torch, NumPy and Python's random take alike
MOST_DRAWS = 1000
LARGEST_SIDE = 2**14  # pixels
LARGEST_BATCH = 2**20
PER_PROCESSOR = 8  # processes that load images; more of them only wait for each other
FEW = 16  # which any machine may have


def check_seed(seed: int, seeds: int = SEEDS) -> None:
    """Check a seed: torch would take a negative one for another number.

    Args:
        seed: What was given.
        seeds: How many there are, from 0.

    Raises:
        DataError: If it is out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < seeds:
        raise DataError(f"The seed {seed!r} is out of range. Give a seed from 0 to {seeds - 1} (--seed).")


def check_seeds(seeds: int | None) -> None:
    """Check how often a random score is drawn.

    Raises:
        DataError: If it is never, or more often than anyone could wait for.
    """
    if seeds is not None and not 1 <= seeds <= MOST_DRAWS:
        raise DataError(f"{seeds} draws of the random score cannot be compared. Give 1 to {MOST_DRAWS} (--seeds).")


def check_workers(workers: int | None) -> None:
    """Check a number of processes that load images.

    Raises:
        DataError: If it is negative, or more than the machine has any use for.
    """
    if workers is None:  # they are chosen
        return
    if workers < 0:
        raise DataError(f"{workers} worker processes cannot load anything. Give 0 or more (--workers).")
    processors = os.cpu_count() or 1
    most = max(FEW, PER_PROCESSOR * processors)
    if workers > most:
        raise DataError(
            f"{workers} worker processes are more than the {processors} processors of this machine have any use for. "
            f"Give at most {most} (--workers)."
        )


def check_threads(threads: int | None) -> None:
    """Check a number of torch's threads.

    Raises:
        DataError: If there are more than processors, or none.
    """
    processors = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= processors:
        raise DataError(
            f"{threads} threads cannot run on the {processors} processors of this machine. Give 1 to {processors} "
            "(--threads)."
        )


def check_batch(images: int, option: str = "--batch-size") -> None:
    """Check a number of images a batch.

    Raises:
        DataError: If it is none, or more than memory can ever hold.
    """
    if not 1 <= images <= LARGEST_BATCH:
        raise DataError(f"A batch of {images} images cannot be. Give 1 to {LARGEST_BATCH} ({option}).")


def check_side(pixels: int, option: str = "--img-size") -> None:
    """Check a number of pixels a side.

    Raises:
        DataError: If it is none, or more than memory can ever hold.
    """
    if not 1 <= pixels <= LARGEST_SIDE:
        raise DataError(f"Images of {pixels} pixels a side cannot be. Give 1 to {LARGEST_SIDE} ({option}).")


def check_blocks(blocks: Sequence[int]) -> list[int]:
    """Check that blocks are numbers, and each is named once; whether a model has them is for its own room to say.

    Raises:
        UnknownNameError: If they are not.
    """
    for place, block in enumerate(blocks):
        if isinstance(block, bool) or not isinstance(block, Integral):
            raise UnknownNameError(
                f"There is no block {block!r}: blocks are whole numbers, counted from zero (--blocks)."
            )
        if block in blocks[:place]:
            raise UnknownNameError(f"Block {block} is named twice. Name each block once (--blocks).")
    return [int(block) for block in blocks]


def check_candidates(count: int) -> None:
    """Refuse a number of candidates that is none.

    Raises:
        DataError: If it is not positive.
    """
    if count < 1:
        raise DataError(f"{count} candidates cannot be looked at. Give 1 or more (--candidates).")
