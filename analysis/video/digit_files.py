"""Moving digits as files: mp4, annotations as UMT publishes them, answers and a vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repshift.analysis.output.files import all_or_none, output_folder, write_text, write_whole
from repshift.analysis.samples.moving_digits import ANSWERS, VOCABULARY, DigitVideo, questions
from repshift.analysis.video.decoding import imported

RATE = 8  # frames a second
VIDEOS, CAPTIONS, QUESTIONS, ANSWER_LIST, WORDS = (
    "videos",
    "captions.json",
    "questions.json",
    "answers.json",
    "vocab.txt",
)


def write_videos(
    videos: Sequence[DigitVideo], output: Path, observe: Callable[[int, int], None] = lambda done, steps: None
) -> list[Path]:
    """Write videos with everything that ``repshift retrieve`` and ``repshift answer`` take.

    Args:
        videos: What happens in them.
        output: Folder, made if needed; it gets ``videos/0000.mp4`` and so on, ``captions.json``, ``questions.json``,
            ``answers.json`` and ``vocab.txt``.
        observe: Called with the videos written and all of them.

    Returns:
        The video files, in order.

    Raises:
        DataError: If the folder cannot be written to.
        MissingPackageError: If PyAV is not installed.
    """
    imported()
    output_folder(output / VIDEOS)
    files = [output / VIDEOS / f"{number:04d}.mp4" for number in range(len(videos))]
    for number, (video, file) in enumerate(zip(videos, files, strict=True), 1):
        write_video(video.draw(), file)
        observe(number, len(videos))
    named = list(zip(files, videos, strict=True))
    captions = [{"video": file.name, "caption": video.caption} for file, video in named]
    asked = [(file.name, *pair) for file, video in named for pair in questions(video.moves)]
    entries = [
        {"video": name, "question": question, "question_id": number, "answer": answer}
        for number, (name, question, answer) in enumerate(asked)
    ]
    with all_or_none():
        for name, content in ((CAPTIONS, captions), (QUESTIONS, entries), (ANSWER_LIST, list(ANSWERS))):
            write_text(output / name, json.dumps(content, indent=1) + "\n")
        write_text(output / WORDS, "\n".join(VOCABULARY) + "\n")
    return files


def write_video(frames: NDArray[np.uint8], path: Path) -> None:
    """Write grey frames ``(frames, rows, columns)`` uint8 as an mp4 file, in one piece.

    The codec is MPEG-4 part 2 at its highest quality, because every FFmpeg can write and read it.

    Raises:
        DataError: If the file cannot be written.
        MissingPackageError: If PyAV is not installed.
    """
    write_whole(path, lambda unfinished: _encode(frames, unfinished))


def _encode(frames: NDArray[np.uint8], path: Path) -> None:
    av: Any = imported()
    # no time and no version of the writer in the file
    with av.open(str(path), "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=RATE, options={"qmin": "1", "qmax": "2", "flags": "+bitexact"})
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            grey = np.repeat(frame[..., None], 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
