"""What runs the models of a benchmark: torch as it is, its compilers, or a program in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from repshift.analysis.subjects.methods import PLAIN
from repshift.analysis.throughput.setup import PRECISIONS, Setup
from repshift.errors import UnknownNameError, UnsupportedModelError
from repshift.exporting import Batches
from repshift.programs import FORMATS
from repshift.registry import suggest

EAGER, COMPILE = "eager", "compile"
FROM_FILES = ("aoti", "onnx")
RUNTIMES = (EAGER, COMPILE, *FROM_FILES)
Call = Callable[[Tensor], object]


def read_runtimes(text: str | None, torchcompile: bool) -> tuple[str, ...]:
    """Read ``--runtime``, beside ``--torchcompile``, which is the same as ``--runtime compile``.

    Raises:
        UnknownNameError: If there is no such runtime, or the two contradict each other.
    """
    if text is None:
        return (COMPILE,) if torchcompile else (EAGER,)
    if torchcompile:
        raise UnknownNameError(f"Got --torchcompile beside --runtime {text}. Leave one out; compile is a runtime, too.")
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in RUNTIMES:
            raise UnknownNameError(f"Unknown runtime {name!r}. {suggest(name, RUNTIMES)} (--runtime)")
    return tuple(dict.fromkeys(names))


def check_runtimes(setup: Setup, runtimes: tuple[str, ...], kernels: Iterable[str | None] = ()) -> None:
    """Refuse what a program in a file cannot be told.

    Args:
        setup: How all models are run.
        runtimes: What runs them.
        kernels: What computes attention in single models.

    Raises:
        UnsupportedModelError: If it cannot.
    """
    files = ", ".join(name for name in runtimes if name in FROM_FILES)
    if not files:
        return
    if PRECISIONS[setup.precision][1] is not None:
        raise UnsupportedModelError(
            f"Programs in files have the precision of their weights, and {setup.precision} mixes two. Give another "
            f"--precision, or leave {files} out of --runtime."
        )
    chosen = next((kernel for kernel in (setup.attention, *kernels) if kernel not in (None, PLAIN, "sdpa")), None)
    if "onnx" in runtimes and chosen is not None:
        raise UnsupportedModelError(
            f"What runs a file of ONNX chooses its own kernels, so {chosen!r} would say nothing. Leave out --attention "
            "and --paper and take it out of recipes, or leave onnx out of --runtime."
        )
    if "onnx" in runtimes and torch.device(setup.device).type != "cpu":
        raise UnsupportedModelError("onnxruntime is timed on a CPU only. Give --device cpu, or leave onnx out.")


def prepared(runtime: str, model: nn.Module, images: Tensor) -> Call:
    """Make what is timed of a model.

    Args:
        runtime: Any of :data:`RUNTIMES`.
        model: Dense or pruned.
        images: ``(batch, ...)``, of the only size that will be asked for.

    Raises:
        UnsupportedModelError: If the model cannot be exported.
        MissingPackageError: If the runtime is not installed.
    """
    if runtime == EAGER:
        return model
    if runtime == COMPILE:
        compiled: Call = torch.compile(model, dynamic=False)
        return compiled
    form = FORMATS[runtime]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"program{form.ending}"
        form.write(model, images, Batches(len(images), len(images)), path, {})
        return form.load(path)  # what it needs is in memory then


def tells_memory(runtime: str, device: str) -> bool:
    """Say whether the peak memory of a runtime is known: on a GPU by torch's allocator, on a CPU by a process."""
    return runtime in (EAGER, COMPILE) or (runtime == "aoti" and torch.device(device).type == "cuda")
