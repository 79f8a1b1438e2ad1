"""How much memory a method needs at its peak.

On a GPU that is what torch's allocator handed out. On a CPU it is the resident set of a process of its own: within one
process the methods would find each other's freed memory. The C library is told there to return every larger block to
the system at once; by default it keeps freed memory for later, and the same forward then differs by tens of MiB from
one run to the next.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repshift import Recipe
from repshift.analysis.subjects.memory import MemoryExhaustedError, fitting
from repshift.analysis.subjects.methods import method_name
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.subjects.recipes import apply
from repshift.analysis.throughput.setup import Setup
from repshift.errors import DataError

PROCESS = Path("/proc/self")
BLOCK = 65536  # bytes from which on memory is taken from the system and given back, one by one
OUT_OF_MEMORY = 3  # exit code


def peak_on_gpu(call: Callable[[], object], device: str) -> int:
    """Return the bytes that torch's allocator had handed out at the peak of a call, weights and images included."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def peak_on_cpu(
    setup: Setup, recipe: Recipe | None, batch_size: int, threads: int, frames: int | None = None
) -> int | None:
    """Measure the peak of one forward in a process of its own.

    Args:
        setup: How it is run.
        recipe: How it is pruned; ``None`` for the dense model.
        batch_size: Of the images.
        threads: Of torch.
        frames: Of videos, if they have another number than the model's.

    Returns:
        Bytes: what weights and images hold, and by how much the resident set grew during the forward; ``None`` where
        the system does not tell it (only Linux does).

    Raises:
        MemoryExhaustedError: If the batch does not fit.
        DataError: If the process fails.
    """
    if not (PROCESS / "clear_refs").exists():
        return None
    said = recipe and recipe.to_dict()
    request = {"setup": asdict(setup), "recipe": said, "batch_size": batch_size, "threads": threads}
    request["frames"] = frames
    done = subprocess.run(
        [sys.executable, "-m", "repshift.analysis.throughput.peak_memory"],
        input=json.dumps(request, default=str),
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(BLOCK), "MALLOC_TRIM_THRESHOLD_": str(BLOCK)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == OUT_OF_MEMORY:
        raise MemoryExhaustedError(done.stderr.strip())
    if done.returncode:
        last = next(reversed(done.stderr.splitlines()), f"exit code {done.returncode}")
        raise DataError(
            f"The process that measures the memory of {method_name(recipe)} at batch {batch_size} ended with {last!r}. "
            "Give a smaller --batch-size, or --no-memory to leave this out."
        )
    return int(done.stdout)


def held_bytes(model: nn.Module, images: Tensor) -> int:
    """Count the bytes of a model's parameters and buffers and of the images, ``(batch, channels, rows, columns)``."""
    tensors = chain(model.parameters(), model.buffers(), (images,))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _measure(setup: Setup, recipe: Recipe | None, batch_size: int, frames: int | None) -> int:
    dense = setup.load()
    model, images = apply(recipe, dense), setup.images(dense, batch_size, frames)
    call = torch.compile(model, dynamic=False) if setup.torchcompile else model
    with setup.running():
        call(images)  # what libraries set up once is not the forward's
        (PROCESS / "clear_refs").write_text("5")  # the peak starts again from here
        before = _resident("VmRSS")
        call(images)
        return held_bytes(model, images) + max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = (PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def main() -> None:
    """Measure what standard input asks for and print the bytes."""
    request: dict[str, Any] = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    built = ModelOptions(**request["setup"].pop("built"))
    setup, batch_size = Setup(**request["setup"], built=built), request["batch_size"]
    recipe = request["recipe"] and Recipe.from_dict(request["recipe"])
    try:
        with fitting(batch_size, setup.device):
            print(_measure(setup, recipe, batch_size, request["frames"]))
    except MemoryExhaustedError as error:
        print(error, file=sys.stderr)
        sys.exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
