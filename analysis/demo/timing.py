"""How fast the demo's models are, timed in turn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn

ROUNDS = 3  # each model is timed so often, in turn with the others
SECONDS = 0.2  # for so long at least


def images_per_second(
    models: Sequence[nn.Module], batches: Sequence[Tensor], step: Callable[[], None] = lambda: None
) -> list[float]:
    """Time the models in turn, so that a machine that slows down slows all of them.

    Args:
        models: The models.
        batches: What each of them sees.
        step: Called after every timing.
    """
    # importing the timer warns of a CUDA toolkit without a GPU, as if something were to be compiled
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for model, batch, taken in zip(models, batches, seconds, strict=True):
                timer = Timer(
                    "model(batch)", globals={"model": model, "batch": batch}, num_threads=torch.get_num_threads()
                )
                taken.append(timer.blocked_autorange(min_run_time=SECONDS).median)
                step()
    return [len(batch) / median(taken) for batch, taken in zip(batches, seconds, strict=True)]
