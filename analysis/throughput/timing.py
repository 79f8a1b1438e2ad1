"""Timing that a noisy machine cannot turn around: what is compared takes turns, and ratios are taken turn by turn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers, and what a quarter and three quarters of them stay below."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Sum numbers up by their median and quartiles."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Spread(low, median(values), high)


def paired_ratio(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """Compare two that were timed in turn: how many times as fast the second was, round by round.

    Both sides of a round were measured within a moment, so a machine that slows down slows both; the ratio of two
    medians could pair a quiet moment of one with a busy moment of the other.

    Args:
        slow: Seconds, one number a round.
        fast: Seconds, one number for each of the same rounds.
    """
    return spread([one / other for one, other in zip(slow, fast, strict=True)])


def order_of(names: Sequence[Name], round_number: int) -> list[Name]:
    """Say in which order things take their turns: another first one each pair of rounds, to and fro within the pair.

    So over the rounds each comes as often before as behind each of the others.
    """
    start = (round_number // 2) % len(names)
    turned = [*names[start:], *names[:start]]
    return turned[::-1] if round_number % 2 else turned


def time_in_turn(
    calls: Mapping[Name, Callable[[], object]],
    rounds: int,
    threads: int,
    *,
    least_seconds: float = 0.02,
    observe: Callable[[], object] = lambda: None,
) -> dict[Name, tuple[float, ...]]:
    """Time calls in turn, with ``torch.utils.benchmark``.

    In each round each call runs at least twice: the first time after the others is not counted, since it finds their
    data in the caches.

    Args:
        calls: What to time, by name.
        rounds: How often each has its turn.
        threads: Of torch, on a CPU.
        least_seconds: A turn repeats a short call until so much time is measured.
        observe: Called after each turn.

    Returns:
        Seconds a call, one number a round, by name.
    """
    # importing the timer warns of a CUDA toolkit without a GPU, as if something were to be compiled
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    timers = {name: Timer("call()", globals={"call": call}, num_threads=threads) for name, call in calls.items()}
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in order_of(list(calls), number):
            measured = timers[name].blocked_autorange(min_run_time=least_seconds)
            seconds[name].append(measured.median)
            observe()
    return {name: tuple(taken) for name, taken in seconds.items()}
