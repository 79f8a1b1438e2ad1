"""Measuring how well a dense and pruned models find texts and videos."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from repshift.analysis.output.paired import paired_summary
from repshift.analysis.retrieval.matrices import (
    CANDIDATES,
    Candidates,
    RetrievalModel,
    Texts,
    encode_texts,
    itc_matrix,
    match_video,
    matched_matrices,
)
from repshift.analysis.retrieval.queries import Queries
from repshift.analysis.retrieval.ranking import CUTOFFS, arithmetic_mean, harmonic_mean, hits, ranks_of_best
from repshift.analysis.samples.passes import Found
from repshift.analysis.subjects.limits import check_candidates
from repshift.analysis.video.by_video import measure_videos
from repshift.analysis.video.encoding import Encoded, Encoding
from repshift.analysis.video.features import FeatureStore
from repshift.analysis.video.inputs import TextInput
from repshift.analysis.video.subjects import VideoSubjects
from repshift.analysis.video.texts import Tokeniser, clean

TO_VIDEO, TO_TEXT = DIRECTIONS = ("t2v", "v2t")
ALONE = "_emb"  # behind what the similarities give without matching
BOTH = "mean_r1"


@dataclass(frozen=True)
class Retrieval:
    """What is asked of the videos.

    Attributes:
        name: Of the data set, for the results.
        root: The folder of the videos.
        queries: The videos and texts.
        ids: Word pieces of the texts, ``(texts, length)`` int64.
        mask: The same shape.
        candidates: How many are matched in either direction.
        pairs: That are matched in a step.
        partial: Keeps what was matched until the command has ended; ``None`` keeps nothing.
    """

    name: str
    root: Path
    queries: Queries
    ids: Tensor
    mask: Tensor
    candidates: int = CANDIDATES
    pairs: int = 128
    partial: Path | None = None

    def __post_init__(self) -> None:
        check_candidates(self.candidates)  # before videos are encoded


def tokenise(queries: Queries, vocabulary: Path, length: int, taken: TextInput | None = None) -> tuple[Tensor, Tensor]:
    """Clean and tokenise the texts.

    Args:
        queries: With the texts.
        vocabulary: The file.
        length: Word pieces of each.
        taken: What the model takes.

    Raises:
        DataError: If the vocabulary is none, or the model has no embeddings for it or for the length.
    """
    tokeniser = Tokeniser(vocabulary)
    (taken or TextInput()).check(tokeniser, length)
    return tokeniser([clean(text) for text in queries.texts], length)


@dataclass(frozen=True)
class Ranks:
    """At which rank the best right candidate of each query stands, from zero.

    Attributes:
        matched: By direction, ``t2v`` and ``v2t``, after the matching head.
        alone: By similarity alone.
    """

    matched: dict[str, Tensor]
    alone: dict[str, Tensor]


def measure_retrieval(subjects: VideoSubjects, asked: Retrieval, encoding: Encoding) -> Found:
    """Encode all videos by every method, match the best candidates, and rank.

    Args:
        subjects: The models.
        asked: The queries.
        encoding: How it runs.

    Raises:
        RepshiftError: If a model does not run, or a video cannot be read; what was encoded is kept.
    """
    with encoding.processes.together():
        facts = subjects.facts()
    encoded = encoding.run(subjects, asked.root, asked.queries.files)
    queries = asked.queries.without(encoded.unreadable)
    with encoding.processes.together():
        texts = _texts(subjects, asked, queries, encoding)
    ranks = {
        name: _rank(number, name, subjects, asked, queries, texts, encoded.stores[name], encoding)
        for number, name in enumerate(subjects.measured)
    }
    rows = [
        {
            "model": subjects.subjects.name,
            "method": method,
            "dataset": asked.name,
            **measured,
            "videos": len(queries.videos),
            "texts": len(queries.texts),
            "skipped": len(encoded.failures),
            "candidates": min(asked.candidates, max(len(queries.videos), len(queries.texts))),
            **facts[method],
            "batch_size": encoding.batch_size,
            "seed": subjects.subjects.seed,
            "checkpoint": subjects.subjects.given.checkpoint and str(subjects.subjects.given.checkpoint),
        }
        for method, measured in summarise(ranks, subjects.drawn, subjects.others, facts, paired=queries.paired).items()
    ]
    return Found(rows, _by_query(queries, ranks), _notes(asked.queries, encoded, queries))


def _notes(asked: Queries, encoded: Encoded, left: Queries) -> list[str]:
    lost = len(asked.texts) - len(left.texts)
    return [*encoded.notes, *([f"{lost} texts were left out with their videos."] if lost else [])]


def _texts(subjects: VideoSubjects, asked: Retrieval, queries: Queries, encoding: Encoding) -> Texts:
    model, observe = cast(RetrievalModel, subjects.model), partial(encoding.observe, "texts")
    with encoding.computing():
        return encode_texts(
            model, asked.ids[queries.numbers], asked.mask[queries.numbers], asked.pairs, encoding.device, observe
        )


def _rank(
    number: int,
    name: str,
    subjects: VideoSubjects,
    asked: Retrieval,
    queries: Queries,
    texts: Texts,
    store: FeatureStore,
    encoding: Encoding,
) -> Ranks:
    """Match what one method sees, in all processes, and rank it."""
    model = cast(RetrievalModel, subjects.model)
    files = list(dict.fromkeys(queries.videos))
    with encoding.processes.together(), encoding.computing():
        pooled = torch.stack([store.pooled(file) for file in files])
        of_files = itc_matrix(model, pooled, texts.first, device=encoding.device)
        place = {file: row for row, file in enumerate(files)}
        itc = of_files[[place[file] for file in queries.videos]]
        candidates = Candidates.of(itc, asked.candidates)
    by_file: dict[int, set[int]] = {file: set() for file in files}
    for file, numbers in zip(queries.videos, candidates.texts_by_video(), strict=True):
        by_file[file].update(numbers)
    wanted = {file: sorted(numbers) for file, numbers in by_file.items()}

    def measure(file: int) -> Sequence[float]:
        with encoding.computing():
            tokens = store.tokens(file)
            found = match_video(model, tokens, texts, wanted[file], asked.pairs, encoding.device)
        return [float(each) for each in found]

    scores = measure_videos(
        encoding.processes,
        asked.partial and asked.partial / f"{number:04d}",
        {**store.identity(files), "queries": _identity(asked, queries, wanted)},
        files,
        measure,
        partial(encoding.observe, f"matching ({name})"),
    )

    def laid_out() -> Iterator[tuple[int, Sequence[int], Tensor]]:
        for query, file in enumerate(queries.videos):
            yield query, wanted[file], torch.tensor(scores[file])

    to_text, to_video = matched_matrices(candidates, laid_out())
    return Ranks(
        {TO_VIDEO: ranks_of_best(to_video, queries.right_videos), TO_TEXT: ranks_of_best(to_text, queries.right_texts)},
        {TO_VIDEO: ranks_of_best(itc.T, queries.right_videos), TO_TEXT: ranks_of_best(itc, queries.right_texts)},
    )


def _identity(asked: Retrieval, queries: Queries, wanted: Mapping[int, list[int]]) -> str:
    """Return what must be the same, beside the features, for scores of an earlier run to be those of this one."""
    content = json.dumps([queries.files, queries.texts, asked.ids.tolist(), list(wanted.values())])
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()


def summarise(
    ranks: Mapping[str, Ranks],
    drawn: Mapping[str, tuple[str, int]],
    others: Sequence[str],
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    paired: bool,
) -> dict[str, dict[str, float | None]]:
    """Sum up the ranks of all methods, with errors over queries, and differences query by query.

    Args:
        ranks: By the name of what was measured.
        drawn: Its method and draw.
        others: The methods that each is compared with.
        facts: What else is known of each method; see :func:`repshift.analysis.output.paired.paired_summary`.
        paired: Whether video ``i`` belongs to text ``i`` alone, so that the mean of both directions has an error, too.

    Returns:
        By method, in per cent: ``t2v_r1`` and so on, with ``_emb`` behind it what the similarities alone give, each
        with its ``_error``, ``_against_NAME`` and ``_against_NAME_error``; ``mean_r1`` and ``harmonic_r1`` of both
        directions.
    """
    found: dict[str, dict[str, float | None]] = {}
    parts = []
    for direction in DIRECTIONS:
        columns = [
            (name, f"{direction}_r{cutoff}{ending}") for name in ranks for ending in ("", ALONE) for cutoff in CUTOFFS
        ]
        tables = [hits(each[direction]) for own in ranks.values() for each in (own.matched, own.alone)]
        parts.append(torch.cat(tables, 1))
        for method, row in paired_summary(columns, parts[-1], others, drawn, facts).items():
            found.setdefault(method, {}).update(row)
    if paired:
        firsts = ((parts[0] + parts[1]) / 2)[:, :: len(CUTOFFS)]
        columns = [(name, f"{BOTH}{ending}") for name in ranks for ending in ("", ALONE)]
        for method, row in paired_summary(columns, firsts, others, drawn, facts).items():
            found[method].update(row)
    for row in found.values():
        for ending in ("", ALONE):
            both = [cast(float, row[f"{direction}_r1{ending}"]) for direction in DIRECTIONS]
            row[f"{BOTH}{ending}"] = arithmetic_mean(both[0], both[1])
            row[f"harmonic_r1{ending}"] = harmonic_mean(both[0], both[1])
    return found


def _by_query(queries: Queries, ranks: Mapping[str, Ranks]) -> list[dict[str, Any]]:
    """Lay out the rank of each query, counted from 1: a row for each method."""
    asked = {TO_VIDEO: queries.texts, TO_TEXT: [queries.files[file] for file in queries.videos]}
    return [
        {
            "direction": direction,
            "query": query,
            "method": name,
            "rank": int(own.matched[direction][number]) + 1,
            f"rank{ALONE}": int(own.alone[direction][number]) + 1,
        }
        for direction, texts in asked.items()
        for number, query in enumerate(texts)
        for name, own in ranks.items()
    ]
