"""How a model is captured as a program for images of one size, whose batch may vary, and compared with it."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from repshift.errors import RepshiftError, UnknownNameError, UnsupportedModelError, first_line

BATCH = "batch"  # its name in the program
FORMATS = ("pt2", "aoti", "onnx")
# operators that are not torch's own, and where they are registered
OPERATORS = {
    "repshift.selective_scan": "repshift.backbones.scan.operator",
    "flash_attn._flash_attn_forward": "flash_attn",
}
MOST_ON_GPU = 65535  # images that the grids of kernels have room for


@dataclass(frozen=True)
class Batches:
    """How many images a program takes at once.

    Attributes:
        least: The fewest.
        most: The most; ``None`` for any number. The same as ``least`` is a program for that batch alone.

    Raises:
        UnknownNameError: If these are no such numbers.
    """

    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        if self.least < 1 or (self.most is not None and self.most < self.least):
            raise UnknownNameError(f"A batch of {self} cannot be. Give a number from 1, or the fewest and the most.")

    @property
    def fixed(self) -> bool:
        """Whether it is one number."""
        return self.least == self.most

    @property
    def samples(self) -> tuple[int, ...]:
        """Batches to try: one for a fixed size, else two that differ."""
        further = self.least + 2 if self.most is None else min(self.most, self.least + 2)
        return (self.least,) if self.fixed else (self.least, further)

    def __str__(self) -> str:
        """Write the number, or ``1:64``; ``1:`` for any from 1."""
        return str(self.least) if self.fixed else f"{self.least}:{self.most or ''}"

    def on(self, device: str) -> Batches:
        """Return what a device can take of these: of any number of images a GPU takes 65,535."""
        return Batches(self.least, MOST_ON_GPU) if device.startswith("cuda") and self.most is None else self

    def shapes(self) -> tuple[dict[int, Any], ...] | None:
        """Say to torch which dimension of the images may vary; ``None`` if none may."""
        if self.fixed:
            return None
        return ({0: torch.export.Dim(BATCH, min=self.least, max=self.most)},)


def capture(model: nn.Module, images: Tensor, batches: Batches, form: str = "pt2") -> torch.export.ExportedProgram:
    """Capture a model as a graph of torch's operations.

    Args:
        model: Dense or pruned, in evaluation mode.
        images: ``(batch, ...)``, what the model takes; two at least, unless the batch is fixed.
        batches: How many the program takes.
        form: The format that it is for, which messages name.

    Raises:
        UnsupportedModelError: If the model cannot be captured; the message says why.
    """
    with explained(model, form), torch.no_grad(), quiet():
        shapes = batches.on(images.device.type).shapes()
        return torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)


def largest_difference(found: Any, expected: Any) -> float:
    """Compare all floating-point tensors of two answers.

    Returns:
        The largest difference, as a share of the largest number of its tensor; infinite if the shapes differ, or
        something is no number.
    """
    largest = 0.0
    for one, other in zip(_tensors(found), _tensors(expected), strict=True):
        if one.shape != other.shape:
            return math.inf
        one, other = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (one, other))
        off = float((one - other).abs().max()) / max(float(other.abs().max()), torch.finfo(other.dtype).tiny)
        largest = max(largest, off) if math.isfinite(off) else math.inf
    return largest


def _tensors(answer: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def modules_of(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """List the modules of the operators that a program calls and that are not torch's own."""
    names = {str(node.target).removesuffix(".default") for node in program.graph.nodes if node.op == "call_function"}
    return tuple(sorted({OPERATORS[name] for name in names if name in OPERATORS}))


# --- what can go wrong --------------------------------------------------------------------------------------------


@contextmanager
def explained(model: nn.Module, form: str) -> Iterator[None]:
    """Say in one line why a model cannot be exported; what the system refuses is said elsewhere.

    Raises:
        UnsupportedModelError: If an exporter fails.
    """
    try:
        yield
    except (RepshiftError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever exporters raise
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):  # theirs is advice of many lines
            error = error.__cause__
        raise UnsupportedModelError(
            f"This {type(model).__name__} cannot be exported as {form} ({type(error).__name__}: {first_line(error)}). "
            f"Choose another format ({', '.join(name for name in FORMATS if name != form)}) or another recipe."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters tell their developers away from users."""
    names = ("torch.onnx", "torch.export", "torch.utils.cpp_extension", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
