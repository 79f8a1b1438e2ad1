"""Videos as samples, read by number: what the loaders of :mod:`repshift.analysis.samples` take."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from repshift.analysis.samples.batches import Batch, Failure, Share, collate
from repshift.analysis.samples.data import NOT_THE_IMAGE
from repshift.analysis.video.decoding import imported, read_clip
from repshift.analysis.video.frames import MEAN, STD, preprocess
from repshift.errors import DataError, first_line


class Clips:
    """Videos that are read by number and preprocessed, for :func:`repshift.analysis.samples.data.loader`.

    Batches hold ``(videos, frames, 3, size, size)`` float32 as their images, and those that could not be read by name.

    Args:
        root: The folder that the videos lie in.
        videos: Paths under it.
        frames: Frames of each.
        size: Pixels a side.
        mean: Of each channel.
        std: Of each channel.
        seconds: Only so much of the beginning of each video counts.

    Raises:
        MissingPackageError: If PyAV is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        videos: Sequence[str],
        frames: int,
        size: int,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        seconds: float | None = None,
    ) -> None:
        imported()  # said here, worker processes would repeat it for every video
        self.root, self.videos, self.frames, self.size = Path(root), list(videos), frames, size
        self.mean, self.std, self.seconds = tuple(mean), tuple(std), seconds

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, index: int) -> tuple[Tensor, int] | Failure:
        """Read one video, ``(frames, 3, size, size)`` float32, or say why it cannot be read."""
        file = self.root / self.videos[index]
        try:
            clip = read_clip(file, self.frames, seconds=self.seconds)
        except DataError as error:
            number = getattr(error.__cause__, "errno", None)
            if number in NOT_THE_IMAGE and not (number == errno.EIO and _can_be_read(file)):
                raise DataError(
                    f"Cannot read {file} ({first_line(error)}), and it is not the video's fault. Give the machine what "
                    "it lacks, and try again."
                ) from error
            return Failure(index, str(file), first_line(error))
        return preprocess(clip, self.size, self.mean, self.std), -1

    def batched(self, batch_size: int, share: Share) -> tuple[Dataset[Batch], int]:
        """Return the batches of a share, each an item, and how many workers may read them."""
        parts = share.batches(len(self), batch_size)
        return _Batches(self, parts), len(parts)


def _can_be_read(file: Path) -> bool:
    """Say whether the system reads a file to its end; FFmpeg calls it an error of input, too, that it was cut off."""
    try:
        with file.open("rb") as content:
            while content.read(1 << 20):
                pass
    except OSError:
        return False
    return True


class _Batches(Dataset[Batch]):
    def __init__(self, clips: Clips, parts: list[list[int]]) -> None:
        self.clips, self.parts = clips, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Batch:
        if number >= len(self.parts):
            raise IndexError
        shape = {"input_size": (self.clips.frames, 3, self.clips.size, self.clips.size)}
        return collate([(index, self.clips.read(index)) for index in self.parts[number]], shape)
