"""Comparing two models on the same images."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from torch import Tensor

# Between the names of two methods: what lies between them
BETWEEN = ".."


def mean_and_error(values: Tensor) -> tuple[float, float | None]:
    """Average what was measured of each image, or its difference between two models.

    Args:
        values: ``(images,)``.

    Returns:
        The mean, and its standard error over images; of one image nothing is known of that.
    """
    error = float(values.double().std()) / len(values) ** 0.5 if len(values) > 1 else None
    return float(values.double().mean()), error


def paired_summary(
    columns: Sequence[tuple[str, str]],
    values: Tensor,
    others: Sequence[str],
    drawn: Mapping[str, tuple[str, int]] | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Average what was measured of each image, with standard errors, and the differences from some of the methods.

    Args:
        columns: What was measured, and the measure, of each number.
        values: ``(images, numbers)``.
        others: The methods that each is compared with, image by image; ``"A..B"`` is what lies between two of them, on
            the straight line, at the work of the one that is compared.
        drawn: By what was measured, the method and the number of the draw; a method of several draws counts by the
            mean of them, image by image.
        facts: What else is known of each method, ``gmacs`` among it; only needed for what lies between two.

    Returns:
        By method: each measure and its ``_error``, its ``_against_NAME`` and ``_against_NAME_error``; ``None`` where it
        was not measured, and of a method against itself. Of several draws also ``seeds``, and of each measure its
        ``_spread``, the standard deviation of their means.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for place, (own, measure) in enumerate(columns):
        method, _ = (drawn or {}).get(own, (own, 0))
        places.setdefault((method, measure), []).append(place)
    means = {column: values[:, own].mean(1) for column, own in places.items()}
    summary: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(name for name, _ in places):
        row = summary[name] = {}
        for measure in dict.fromkeys(measure for _, measure in columns):
            found = means.get((name, measure))
            row[measure], row[f"{measure}_error"] = (None, None) if found is None else mean_and_error(found)
            for other in others:
                base = _reference(other, name, measure, means, facts or {})
                key = f"{measure}_against_{other}"
                row[key], row[f"{key}_error"] = (
                    (None, None) if found is None or base is None else mean_and_error(found - base)
                )
            draws = places.get((name, measure), [])
            if len(draws) > 1:
                row["seeds"] = len(draws)
                row[f"{measure}_spread"] = float(values[:, draws].double().mean(0).std())
    return summary


def ends_of(other: str, methods: Container[str]) -> tuple[str, ...]:
    """Say which methods ``"A"`` or ``"A..B"`` names.

    Args:
        other: A method, or two with two dots between them.
        methods: All that there are; a method whose own name has dots in it is that method.
    """
    return (other,) if other in methods else tuple(other.split(BETWEEN, 1))


def _reference(
    other: str,
    name: str,
    measure: str,
    means: Mapping[tuple[str, str], Tensor],
    facts: Mapping[str, Mapping[str, Any]],
) -> Tensor | None:
    """Return what a method is compared with, image by image; ``None`` where there is nothing of that kind."""
    ends = ends_of(other, {method for method, _ in means})
    found = [means[end, measure] for end in ends if (end, measure) in means]
    if name in ends or len(found) < len(ends):
        return None
    if len(ends) == 1:
        return found[0]
    least, own, most = (float(facts[method]["gmacs"]) for method in (ends[0], name, ends[1]))
    if least == most or not min(least, most) <= own <= max(least, most):
        return None  # outside there would be nothing but a guess
    share = (own - least) / (most - least)
    return (1 - share) * found[0] + share * found[1]


def gain(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Compare two models on the same images.

    Args:
        ours: Which images the one classifies rightly, ``(images,)`` bool.
        theirs: The same of the other.

    Returns:
        How many points of accuracy the first is better, and the standard error of this paired difference.
    """
    difference = 100 * (ours.float() - theirs.float())
    return float(difference.mean()), float(difference.std(unbiased=False)) / len(difference) ** 0.5


MEANING = "s.e.: standard error of the difference, image by image; less than two of them apart is a tie."


def verdict(points: float, error: float, other: str) -> str:
    """Say in words how one model compares with another, for better or worse.

    Args:
        points: How many points of accuracy it is better.
        error: The standard error of this paired difference; within two of them, or without any, nothing is claimed.
        other: What it is compared with.
    """
    unsure = error == 0 or abs(points) <= 2 * error
    verb = "ties with" if unsure else "beats" if points > 0 else "LOSES to"
    return f"{verb} {other} ({points:+.2f} points, s.e. {error:.2f})"
