"""Annotation files of video data sets, as UMT publishes them: which texts belong to which videos.

A file is one JSON list. Every entry has a ``video``, a path under the folder of the videos, and

- a ``caption``: the text of this video;
- or a list of captions: each a query of its own (MSVD), or together one paragraph (ActivityNet, DiDeMo);
- where ``video`` is a list (SSV2), a ``caption`` that is right for each of these;
- or a ``question``, a ``question_id`` and an ``answer``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from repshift.analysis.video.presets import DatasetPreset
from repshift.analysis.video.texts import clean
from repshift.errors import DataError, first_line

SHOWN = 100  # letters of an entry in a message
PATHS = "surrogateescape"  # names of files that are no UTF-8 are written so


@dataclass(frozen=True)
class Annotations:
    """Videos and texts, and which are right for which.

    Attributes:
        videos: Paths under the folder of the videos. A video that several entries of SSV2 name is here each time.
        texts: As they are in the file, not cleaned yet.
        right_texts: Of each video the numbers of its texts.
        right_videos: Of each text the numbers of its videos.
    """

    videos: list[str]
    texts: list[str]
    right_texts: list[list[int]]
    right_videos: list[list[int]]


@dataclass(frozen=True)
class Questions:
    """Questions on videos; all lists have an entry for each question.

    Attributes:
        videos: Paths under the folder of the videos; one video may have many questions.
        questions: As they are in the file, not cleaned yet.
        question_ids: Numbers or names, each there once.
        answers: The right ones.
    """

    videos: list[str]
    questions: list[str]
    question_ids: list[int | str]
    answers: list[str]

    def distinct_videos(self) -> tuple[list[str], list[int]]:
        """Return every video once, and of each question the number of its video."""
        videos = list(dict.fromkeys(self.videos))
        numbers = {video: number for number, video in enumerate(videos)}
        return videos, [numbers[video] for video in self.videos]


def read_retrieval(file: str | Path, preset: DatasetPreset | None = None) -> Annotations:
    """Read which texts belong to which videos.

    Args:
        file: A JSON list, see above.
        preset: Of a named data set; it says whether the captions of a video are one paragraph. By default they are not.

    Raises:
        DataError: If the file is missing or has another form, a caption is empty, or a video is listed twice; the
            message has the entry and its number, counted from 0.
    """
    path = Path(file)
    videos: list[str] = []
    texts: list[str] = []
    right_texts: list[list[int]] = []
    right_videos: list[list[int]] = []
    listed: dict[str, int] = {}
    for entry in _entries(path, ("video", "caption")):
        captions = entry.texts("caption", joined=preset is not None and preset.paragraph)
        several = isinstance(entry.values["video"], list)
        numbers = range(len(texts), len(texts) + len(captions))
        own = range(len(videos), len(videos) + len(entry.videos))
        for video in entry.videos:
            if not several and (first := listed.setdefault(video, entry.number)) != entry.number:
                raise entry.error(f"names the video of entry {first} again", "List every video once")
            right_texts.append(list(numbers))
        videos += entry.videos
        texts += captions
        right_videos += [list(own) for _ in captions]
    return Annotations(videos, texts, right_texts, right_videos)


def read_questions(file: str | Path) -> Questions:
    """Read questions on videos.

    Raises:
        DataError: If the file is missing or has another form, a question or an answer is empty, or a ``question_id`` is
            there twice; the message has the entry and its number, counted from 0.
    """
    found = Questions([], [], [], [])
    listed: dict[int | str, int] = {}
    for entry in _entries(Path(file), ("video", "question", "question_id", "answer")):
        if len(entry.videos) != 1:
            raise entry.error("asks of several videos", "Give one video")
        asked = entry.values["question_id"]
        if isinstance(asked, bool) or not isinstance(asked, (int, str)):
            raise entry.error(f"has the question_id {asked!r}", "Give a whole number or a name")
        if (first := listed.setdefault(asked, entry.number)) != entry.number:
            raise entry.error(f"has the question_id of entry {first} again", "Give each question its own")
        found.videos.extend(entry.videos)
        found.questions.append(entry.text("question"))
        found.question_ids.append(asked)
        answer = entry.values["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise entry.error(f"has the answer {answer!r}", "Give a text that is not empty")
        found.answers.append(answer)
    return found


def read_answers(file: str | Path) -> list[str]:
    """Read the answers that a model chooses among: a JSON list of texts, which are not cleaned.

    Raises:
        DataError: If the file is missing or has another form, or an answer is empty.
    """
    path = Path(file)
    answers = _json_list(path)
    for number, answer in enumerate(answers):
        if not isinstance(answer, str) or not answer.strip() or not _whole(answer):
            raise DataError(f"{path}: answer {number} is {_shown(answer)}. Give a text that is not empty.")
    return answers


def missing_videos(root: str | Path, videos: Sequence[str]) -> list[str]:
    """List those videos that are no files under a folder, each once, in order.

    Raises:
        DataError: If the folder does not exist.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. Give the folder that the videos lie in.")
    return [video for video in dict.fromkeys(videos) if not _is_file(folder / video)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


# --- one entry ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """An entry of a file, with what is needed to say what is wrong with it."""

    path: Path
    number: int
    values: Mapping[str, Any]

    @property
    def videos(self) -> list[str]:
        given = self.values["video"]
        videos = given if isinstance(given, list) else [given]
        if not videos or not all(isinstance(video, str) and video.strip() and _whole(video, PATHS) for video in videos):
            raise self.error("has no path in video", "Give the path of a video file, or a list of them")
        for video in videos:
            inside = PurePosixPath(video.replace("\\", "/"))
            if inside.is_absolute() or ".." in inside.parts or ":" in inside.parts[0] or "\0" in video:
                raise self.error(f"names {video!r}, which leads out of the folder", "Give a path under that folder")
        if len(set(videos)) < len(videos):
            raise self.error("names a video twice", "List every video once")
        return videos

    def texts(self, key: str, *, joined: bool = False) -> list[str]:
        given = self.values[key]
        texts = given if isinstance(given, list) else [given]
        if not texts or not all(isinstance(text, str) and _whole(text) for text in texts):
            raise self.error(f"has the {key} {_shown(given)}", "Give a text, or a list of texts")
        for text in (texts := [" ".join(texts)] if joined else texts):
            if not clean(text).strip():
                raise self.error(f"has the {key} {text!r}, of which no word is left", "Give a text, or leave it out")
        return texts

    def text(self, key: str) -> str:
        if isinstance(self.values[key], list):
            raise self.error(f"has a list as its {key}", "Give one text")
        return self.texts(key)[0]

    def error(self, problem: str, advice: str) -> DataError:
        return DataError(f"{self.path}: entry {self.number} {problem}: {_shown(self.values)}. {advice}.")


def _entries(path: Path, keys: Sequence[str]) -> Iterator[_Entry]:
    for number, values in enumerate(_json_list(path)):
        if not isinstance(values, dict):
            raise DataError(
                f"{path}: entry {number} is {_shown(values)}, expected an object with {', '.join(keys)}. Give the file "
                "of annotations as it is published."
            )
        entry = _Entry(path, number, values)
        if missing := [key for key in keys if key not in values]:
            raise entry.error(f"has no {' and no '.join(missing)}", f"Give {', '.join(keys)} in every entry")
        yield entry


def _json_list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. Give a JSON file of annotations.") from error
    except (OSError, ValueError, RecursionError) as error:  # no text, no JSON, or no path
        raise DataError(f"{path} is no JSON file that can be read ({first_line(error)}). Copy it again.") from error
    if not isinstance(content, list) or not content:
        raise DataError(f"{path} holds {_shown(content)}, expected a list of at least one entry. Give another file.")
    return content


def _whole(text: str, errors: str = "strict") -> bool:
    """Say whether a text can be written; JSON may hold halves of characters."""
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
