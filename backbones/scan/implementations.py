"""Which implementations of the selective scan there are, and whether they run here.

The only place that knows mamba-ssm.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from repshift.backbones.scan.blocked import blocked, blocked_gradients
from repshift.backbones.scan.reference import Operands
from repshift.errors import UnsupportedModelError, first_line

IMPLEMENTATIONS = ("auto", "reference", "blocked", "triton", "mamba_ssm")


def run_scan(operands: Operands, implementation: str) -> Tensor:
    """Run a scan without recording for autograd.

    Returns:
        ``(batch, channels, length)`` of ``u``'s dtype, in any layout.

    Raises:
        UnsupportedModelError: If the implementation cannot run here; the message says why.
    """
    chosen = choose_implementation(implementation, operands.u)
    if chosen == "mamba_ssm":
        return mamba_scan(operands)
    if chosen == "triton":
        from repshift.backbones.scan.triton_kernel import scan_forward

        return scan_forward(*operands)
    return blocked(operands)


def run_backward(operands: Operands, gradient: Tensor, implementation: str) -> list[Tensor | None]:
    """Return the gradients of a scan's tensors, in the order of :class:`Operands`, ``None`` for those not given.

    Args:
        operands: Of the scan.
        gradient: Of its output, ``(batch, channels, length)``.
        implementation: Its name, see :func:`repshift.backbones.scan.selective_scan`.
    """
    if choose_implementation(implementation, operands.u) == "mamba_ssm":
        return mamba_gradients(operands, gradient)
    return blocked_gradients(operands, gradient)


def choose_implementation(implementation: str, u: Tensor) -> str:
    """Resolve ``"auto"`` by device, and refuse what cannot run there; ``u`` is ``(batch, channels, length)``."""
    if implementation == "auto":
        if not u.is_cuda:
            return "blocked"
        if u.dtype != torch.float64 and mamba_kernel().scan is not None:
            return "mamba_ssm"
        return "blocked" if why_no_triton() else "triton"
    if implementation == "mamba_ssm":
        _require(u.is_cuda, implementation, f"its kernel runs on CUDA devices, the input is on {u.device}")
        _require(u.dtype != torch.float64, implementation, "its kernel does not compute in float64")
        kernel = mamba_kernel()
        _require(kernel.scan is not None, implementation, f"the package cannot be imported ({kernel.problem})")
    if implementation == "triton":
        problem = why_no_triton()
        _require(not problem, implementation, f"triton cannot be imported ({problem})")
        from repshift.backbones.scan.triton_kernel import INTERPRETED

        where = "its kernel runs on GPUs (on a CPU if TRITON_INTERPRET=1 was set before Python started)"
        _require(u.is_cuda or INTERPRETED, implementation, f"{where}, the input is on {u.device}")
    return implementation


def _require(holds: bool, implementation: str, reason: str) -> None:
    if not holds:
        raise UnsupportedModelError(
            f"The selective scan cannot run as {implementation!r}: {reason}. Choose implementation='auto'."
        )


@cache
def why_no_triton() -> str | None:
    """Say why triton cannot be imported; ``None`` if it can."""
    try:
        import repshift.backbones.scan.triton_kernel  # noqa: F401
    except Exception as error:  # a triton that does not fit its torch raises more than ImportError
        return f"{type(error).__name__}: {first_line(error)}"
    return None


class MambaKernel(NamedTuple):
    """The function of mamba-ssm, or why there is none."""

    scan: Any
    problem: str


@cache
def mamba_kernel() -> MambaKernel:
    """Look for mamba-ssm once."""
    try:
        return MambaKernel(import_mamba_scan(), "")
    except Exception as error:  # undefined symbols and missing CUDA libraries raise many kinds
        return MambaKernel(None, f"{type(error).__name__}: {first_line(error)}")


def import_mamba_scan() -> Any:
    """Import the function and the compiled extension behind it, which may both be there and yet not fit."""
    import selective_scan_cuda  # noqa: F401
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn


SEQUENCES = ("u", "delta", "B", "C", "z")


def mamba_scan(operands: Operands) -> Tensor:
    """Scan by the kernel of mamba-ssm, which only runs forward."""
    scanned: Tensor = mamba_kernel().scan(*_prepared(operands), operands.delta_softplus)
    return _turned(scanned, operands).to(operands.u.dtype)


def mamba_gradients(operands: Operands, gradient: Tensor) -> list[Tensor | None]:
    """Return the gradients that the package computes; ``gradient`` as in :func:`run_backward`, of the same shape."""
    names = Operands._fields[:8]
    prepared = zip(names, _prepared(operands), strict=True)
    leaves = {name: value.detach().requires_grad_() for name, value in prepared if value is not None}
    with torch.enable_grad():
        scanned = mamba_kernel().scan(*(leaves.get(name) for name in names), operands.delta_softplus)
    gradient = _turned(gradient, operands).to(scanned.dtype).contiguous()
    found = dict(zip(leaves, torch.autograd.grad(scanned, list(leaves.values()), gradient), strict=True))
    for name in SEQUENCES:
        if name in found:
            found[name] = _turned(found[name], operands)
    return [found.get(name) for name in names]


def _prepared(operands: Operands) -> list[Tensor | None]:
    """Bring the tensors into the form that the kernel takes: contiguous, parameters in float32, sequences of a kind."""
    sequences = [value for name, value in operands._asdict().items() if name in SEQUENCES and value is not None]
    dtype = sequences[0].dtype
    for sequence in sequences[1:]:
        dtype = torch.promote_types(dtype, sequence.dtype)
    prepared: list[Tensor | None] = []
    for name, value in zip(Operands._fields[:8], operands[:8], strict=True):
        if isinstance(value, Tensor):
            value = _turned(value, operands).to(dtype) if name in SEQUENCES else value.float()
            value = value.contiguous()
        prepared.append(value)
    return prepared


def _turned(sequence: Tensor, operands: Operands) -> Tensor:
    return sequence.flip(-1) if operands.reverse else sequence
