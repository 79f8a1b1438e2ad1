"""How fast the implementations of the selective scan are: ``python -m repshift.backbones.scan.benchmark``.

The operands are laid out as Vision Mamba hands them in. The implementations take turns, so that a machine that slows
down slows all of them; what to compare is the ratio within one run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from repshift.errors import UnsupportedModelError
from repshift.registry import Registry

# analysis names backbones through the engine, by strings
OPERATIONS = Registry("operation", {"selective_scan": "repshift.backbones.scan:selective_scan"})
ON_CPU = ("reference", "blocked")
ON_CUDA = (*ON_CPU, "triton", "mamba_ssm")
DIRECTIONS = {"forward": False, "reverse": True}
HEADINGS = ("implementation", "direction", "ms", "quartiles", "times as fast")


@dataclass(frozen=True)
class Timing:
    """Milliseconds that one implementation takes for one scan."""

    implementation: str
    direction: str
    milliseconds: tuple[float, ...]

    def median(self) -> float:
        """Return the middle of the rounds."""
        return median(self.milliseconds)

    def quartiles(self) -> tuple[float, float]:
        """Return what a quarter and three quarters of the rounds stay below."""
        if len(self.milliseconds) < 2:
            return self.milliseconds[0], self.milliseconds[0]
        lower, _, upper = quantiles(self.milliseconds, n=4, method="inclusive")
        return lower, upper


def make_operands(batch: int, channels: int, length: int, states: int, device: str) -> dict[str, Tensor]:
    """Draw operands in the layout in which a model has them: channels last, all but the steps cut out of projections.

    Returns:
        The arguments ``u``, ``delta``, ``A``, ``B``, ``C`` and ``D`` of the scan, float32.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    projected = normal(batch, length, 12 + 2 * states).mT
    return {
        "u": normal(batch, length, channels).mT,
        "delta": 0.1 * normal(batch, length, channels).abs().mT,
        "A": -torch.arange(1.0, states + 1, device=device).expand(channels, -1).contiguous(),
        "B": projected[:, -2 * states : -states],
        "C": projected[:, -states:],
        "D": normal(channels),
    }


def time_scans(
    operands: dict[str, Tensor], implementations: Sequence[str], rounds: int, threads: int
) -> tuple[list[Timing], list[str]]:
    """Time the implementations in turn, in both directions, without gradients.

    Args:
        operands: Of shapes as :func:`repshift.backbones.scan.selective_scan` takes them, by name.
        implementations: Their names.
        rounds: How often each has its turn.
        threads: Of torch.

    Returns:
        A timing for each implementation and direction, and why the missing ones do not run here.
    """
    # importing the timer warns of a CUDA toolkit without a GPU, as if something were to be compiled
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    scan = OPERATIONS.get("selective_scan")
    timers: dict[tuple[str, str], Any] = {}
    missing = []
    with torch.inference_mode():
        for implementation in implementations:
            try:
                scan(**operands, implementation=implementation)
            except UnsupportedModelError as error:
                missing.append(str(error))
                continue
            for direction, reverse in DIRECTIONS.items():
                options = {**operands, "reverse": reverse, "implementation": implementation}
                timers[implementation, direction] = Timer(
                    "scan(**options)", globals={"scan": scan, "options": options}, num_threads=threads
                )
        seconds = [[timer.timeit(1).mean for timer in timers.values()] for _ in range(rounds)]
    columns = zip(*seconds, strict=True)
    timings = [
        Timing(*name, tuple(1e3 * taken for taken in column)) for name, column in zip(timers, columns, strict=True)
    ]
    return timings, missing


def tabulate(timings: Sequence[Timing]) -> Table:
    """Lay the timings out beside their ratio to the reference, which went in the same direction."""
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right", no_wrap=True)
    slow = {timing.direction: timing.median() for timing in timings if timing.implementation == "reference"}
    for timing in timings:
        lower, upper = timing.quartiles()
        row = (
            f"{timing.median():.2f}",
            f"{lower:.2f} to {upper:.2f}",
            f"{slow[timing.direction] / timing.median():.1f}",
        )
        table.add_row(timing.implementation, timing.direction, *row)
    return table


def main(
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 8,
    channels: Annotated[int, typer.Option(min=1, help="Inner channels, twice those of the tokens.")] = 384,
    length: Annotated[int, typer.Option(min=1, help="Tokens.")] = 197,
    states: Annotated[int, typer.Option(min=1, help="States a channel.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often the implementations take turns.")] = 15,
) -> None:
    """Time the implementations of the selective scan against the plain reference."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    operands = make_operands(batch, channels, length, states, device)
    timings, missing = time_scans(operands, ON_CUDA if device == "cuda" else ON_CPU, rounds, threads)
    console = Console()
    console.print(
        f"batch {batch}, channels {channels}, length {length}, states {states}, float32, {device}, threads {threads}, "
        f"torch {torch.__version__}, median of {rounds}",
        highlight=False,
    )
    console.print(tabulate(timings))
    for reason in missing:
        console.print(reason, highlight=False, markup=False)


if __name__ == "__main__":
    typer.run(main)
