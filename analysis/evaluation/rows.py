"""The lines of a results file: one for each model, and for each of its methods where several are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import torch
from torch import Tensor

from repshift.analysis.evaluation.loop import Part
from repshift.analysis.evaluation.models import Candidate, Subject
from repshift.analysis.evaluation.records import Recorded, Row, SampleRecord
from repshift.analysis.evaluation.settings import EvaluationSettings
from repshift.analysis.evaluation.summary import Answers, hits, is_chance, summarise
from repshift.analysis.output.paired import gain
from repshift.analysis.samples.batches import Failure
from repshift.analysis.subjects.methods import LOWRES, RANDOM

OWN = ("top1", "top1_err", "top5", "top5_err")  # what a line begins with
CONTROLS = (RANDOM, LOWRES)  # that every other method is compared with, image by image


@dataclass(frozen=True)
class Measured:
    """What all processes have found out about one model.

    Attributes:
        records: Of every sample.
        failures: Samples that could not be read, by number.
        answers: Classes that count as right, by sample; ``None`` if each sample's label does.
        classes: How many can be predicted.
        parts: What each process did.
    """

    records: Recorded
    failures: Mapping[int, Failure]
    answers: Answers | None
    classes: int
    parts: Sequence[Part]


def make_rows(name: str, settings: EvaluationSettings, subject: Subject, measured: Measured) -> list[Row]:
    """Lay out the lines of one model: the dense one first if methods are compared, then each method.

    Where something is drawn at random, accuracies are means over the draws, and ``top1_spread`` is the standard
    deviation of the single ones. ``over_random`` and ``over_lowres`` are points of accuracy above these controls on the
    same samples, with the standard errors of these paired differences.
    """
    draws: list[list[Recorded]] = [[] for _ in subject.candidates]
    for column, (place, _) in enumerate(subject.columns):
        draws[place].append({index: record.of(column) for index, record in measured.records.items()})
    right = {
        candidate.facts["method"]: torch.stack([hits(one, measured.answers) for one in own]).mean(0)
        for candidate, own in zip(subject.candidates, draws, strict=True)
    }
    rows = []
    for place, (candidate, own) in enumerate(zip(subject.candidates, draws, strict=True)):
        row = _row(name, settings, candidate, own, measured, _rate([part.rates[place] for part in measured.parts]))
        if subject.dense is not None:
            row["dense_samples_per_sec"] = _rate([part.dense_rate for part in measured.parts])
        rows.append(row if settings.methods is None else row | _over_controls(candidate.facts["method"], right))
    if subject.dense is None or subject.dense_facts is None:
        return rows
    dense = Candidate(subject.dense, 1, subject.dense_facts)
    alone = {index: SampleRecord(record.label, record.dense or ()) for index, record in measured.records.items()}
    return [_row(name, settings, dense, [alone], measured, _rate([part.dense_rate for part in measured.parts])), *rows]


def _row(
    name: str,
    settings: EvaluationSettings,
    candidate: Candidate,
    draws: Sequence[Recorded],
    measured: Measured,
    rate: float | None,
) -> Row:
    summaries = [summarise(records, measured.answers) for records in draws]
    summary = {key: round(mean(one[key] for one in summaries), 4) for key in summaries[0]}
    drawn = len(draws) > 1
    chance = {"at_chance": True} if is_chance(summary["top1"], len(measured.records), measured.classes) else {}
    row: Row = {
        "model": name,
        **{key: summary[key] for key in OWN},
        **candidate.facts,
        **{key: value for key, value in summary.items() if key not in OWN},
        "samples": len(measured.records),
        "skipped": len(measured.failures),
        "real_labels": settings.real_labels,
        "samples_per_sec": rate,
        "batch_size": min(part.batch_size for part in measured.parts),
        "precision": settings.precision,
        "seed": settings.seed if candidate.facts["method"].startswith(RANDOM) else None,
        **({"seeds": len(draws), "top1_spread": round(stdev(one["top1"] for one in summaries), 4)} if drawn else {}),
        "checkpoint": settings.checkpoint,
        **chance,
    }
    if measured.failures:
        row["skipped_files"] = "; ".join(
            f"{failure.name} ({failure.reason})" for _, failure in sorted(measured.failures.items())
        )
    return row


def _over_controls(method: str, right: Mapping[str, Tensor]) -> Row:
    compared: Row = {}
    for control in CONTROLS:
        if control in right and method != control:
            points, error = gain(right[method], right[control])
            compared |= {f"over_{control}": round(points, 4), f"over_{control}_error": round(error, 4)}
    return compared


def _rate(rates: Sequence[float | None]) -> float | None:
    """Add up the speed of all processes; unknown if one of them had nothing left to time."""
    known = [rate for rate in rates if rate is not None]
    return round(sum(known), 2) if len(known) == len(rates) else None
