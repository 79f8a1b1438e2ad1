"""Measuring how often a dense and pruned models answer questions on videos exactly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from repshift.analysis.answering.ranking import CANDIDATES, AnsweringModel, answer_scores, best_answers
from repshift.analysis.output.paired import paired_summary
from repshift.analysis.samples.passes import Found
from repshift.analysis.subjects.limits import check_candidates
from repshift.analysis.video.annotations import Questions
from repshift.analysis.video.by_video import measure_videos
from repshift.analysis.video.encoding import Encoding
from repshift.analysis.video.features import FeatureStore
from repshift.analysis.video.inputs import TextInput
from repshift.analysis.video.subjects import VideoSubjects
from repshift.analysis.video.texts import Tokeniser, clean

ACCURACY = "accuracy"
NO_ANSWER = -1  # of a question whose video cannot be read; it counts as wrong


@dataclass(frozen=True)
class Answering:
    """What is asked of the videos.

    Attributes:
        name: Of the data set, for the results.
        root: The folder of the videos.
        questions: The questions.
        answers: What is chosen among, as it stands in its file.
        ids: Word pieces of the questions, ``(questions, length)`` int64.
        mask: The same shape.
        answer_ids: Of the answers.
        answer_mask: The same shape.
        candidates: How many answers of a question are looked at as a whole.
        step: Questions a step.
        partial: Keeps what was answered until the command has ended; ``None`` keeps nothing.
    """

    name: str
    root: Path
    questions: Questions
    answers: list[str]
    ids: Tensor
    mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    candidates: int = CANDIDATES
    step: int = 4
    partial: Path | None = None

    def __post_init__(self) -> None:
        check_candidates(self.candidates)  # before videos are encoded


def tokenise(
    questions: Questions,
    answers: Sequence[str],
    vocabulary: Path,
    lengths: tuple[int, int],
    taken: TextInput | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Tokenise questions, which are cleaned, and answers, which are not and end with ``[SEP]`` if that fits.

    Args:
        questions: The questions.
        answers: What is chosen among.
        vocabulary: The file.
        lengths: Word pieces of each question, and of each answer.
        taken: What the model takes.

    Raises:
        DataError: If the vocabulary is none, or the model has no embeddings for it or for the length.
    """
    tokeniser = Tokeniser(vocabulary)
    (taken or TextInput()).check(tokeniser, max(lengths))
    asked = tokeniser([clean(question) for question in questions.questions], lengths[0])
    return asked, tokeniser([f"{answer} [SEP]" for answer in answers], lengths[1])


def answer_questions(
    model: AnsweringModel, tokens: Tensor, asked: Answering, numbers: Sequence[int], device: torch.device | str = "cpu"
) -> list[int]:
    """Answer questions on one video.

    Args:
        model: The model.
        tokens: ``(tokens, channels)`` of the video.
        asked: All questions, and the answers.
        numbers: Of those on this video.
        device: Where the model is.

    Returns:
        The number of the answer of each.
    """
    answer_ids, answer_mask = asked.answer_ids.to(device), asked.answer_mask.to(device)
    video = tokens[None].to(device)
    found: list[int] = []
    for start in range(0, len(numbers), asked.step):
        part = list(numbers[start : start + asked.step])
        longest = int(asked.mask[part].sum(1).max())
        ids, mask = (each[part, :longest].to(device) for each in (asked.ids, asked.mask))
        states = model.question_states(video, ids, mask)
        found += best_answers(*answer_scores(model, states, mask, answer_ids, answer_mask, asked.candidates)).tolist()
    return found


def measure_answers(subjects: VideoSubjects, asked: Answering, encoding: Encoding) -> Found:
    """Encode all videos by every method, and answer all questions.

    Args:
        subjects: The models.
        asked: The questions.
        encoding: How it runs.

    Raises:
        RepshiftError: If a model does not run, or a video cannot be read; what was encoded is kept.
    """
    with encoding.processes.together():
        facts = subjects.facts()
    files, video_of = asked.questions.distinct_videos()
    encoded = encoding.run(subjects, asked.root, files)
    by_video: dict[int, list[int]] = {}
    for question, video in enumerate(video_of):
        if video not in encoded.unreadable:
            by_video.setdefault(video, []).append(question)
    predicted = {
        name: _predict(number, name, subjects, asked, by_video, encoded.stores[name], encoding)
        for number, name in enumerate(subjects.measured)
    }
    right = torch.tensor(
        [
            [100.0 * (own[question] >= 0 and asked.answers[own[question]] == answer) for own in predicted.values()]
            for question, answer in enumerate(asked.questions.answers)
        ],
        dtype=torch.float64,
    )
    summary = paired_summary([(name, ACCURACY) for name in predicted], right, subjects.others, subjects.drawn, facts)
    rows = [
        {
            "model": subjects.subjects.name,
            "method": method,
            "dataset": asked.name,
            **measured,
            "questions": len(asked.questions.questions),
            "unanswered": sum(video in encoded.unreadable for video in video_of),
            "videos": len(files),
            "skipped": len(encoded.failures),
            "answers": len(asked.answers),
            "candidates": min(asked.candidates, len(asked.answers)),
            **facts[method],
            "batch_size": encoding.batch_size,
            "seed": subjects.subjects.seed,
            "checkpoint": subjects.subjects.given.checkpoint and str(subjects.subjects.given.checkpoint),
        }
        for method, measured in summary.items()
    ]
    known = set(asked.answers)
    missing = sum(answer not in known for answer in asked.questions.answers)
    notes = [f"{missing} questions have an answer that is not in the list, so they count as wrong."] if missing else []
    return Found(rows, _by_question(asked, predicted), [*encoded.notes, *notes])


def _predict(
    number: int,
    name: str,
    subjects: VideoSubjects,
    asked: Answering,
    by_video: Mapping[int, Sequence[int]],
    store: FeatureStore,
    encoding: Encoding,
) -> list[int]:
    """Answer all questions by what one method sees, in all processes."""
    model = cast(AnsweringModel, subjects.model)

    def measure(video: int) -> Sequence[float]:
        with encoding.computing():
            return answer_questions(model, store.tokens(video), asked, by_video[video], encoding.device)

    content = [asked.questions.videos, asked.questions.questions, asked.answers, asked.answer_ids.tolist()]
    told = json.dumps([content, asked.ids.tolist(), asked.candidates])
    found = measure_videos(
        encoding.processes,
        asked.partial and asked.partial / f"{number:04d}",
        {
            **store.identity(list(by_video)),
            "questions": hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest(),
        },
        list(by_video),
        measure,
        partial(encoding.observe, f"answering ({name})"),
    )
    answers = [NO_ANSWER] * len(asked.questions.questions)
    for video, questions in by_video.items():
        for question, answer in zip(questions, found[video], strict=True):
            answers[question] = int(answer)
    return answers


def _by_question(asked: Answering, predicted: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    questions = asked.questions
    return [
        {
            "question_id": questions.question_ids[number],
            "video": questions.videos[number],
            "question": questions.questions[number],
            "method": name,
            "answer": questions.answers[number],
            "predicted": asked.answers[own[number]] if own[number] >= 0 else None,
        }
        for number in range(len(questions.questions))
        for name, own in predicted.items()
    ]
