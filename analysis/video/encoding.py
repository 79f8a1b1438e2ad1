"""Encoding videos: by every method and in several processes, each video once, into the stores of their features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from repshift.analysis.samples.batches import Failure, Share, seed_batch, unreadable
from repshift.analysis.samples.data import loader
from repshift.analysis.samples.processes import Processes
from repshift.analysis.subjects.memory import fitting
from repshift.analysis.video.annotations import missing_videos
from repshift.analysis.video.features import FeatureStore, digest
from repshift.analysis.video.loading import Clips
from repshift.analysis.video.subjects import Measured, VideoSubjects
from repshift.errors import DataError, UnknownNameError

ON_ERROR = ("stop", "skip")
# Called with what is going on, how much of it is done, and of how much
Observer = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Encoded:
    """The features of all methods.

    Attributes:
        stores: By the name of what is measured.
        failures: Videos that could not be read and are left out, by number.
    """

    stores: dict[str, FeatureStore]
    failures: list[Failure] = field(default_factory=list)

    @property
    def unreadable(self) -> frozenset[int]:
        """Numbers of the videos that are left out."""
        return frozenset(failure.index for failure in self.failures)

    @property
    def notes(self) -> list[str]:
        """Which videos were left out, a line each."""
        return [f"skipped {failure.name} ({failure.reason})" for failure in self.failures]


@dataclass(frozen=True)
class Encoding:
    """How videos are encoded.

    Attributes:
        processes: All processes; each calls the same functions.
        folder: Where features are kept; the same for all processes.
        batch_size: Videos a process and step.
        workers: Processes that decode, for each that computes.
        device: Where models run.
        dtype: Of mixed precision; ``None`` for that of the weights.
        on_error: ``stop`` at a video that cannot be read, or ``skip`` and name it.
        observe: Told about the progress.
    """

    processes: Processes
    folder: Path
    batch_size: int
    workers: int | None
    device: torch.device
    dtype: torch.dtype | None = None
    on_error: str = "stop"
    observe: Observer = lambda what, done, total: None

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise UnknownNameError(f"Unknown --on-error {self.on_error!r}. Give {' or '.join(ON_ERROR)}.")

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute what is inside without gradients, in the precision that was asked for."""
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            yield

    def run(self, subjects: VideoSubjects, root: Path, videos: Sequence[str]) -> Encoded:
        """Encode every video by every method, each once; what is on the disk already is not computed again.

        Args:
            subjects: The models.
            root: The folder of the videos.
            videos: Paths under it, each once.

        Raises:
            DataError: If a video cannot be read and is not to be skipped, or none can.
            MemoryExhaustedError: If a batch does not fit into memory.
        """
        with self.processes.together():
            self._check_there(root, videos)
            batches = {
                "batch_size": self.batch_size,
                "processes": self.processes.count,
                "videos": digest("\n".join(videos)),
            }
            stores = {
                name: FeatureStore(self.folder, {**told, "amp": str(self.dtype)}, root, videos)
                for name, told in subjects.identities(self.device, batches).items()
            }
            for store in stores.values() if self.processes.first else ():
                store.begin()
        failures: dict[int, Failure] = {}
        with self.processes.together(), fitting(self.batch_size, str(self.device), retry=False):
            by_frames: dict[int, list[str]] = {}
            for name, each in subjects.measured.items():
                by_frames.setdefault(each.frames, []).append(name)
            for frames, names in by_frames.items():
                given = subjects.given
                clips = Clips(root, videos, frames, given.size, given.mean, given.std, given.seconds)
                kept = {name: (subjects.measured[name], stores[name]) for name in names}
                for failure in self._encode(clips, kept, subjects.subjects.seed):
                    failures[failure.index] = failure
        for failed in self.processes.exchange(failures):
            failures |= failed
        if len(failures) == len(videos):
            raise unreadable(list(failures.values()))
        return Encoded(stores, [failures[index] for index in sorted(failures)])

    def _check_there(self, root: Path, videos: Sequence[str]) -> None:
        missing = missing_videos(root, videos)
        if missing and self.on_error == "stop":
            more = f", and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise DataError(
                f"{len(missing)} of {len(videos)} videos are not in {root}: {', '.join(missing[:3])}{more}. Put them "
                "there, or leave them out and count them: --on-error skip."
            )

    def _encode(self, clips: Clips, kept: Mapping[str, tuple[Measured, FeatureStore]], seed: int) -> Iterator[Failure]:
        share = Share(self.processes.rank, self.processes.count)
        parts = share.batches(len(clips), self.batch_size)
        # whole batches only: what a model says of a video may depend, in the last digit, on those beside it
        done = {
            index
            for part in parts
            if all(store.has(index) for _, store in kept.values() for index in part)
            for index in part
        }
        share = Share(self.processes.rank, self.processes.count, frozenset(done))
        total, count = sum(map(len, parts)), len(done)
        self.observe("videos", count, total)
        for batch in loader(clips, self.batch_size, self.workers, share=share, pin_memory=self.device.type == "cuda"):
            if batch.failures and self.on_error == "stop":
                raise DataError(
                    f"{unreadable(batch.failures)} Or leave such videos out and count them: --on-error skip."
                )
            yield from batch.failures
            if batch.indices:
                videos = batch.images.to(self.device, non_blocking=True)
                for each, store in kept.values():
                    self._encode_batch(each, store, batch.indices, videos, seed)
            count += len(batch.indices) + len(batch.failures)
            self.observe("videos", count, total)
            if self.processes.failing:
                return

    def _encode_batch(
        self, each: Measured, store: FeatureStore, indices: Sequence[int], videos: Tensor, seed: int
    ) -> None:
        if all(store.has(index) for index in indices):
            return
        seed_batch(seed + each.draw, indices[0])
        with self.computing():
            tokens, pooled = each.model(videos)
        for index, own, mean in zip(indices, tokens.cpu(), pooled.cpu(), strict=True):
            store.write(index, own, mean)
