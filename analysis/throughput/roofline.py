"""What a device can do at best, measured, and how many bytes a forward has to move: the two sides of a roofline.

Source: the roofline model of Williams, Waterman and Patterson (2009), with measured instead of promised rates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repshift.analysis.subjects.memory import is_out_of_memory
from repshift.analysis.throughput.timing import time_in_turn

SIDE = {"cuda": 8192, "cpu": 2048}  # of the matrices that are multiplied
COPIED = {"cuda": 2**30, "cpu": 2**28}  # bytes, more than any cache holds
ROUNDS = 5
# beside views: what only sets memory aside, or looks at it in another shape
NOTHING_MOVES = (
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten._unsafe_view,
)


@dataclass(frozen=True)
class Rates:
    """What was measured of a device.

    Attributes:
        macs: Multiply-accumulates a second, of a product of two large square matrices.
        bytes: Bytes a second that are read and written when a large tensor is copied.
    """

    macs: float
    bytes: float


def measured_rates(device: str, dtype: torch.dtype, threads: int = 1) -> Rates:
    """Multiply two matrices and copy a tensor, and take the best of some rounds.

    Args:
        device: ``cpu`` or ``cuda``.
        dtype: Of the matrices.
        threads: Of torch, on a CPU.
    """
    kind = torch.device(device).type
    side = SIDE[kind]
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(one)
    source = torch.zeros(COPIED[kind], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        calls = {"product": lambda: torch.mm(one, other, out=product), "copy": lambda: target.copy_(source)}
        seconds = time_in_turn(calls, ROUNDS, threads)
    return Rates(side**3 / min(seconds["product"]), 2 * COPIED[kind] / min(seconds["copy"]))


def bytes_moved(call: Callable[[], object]) -> int | None:
    """Count the bytes that a call moves, if each operation reads its inputs and writes its outputs once.

    That is what runs without a compiler do; a compiler joins operations and moves less.

    Args:
        call: Runs a model that is not compiled, on the device and by the kernels in question.

    Returns:
        Bytes; ``None`` if it has an operation that cannot be watched, as FlexAttention is.
    """
    counter = _CountBytes()
    try:
        with counter:
            call()
    except RuntimeError as error:  # which ran before, so this is the watching
        if is_out_of_memory(error):
            raise
        return None
    return counter.bytes


@contextmanager
def counted_by_compiler() -> Iterator[Callable[[], int | None]]:
    """Let torch's compiler count the bytes that the kernels of its graphs read and write, each its tensors once.

    Yields:
        Tells how many those compiled inside come to so far; ``None`` if nothing was counted. What is found compiled in
        a cache counts nothing, so graphs are not looked for there; their kernels are.
    """
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor
    from torch._inductor import metrics
    from torch._logging._internal import getArtifactLogger

    # it counts only for those who read this log, which nobody has to
    log = getArtifactLogger("torch._inductor.compile_fx", "inductor_metrics")
    level, passed_on, before = log.level, log.propagate, metrics.num_bytes_accessed
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        with inductor.patch(fx_graph_cache=False), functorch.patch(enable_autograd_cache=False):
            yield lambda: (metrics.num_bytes_accessed - before) or None
    finally:
        log.setLevel(level)
        log.propagate = passed_on


class _CountBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not func.is_view and func.overloadpacket not in NOTHING_MOVES:
            self.bytes += sum(each.numel() * each.element_size() for each in _tensors(args, kwargs, output))
        return output


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
