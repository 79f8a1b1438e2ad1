"""From what was predicted for each sample to the numbers of a results file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.data import RealLabelsImagenet
from torch import Tensor
from torch.distributions import Binomial

from repshift.analysis.evaluation.records import Recorded
from repshift.analysis.output.paired import gain
from repshift.errors import DataError, first_line

SHIPPED_LABELS = "timm"  # the word that stands for the reassessed labels that timm ships
IMAGENET_SAMPLES = 50_000
FEW_SAMPLES = 20  # of which nothing can be said
SIGNIFICANCE = 0.01

# For each sample the classes that count as right; those of ImageNet that nobody could tell have none
Answers = Mapping[int, Sequence[int]]


def summarise(records: Recorded, answers: Answers | None = None) -> dict[str, Any]:
    """Compute accuracies in per cent, as timm rounds them.

    Args:
        records: Of every sample.
        answers: Classes that count as right, by sample; by default the sample's label. A sample without any is left
            out, as in timm.

    Returns:
        ``top1``, ``top1_err``, ``top5`` and ``top5_err``; if the dense model was compared, also its ``dense_top1`` and
        ``dense_top5``, the pruned model's gain ``delta_top1`` and ``delta_top5`` in points, the standard error
        ``delta_top1_error`` of the former, which is paired, and ``agreement``: the share of samples for which both
        predict the same class, in per cent.

    Raises:
        DataError: If there is no sample.
    """
    ordered = [(index, records[index]) for index in sorted(records)]
    right = _right_classes(records, answers)
    counted = [(index, record) for index, record in ordered if right[index]]
    if not counted:
        raise DataError("No sample could be evaluated. Check the data and their labels.")

    def share(predictions: Sequence[tuple[int, Sequence[int]]], first: int) -> float:
        hits = sum(any(guess in right[index] for guess in guesses[:first]) for index, guesses in predictions)
        return 100 * hits / len(predictions)

    ours = [(index, record.predicted) for index, record in counted]
    top1, top5 = share(ours, 1), share(ours, 5)
    summary: dict[str, Any] = {
        "top1": round(top1, 4),
        "top1_err": round(100 - top1, 4),
        "top5": round(top5, 4),
        "top5_err": round(100 - top5, 4),
    }
    theirs = [(index, record.dense) for index, record in counted if record.dense is not None]
    if len(theirs) == len(ours):
        dense1, dense5 = share(theirs, 1), share(theirs, 5)
        same = sum(record.dense is not None and record.predicted[0] == record.dense[0] for _, record in ordered)
        summary |= {
            "dense_top1": round(dense1, 4),
            "dense_top5": round(dense5, 4),
            "delta_top1": round(top1 - dense1, 4),
            "delta_top5": round(top5 - dense5, 4),
            "delta_top1_error": round(gain(hits(records, answers), hits(_dense(records), answers))[1], 4),
            "agreement": round(100 * same / len(ordered), 4),
        }
    return summary


def hits(records: Recorded, answers: Answers | None = None) -> Tensor:
    """Say which samples are classified rightly, ``(samples,)`` float; arguments as of :func:`summarise`."""
    right = _right_classes(records, answers)
    counted = [index for index in sorted(records) if right[index]]
    return torch.tensor([float(records[index].predicted[0] in right[index]) for index in counted])


def _dense(records: Recorded) -> Recorded:
    return {index: replace(record, predicted=record.dense or ()) for index, record in records.items()}


def _right_classes(records: Recorded, answers: Answers | None) -> dict[int, tuple[int, ...]]:
    return {index: (record.label,) if answers is None else tuple(answers[index]) for index, record in records.items()}


def is_chance(accuracy: float, samples: int, classes: int) -> bool:
    """Say whether guessing would be as often right, by a one-sided binomial test at 1 %; never of few samples.

    Args:
        accuracy: In per cent.
        samples: How many were evaluated.
        classes: How many are told apart.
    """
    if samples < FEW_SAMPLES or classes < 2:
        return False
    hits, guess = round(accuracy / 100 * samples), torch.tensor(1 / classes, dtype=torch.float64)
    counts = torch.arange(hits, dtype=torch.float64)
    fewer = Binomial(samples, guess).log_prob(counts).exp().sum()  # type: ignore[no-untyped-call]
    return bool(1 - fewer > SIGNIFICANCE)


def read_real_labels(path: str) -> dict[str, list[int]]:
    """Read ImageNet's reassessed labels: for each file name of the validation set, all classes that it shows.

    Args:
        path: timm's JSON file, or ``timm`` for the one that it ships.

    Raises:
        DataError: If it is missing or no such file.

    Source: Beyer et al. 2020, arXiv 2006.07159.
    """
    try:
        shipped = path == SHIPPED_LABELS
        count = IMAGENET_SAMPLES if shipped else len(json.loads(Path(path).read_text(encoding="utf-8")))
        labels: dict[str, list[int]] = RealLabelsImagenet([""] * count, None if shipped else path).real_labels
        wrong = [classes for classes in labels.values() if not _are_classes(classes)]
        if wrong:
            raise TypeError(f"{wrong[0]!r:.60} is no list of numbers of classes")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError) as error:
        raise DataError(
            f"--real-labels {path} cannot be read ({type(error).__name__}: {first_line(error)}). Give the JSON file of "
            f"ImageNet's reassessed labels, or {SHIPPED_LABELS} for the one that timm ships."
        ) from error
    return labels


def _are_classes(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def real_answers(labels: Mapping[str, Sequence[int]], files: Mapping[int, str]) -> dict[int, Sequence[int]]:
    """Find the reassessed labels of samples.

    Args:
        labels: From :func:`read_real_labels`.
        files: The file of each sample.

    Raises:
        DataError: If a file is none of ImageNet's validation set.
    """
    answers: dict[int, Sequence[int]] = {}
    for index, file in files.items():
        name = Path(file.partition(" in ")[0]).name
        if name not in labels:
            raise DataError(
                f"{file} has no reassessed label: these are for the files of ImageNet's validation set, "
                "ILSVRC2012_val_00000001.JPEG and so on. Leave out --real-labels."
            )
        answers[index] = labels[name]
    return answers
