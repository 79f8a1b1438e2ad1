"""Memory that ran out, said in one way wherever it happens; memory that is kept while something is timed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from repshift.errors import AdvisedError

SIGNS = ("can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


# Parameters of the GNU C library's mallopt, from its malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGE = 2**30  # bytes


class MemoryExhaustedError(AdvisedError):
    """A batch that does not fit into memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on a GPU or a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch's allocator for CPUs has no class of error of its own, and neither have CUDA's libraries
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextmanager
def fitting(batch_size: int, device: str, *, retry: bool = True) -> Iterator[None]:
    """Turn running out of memory into one clear error.

    Args:
        batch_size: Of what runs inside.
        device: What messages call it.
        retry: Whether the command has an option ``--retry``.

    Raises:
        MemoryExhaustedError: If what runs inside does not fit; the message suggests half of the batch.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = (
            f"Give --batch-size {batch_size // 2}{', or --retry to try smaller ones in turn' * retry}."
            if batch_size > 1
            else "Give smaller images, a smaller model, or another device."
        )
        why = f"A batch of {batch_size} does not fit into the memory of {device}."
        raise MemoryExhaustedError(why, advice) from error


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, instead of giving it back to the system and asking again.

    Giving back and asking again costs a fifth of a ResNet-50's time on a CPU, and how much of it depends on what else
    is held at the moment: of two methods the one that needs *more* memory may seem faster. Other allocators (jemalloc,
    tcmalloc) keep it anyway.

    Returns:
        Whether the system's C library can be told so: that of GNU can.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(TRIM_THRESHOLD, LARGE)) and bool(mallopt(MMAP_THRESHOLD, LARGE))
