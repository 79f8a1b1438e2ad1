"""What models say of videos, kept on the disk: tokens and pooled vectors, a file for each video and method.

A file is there whole or not at all, and its name says of which state of which video it is. So encoding can be stopped
at any moment and goes on where it was, several processes share the work, and features may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from repshift.analysis.output.files import output_folder, write_text
from repshift.analysis.samples.batches import Failure, Share, seed_batch, unreadable
from repshift.analysis.samples.data import loader
from repshift.analysis.samples.processes import Processes
from repshift.analysis.subjects.memory import fitting
from repshift.analysis.video.annotations import missing_videos
from repshift.analysis.video.loading import Clips
from repshift.analysis.video.subjects import Measured, VideoSubjects
from repshift.errors import DataError, UnknownNameError, first_line
from repshift.files import write_whole

SETTINGS, ENDING = "settings.json", ".safetensors"
DIGITS = 24  # of names, in hexadecimal
ON_ERROR = ("stop", "skip")
# Called with what is going on, how much of it is done, and of how much
Observer = Callable[[str, int, int], None]


class FeatureStore:
    """The features of one method: a folder with a file for each video.

    Args:
        folder: Of all methods.
        settings: Plain values that tell the method's features from all others.
        root: The folder of the videos.
        videos: Paths under it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], root: Path, videos: Sequence[str]) -> None:
        self.settings = json.dumps(settings, indent=2, sort_keys=True)
        self.folder = folder / _digest(self.settings)
        self.root, self.videos = root, list(videos)

    def begin(self) -> None:
        """Make the folder, and write down beside the files what they are of.

        Raises:
            DataError: If it cannot be written to.
        """
        output_folder(self.folder)
        if not (self.folder / SETTINGS).is_file():
            write_text(self.folder / SETTINGS, f"{self.settings}\n")

    def place(self, video: int) -> Path | None:
        """Return the file of a video's features; ``None`` if there is no such video.

        Its name changes with the video's own name, size and time.
        """
        try:
            state = (self.root / self.videos[video]).stat()
        except OSError:
            return None
        return self.folder / f"{_digest(json.dumps([self.videos[video], state.st_size, state.st_mtime_ns]))}{ENDING}"

    def has(self, video: int) -> bool:
        """Say whether the features of a video are there."""
        place = self.place(video)
        return place is not None and place.is_file()

    def write(self, video: int, tokens: Tensor, pooled: Tensor) -> None:
        """Keep the features of a video.

        Args:
            video: Its number.
            tokens: ``(tokens, channels)``.
            pooled: ``(frames or 1, channels)``.

        Raises:
            DataError: If they are no numbers, the video has gone, or there is no room.
        """
        if not bool(tokens.isfinite().all() & pooled.isfinite().all()):
            raise DataError(
                f"The model's features of {self.videos[video]} are not numbers (NaN or infinite). Give other weights, "
                "or compute without --amp."
            )
        place = self.place(video)
        if place is None:
            raise DataError(f"{self.root / self.videos[video]} has gone while it was read. Put it back.")
        kept = {"tokens": tokens.contiguous().cpu(), "pooled": pooled.contiguous().cpu()}
        write_whole(place, lambda unfinished: save_file(kept, unfinished))

    def tokens(self, video: int) -> Tensor:
        """Read the tokens of a video, ``(tokens, channels)``; see :meth:`read`."""
        return self.read(video, "tokens")

    def pooled(self, video: int) -> Tensor:
        """Read the pooled vectors of a video, ``(frames or 1, channels)``; see :meth:`read`."""
        return self.read(video, "pooled")

    def read(self, video: int, name: str) -> Tensor:
        """Read one tensor of a video.

        Raises:
            DataError: If it is not there or damaged, or the video has changed since.
        """
        place = self.place(video)
        try:
            if place is None or not place.is_file():
                raise DataError(
                    f"The features of {self.root / self.videos[video]} are not there: it has changed or gone since it "
                    "was encoded. Run the command again."
                )
            with safe_open(str(place), framework="pt") as file:  # type: ignore[no-untyped-call]
                found: Tensor = file.get_tensor(name)
                return found
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{place} is damaged ({first_line(error)}). Delete it, and run the command again."
            ) from error


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
    workers: int
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
                "videos": _digest("\n".join(videos)),
            }
            stores = {
                name: FeatureStore(
                    self.folder,
                    {**subjects.identity(each, self.device, batches), "amp": str(self.dtype)},
                    root,
                    videos,
                )
                for name, each in subjects.measured.items()
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


@contextmanager
def features_folder(given: Path | None, results: Path | None, processes: Processes) -> Iterator[Path]:
    """Settle where features are kept.

    Args:
        given: Of ``--features``: they stay there, and serve later runs.
        results: Without it they lie beside the results file, until the command has ended well.
        processes: All processes, which get the same folder. Without either it is a temporary one.

    Raises:
        DataError: If it cannot be written to.
    """
    folder = given or (results and results.with_name(f"{results.name}.features"))
    temporary = None
    if folder is None:
        with processes.together():
            temporary = tempfile.mkdtemp(prefix="repshift-features-") if processes.first else None
        temporary = processes.exchange(temporary)[0]
        folder = Path(temporary)
    try:
        with processes.together():
            if processes.first:
                output_folder(folder)
        yield folder
        if given is None and processes.first:
            forget_features(folder)
    finally:
        if temporary is not None and processes.first:
            shutil.rmtree(temporary, ignore_errors=True)


def forget_features(folder: Path) -> None:
    """Delete features, and nothing else that may lie in their folder."""
    for store in folder.glob("*/"):
        if not store.is_symlink() and (store / SETTINGS).is_file():
            for file in (*store.glob(f"*{ENDING}"), store / SETTINGS):
                file.unlink(missing_ok=True)
            if not any(store.iterdir()):
                store.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:DIGITS]
