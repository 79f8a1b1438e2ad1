"""Frames out of video files, by PyAV: only those that are wanted are kept.

A file is gone through twice. First its packets are counted, without decoding, because headers of mkv and webm hold no
number of frames and others may be wrong; their times say which frame is which. Then the wanted frames are decoded, from
the last key frame before each. If that does not find them all, the whole file is decoded and counted in order.

FFmpeg knows formats that are lists of other files and addresses (HLS, ffconcat, DASH). A file from outside must not
make it open these, so only containers are let in, and only files are opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repshift.analysis.video.packets import Index, index_packets
from repshift.analysis.video.sampling import frame_indices, limited_length
from repshift.errors import DataError, MissingPackageError, first_line

CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,h264,hevc,ivf,gif"
MOST_PIXELS = 8192 * 8192  # of a frame; a header may claim any size


@dataclass(frozen=True, eq=False)
class Clip:
    """Some frames of a video.

    Attributes:
        frames: ``(frames, 3, rows, columns)`` uint8, RGB, upright.
        indices: Their numbers in the video, counted from zero; of a short video, the last one again and again.
        times: When they are shown, in seconds from the first one.
        length: How many frames the video has, or its beginning that counts.
    """

    frames: Tensor
    indices: list[int]
    times: list[float]
    length: int


def read_clip(path: str | Path, frames: int, *, seconds: float | None = None) -> Tensor:
    """Read frames of a video, evenly spread over it.

    Args:
        path: The file.
        frames: How many; a shorter video's last one is repeated.
        seconds: Look at its first seconds only.

    Returns:
        ``(frames, 3, rows, columns)`` uint8, RGB.

    Raises:
        DataError: If the file is missing, no video, cut off, or no frame of it can be decoded; the message names it.
        MissingPackageError: If PyAV is not installed.
    """
    return decode(path, frames, seconds=seconds).frames


def decode(path: str | Path, frames: int, *, seconds: float | None = None) -> Clip:
    """Read frames of a video with their numbers and times, see :func:`read_clip`."""
    place = Path(path)
    _check_file(place)
    with _named(place), _opened(place) as (container, stream):
        index = index_packets(container, stream)
    if index.problem:
        raise DataError(f"{place} {index.problem}. Copy it again, or take it out.")
    rate = index.rate
    length = limited_length(index.length, rate, seconds)
    wanted = frame_indices(length, frames)
    with _named(place):
        found = _by_time(place, index, sorted(set(wanted))) if index.times else None
        if found is None:
            counted, found = _by_order(place, set())
            if not counted:
                raise DataError(f"{place} has no frame that can be decoded. Copy it again, or take it out.")
            length = limited_length(counted, rate, seconds)
            wanted = frame_indices(length, frames)
            _, found = _by_order(place, set(wanted))
    times = index.times if len(index.times) > wanted[-1] else None
    seen = [float((times[at] - times[0]) * index.tick) if times else at / rate for at in wanted]
    return Clip(_stacked([found[at] for at in wanted]), wanted, seen, length)


def _by_time(path: Path, index: Index, wanted: Sequence[int]) -> dict[int, NDArray[np.uint8]] | None:
    """Decode frames by their times, from the key frame before each; ``None`` if one is not where it should be."""
    left = [index.times[at] for at in wanted]
    found: dict[int, NDArray[np.uint8]] = {}
    with _opened(path) as (container, stream):
        for frame in index.decoded_around(container, stream, left):
            if frame.pts is None or frame.pts > left[0]:
                return None
            if frame.pts == left[0]:
                found[wanted[len(found)]] = _pixels(frame)
                left.pop(0)
                if not left:
                    return found
    return None


def _by_order(path: Path, wanted: set[int]) -> tuple[int, dict[int, NDArray[np.uint8]]]:
    """Decode a whole video, or up to the last wanted frame: how many frames came, and those that are wanted."""
    found: dict[int, NDArray[np.uint8]] = {}
    count = 0
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            if count in wanted:
                found[count] = _pixels(frame)
            count += 1
            if wanted and len(found) == len(wanted):
                break
    return count, found


def _pixels(frame: Any) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, round(frame.rotation / 90))


def _stacked(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Put frames together; those of another size than the first, which some streams have, are brought to its size."""
    size = pictures[0].shape[:2]
    maps = [torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))) for picture in pictures]
    return torch.stack([each if each.shape[1:] == size else _fitted(each, size) for each in maps])


def _fitted(picture: Tensor, size: tuple[int, ...]) -> Tensor:
    resized = torch.nn.functional.interpolate(picture.float().unsqueeze(0), size=size, mode="bilinear")
    return resized[0].round().to(torch.uint8)


# --- opening ------------------------------------------------------------------------------------------------------


def _check_file(path: Path) -> None:
    try:
        if path.is_file():
            if path.stat().st_size:
                return
            problem = "is empty"
        else:
            problem = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
    except (OSError, ValueError) as error:  # a name may be too long, or none
        problem = f"cannot be read ({first_line(error)})"
    raise DataError(f"Video {path} {problem}. Give a video file, such as an mp4.")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in what PyAV says of it."""
    av = imported()
    try:
        yield
    except (av.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(
            f"{path} is not a video that FFmpeg can read ({reason}). Copy it again, or take it out."
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    av = imported()
    # a name such as http://... would be an address, and a list of files would open others
    safe = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    with av.open(f"file:{path}", options=safe, metadata_errors="replace") as container:
        stream = container.streams.best("video")
        if stream is None:
            raise DataError(f"{path} holds no video. Give a video file, such as an mp4.")
        size = (stream.codec_context.width, stream.codec_context.height)
        if size[0] * size[1] > MOST_PIXELS:
            raise DataError(f"{path} has frames of {size[0]} x {size[1]} pixels, too large to decode. Make it smaller.")
        # worker processes are the parallelism; threads of each would only crowd the processors
        stream.codec_context.thread_count = 1
        yield container, stream


def imported() -> Any:
    """Import PyAV.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingPackageError('Videos are read by PyAV: pip install "repshift[video]".') from error
    return av
