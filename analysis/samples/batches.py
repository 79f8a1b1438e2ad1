"""Samples on their way to a model: which ones, put together, and those that could not be read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repshift.errors import DataError


@dataclass(frozen=True)
class Failure:
    """A sample that could not be read.

    Attributes:
        index: Its number.
        name: Its file, as far as the reader knows it.
        reason: What the decoder said.
    """

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        indices: Their numbers.
        images: ``(batch, channels, rows, columns)`` float32, normalised; may hold none.
        labels: Their classes, -1 where the data have none.
        failures: The samples of this batch that could not be read, which are in none of the above.
        problem: Why the data end here; errors of worker processes would lose their message.
    """

    indices: list[int]
    images: Tensor
    labels: list[int]
    failures: list[Failure] = field(default_factory=list)
    problem: str | None = None

    def pin_memory(self) -> Batch:
        """Move the images to page-locked memory; torch's loader calls it."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True)
class Share:
    """Which samples one of several processes takes: every ``processes``-th one from ``rank``, but those done before.

    Attributes:
        rank: The process, from zero.
        processes: How many there are.
        done: Numbers of samples that are left out.
    """

    rank: int = 0
    processes: int = 1
    done: Collection[int] = frozenset()

    def batches(self, count: int, batch_size: int) -> list[list[int]]:
        """Divide the numbers from 0 to ``count - 1``; a batch does not depend on what was done before."""
        own = range(self.rank, count, self.processes)
        parts = (own[start : start + batch_size] for start in range(0, len(own), batch_size))
        left = ([index for index in part if index not in self.done] for part in parts)
        return [part for part in left if part]


def collate(read: Sequence[tuple[int, tuple[Tensor, int] | Failure]], config: Mapping[str, Any]) -> Batch:
    """Put samples together, those that could not be read aside.

    Args:
        read: Numbers with what was read: an image ``(channels, rows, columns)`` float32 and its label, or a failure.
        config: timm's data configuration, for the shape of a batch without images.
    """
    whole = [(index, *sample) for index, sample in read if not isinstance(sample, Failure)]
    images = torch.stack([image for _, image, _ in whole]) if whole else torch.empty(0, *config["input_size"])
    failures = [sample for _, sample in read if isinstance(sample, Failure)]
    return Batch([index for index, *_ in whole], images, [label for *_, label in whole], failures)


def seed_batch(seed: int, first: int) -> None:
    """Seed what is drawn for a batch, so that it does not depend on batches before, which may be of an earlier run.

    Args:
        seed: Of the run.
        first: Number of the batch's first sample.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, first)).generate_state(1)[0]))


def known_label(target: Any, valid_labels: Sequence[int] | None) -> int:
    """Return a label as the model's class, -1 where the data have none or one that is not valid."""
    label = -1 if target is None else int(target)
    if valid_labels is None or label < 0:
        return max(label, -1)
    return valid_labels[label] if label < len(valid_labels) else -1


def unreadable(failures: Sequence[Failure]) -> DataError:
    """Make the error that names samples which cannot be read."""
    named = "; ".join(f"{failure.name} ({failure.reason})" for failure in failures[:5])
    more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
    return DataError(f"Cannot read {named}{more}. Replace the file or take it out.")
