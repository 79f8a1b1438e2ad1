"""What models say of videos, kept on the disk: tokens and pooled vectors, a file for each video and method.

A file is there whole or not at all, and its name says of which state of which video it is. So encoding can be stopped
at any moment and goes on where it was, several processes share the work, and features may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from repshift.analysis.output.files import output_folder, write_text
from repshift.analysis.samples.processes import Processes
from repshift.errors import DataError, first_line
from repshift.files import write_whole

SETTINGS, ENDING = "settings.json", ".safetensors"
DIGITS = 24  # of names, in hexadecimal


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
        self.folder = folder / digest(self.settings)
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
        return self.folder / f"{digest(json.dumps([self.videos[video], state.st_size, state.st_mtime_ns]))}{ENDING}"

    def identity(self, videos: Sequence[int]) -> dict[str, str]:
        """Return plain values that tell these features from others: of the method, and of each video as it is now."""
        places = [place.name if (place := self.place(video)) else "" for video in videos]
        return {"features": self.folder.name, "videos": digest("\n".join(places))}

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
            with safe_open(str(place), framework="pt") as file:
                found: Tensor = file.get_tensor(name)
                return found
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{place} is damaged ({first_line(error)}). Delete it, and run the command again."
            ) from error


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


def digest(text: str) -> str:
    """Return a name for a text, such as that of a file."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:DIGITS]
