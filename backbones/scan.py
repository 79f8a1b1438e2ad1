"""The selective scan of Mamba: one function, several implementations, each held against the plain reference.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, eq. 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from repshift.errors import RepresentationError, UnknownNameError, UnsupportedModelError, first_line
from repshift.registry import suggest

IMPLEMENTATIONS = ("auto", "reference", "blocked", "triton", "mamba_ssm")
BLOCK = 8  # steps whose states are held at once; measured best on CPUs for 192 to 768 channels and 16 states


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    reverse: bool = False,
    implementation: str = "auto",
) -> Tensor:
    """Run the state space recurrence over a sequence.

    With ``step = delta + delta_bias`` (through softplus if wanted), each channel has the states
    ``h[t] = exp(step[t] * A) * h[t - 1] + step[t] * B[t] * u[t]`` and gives
    ``y[t] = (C[t] . h[t] + D * u[t]) * silu(z[t])``.

    The arguments before the star are those of ``mamba_ssm.ops.selective_scan_interface.selective_scan_fn``.

    Args:
        u: Inputs, ``(batch, channels, length)``.
        delta: Step sizes, ``(batch, channels, length)``.
        A: ``(channels, states)``, negative for states that decay.
        B: ``(batch, states, length)``.
        C: ``(batch, states, length)``.
        D: Skip connection, ``(channels,)``.
        z: Gate, ``(batch, channels, length)``.
        delta_bias: ``(channels,)``.
        delta_softplus: Whether steps pass through softplus.
        reverse: Scan from the last step to the first, as on the flipped sequence with the output flipped back.
        implementation: ``"reference"``: the recurrence as written above. ``"blocked"``: the same, some steps at a
            time; the one for CPUs. ``"triton"``: a kernel of our own for GPUs. ``"mamba_ssm"``: the kernel of that
            package. ``"auto"``: on CUDA ``mamba_ssm`` if it works there, else ``triton``; otherwise ``blocked``.

    Returns:
        ``(batch, channels, length)`` of ``u``'s dtype. Everything inside is computed in float32, or in float64 for
        inputs of float64. Gradients are those of the blocked form, recomputed in the backward pass (``mamba_ssm``
        has its own).

    Raises:
        RepresentationError: If the shapes do not belong together.
        UnknownNameError: If there is no such implementation.
        UnsupportedModelError: If the implementation cannot run here; the message says why.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    chosen = _chosen(implementation, u)
    if chosen == "reference":
        return _reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    if chosen == "mamba_ssm":
        return _mamba_ssm(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    scanned: Tensor = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, chosen == "triton")
    return scanned


def aligned_scan(
    u: Tensor,
    delta: Tensor,
    gap: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    reverse: bool = False,
    implementation: str = "auto",
) -> Tensor:
    """Scan a sequence from which tokens were dropped whose steps still let the states decay.

    A dropped token of step size ``d`` that adds nothing multiplies the states by ``exp(d * A)``. Taken together with
    the step of the next token that was kept, this is one longer step, ``delta' = gap + delta``, with the input scaled
    to ``u' = u * delta / delta'`` so that ``delta' * u'`` stays the same; any implementation can run it.

    Args:
        u: Inputs, ``(batch, channels, length)``.
        delta: Final step sizes (behind bias and softplus), same shape.
        gap: Sum of the step sizes dropped just before each token in the order of the scan, same shape.
        A: See :func:`selective_scan`, as are the others.
        B: ``(batch, states, length)``.
        C: ``(batch, states, length)``.
        D: ``(channels,)``.
        reverse: Whether the scan runs from the last step to the first.
        implementation: Of the scan.

    Returns:
        ``(batch, channels, length)``: exactly what the scan of the whole sequence gives at the kept tokens if the
        dropped ones add nothing to the states.

    Source: the idea of aligned hidden states is that of Zhan et al. 2024, "Exploring Token Pruning in Vision State
    Space Models", arXiv 2409.18962; the form as one longer step is ours.
    """
    wide, step = _wide(u), _wide(delta)
    longer = step + _wide(gap)
    scaled = torch.where(longer > 0, wide * step / longer, wide)
    scanned = selective_scan(scaled, longer, A, B, C, reverse=reverse, implementation=implementation)
    if D is not None:
        scanned = scanned + wide * _wide(D)[:, None]
    return scanned.to(u.dtype)


def _reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> Tensor:
    """Follow the definition: discretise, recur, read out. Slow, differentiable, and the oracle of the others."""
    inputs, step = _wide(u), _steps(delta, delta_bias, delta_softplus)
    decays = torch.exp(torch.einsum("bdl,dn->bdln", step, _wide(A)))
    added = torch.einsum("bdl,bdl,bnl->bdln", step, inputs, _wide(B))
    state = torch.zeros_like(added[:, :, 0])
    outputs = []
    order = range(u.shape[2])
    for t in reversed(order) if reverse else order:
        state = decays[:, :, t] * state + added[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, _wide(C)[:, :, t]))
    scanned = torch.stack(outputs[::-1] if reverse else outputs, dim=-1)
    if D is not None:
        scanned = scanned + inputs * _wide(D)[:, None]
    if z is not None:
        scanned = scanned * F.silu(_wide(z))
    return scanned.to(u.dtype)


@dataclass(frozen=True)
class _TimeMajor:
    """The scan's operands with time first and channels last, so that one step is one contiguous piece."""

    inputs: Tensor  # (length, batch, channels)
    steps: Tensor  # (length, batch, channels)
    A: Tensor  # (states, channels)
    B: Tensor  # (length, batch, states)
    C: Tensor  # (length, batch, states)

    def blocks(self, reverse: bool) -> list[tuple[Tensor, ...]]:
        """Cut all but ``A`` into blocks of steps, in the order of the scan.

        By ``split``, whose gradient is one concatenation; each slice would write a tensor of zeros of full size.
        """
        blocks = list(zip(*(part.split(BLOCK) for part in (self.inputs, self.steps, self.B, self.C)), strict=True))
        return blocks[::-1] if reverse else blocks


def _time_major(u: Tensor, steps: Tensor, A: Tensor, B: Tensor, C: Tensor) -> _TimeMajor:
    u, steps, B, C = (tensor.permute(2, 0, 1) for tensor in (_wide(u), steps, _wide(B), _wide(C)))
    return _TimeMajor(u, steps, _wide(A).t().contiguous(), B, C)


def _blocked(operands: _TimeMajor, reverse: bool) -> Tensor:
    """Scan in place, without gradients: a few large operations a block, one small one a step.

    Returns:
        ``(length, batch, channels)``.
    """
    state, outputs = None, []
    for inputs, steps, B, C in operands.blocks(reverse):
        decays = (steps[:, :, None] * operands.A).exp_()
        states = (steps * inputs)[:, :, None] * B[..., None]
        order = range(len(states))
        for step in reversed(order) if reverse else order:
            if state is not None:
                states[step].addcmul_(decays[step], state)
            state = states[step]
        outputs.append((C[:, :, None] @ states)[:, :, 0])
    return torch.cat(outputs[::-1] if reverse else outputs)


def _differentiable(operands: _TimeMajor, reverse: bool) -> Tensor:
    """Scan out of place, for autograd; same layout and result as :func:`_blocked`."""
    state, outputs = None, []
    for inputs, steps, B, C in operands.blocks(reverse):
        decays = (steps[:, :, None] * operands.A).exp()
        added = (steps * inputs)[:, :, None] * B[..., None]
        pairs = list(zip(decays.unbind(), added.unbind(), strict=True))
        states = []
        for decay, new in reversed(pairs) if reverse else pairs:
            state = new if state is None else torch.addcmul(new, decay, state)
            states.append(state)
        stacked = torch.stack(states[::-1] if reverse else states)
        outputs.append((C[:, :, None] @ stacked)[:, :, 0])
    return torch.cat(outputs[::-1] if reverse else outputs)


@torch.library.custom_op("repshift::selective_scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    triton: bool,
) -> Tensor:
    """Scan as one operation, so that compilers take hundreds of steps as one node."""
    if triton:
        from repshift.backbones.scan_triton import scan_forward

        return scan_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    scanned = _blocked(_time_major(u, _steps(delta, delta_bias, delta_softplus), A, B, C), reverse)
    return _finished(scanned, u, D, z)


@_scan.register_fake
def _(u: Tensor, *operands: Any) -> Tensor:
    return torch.empty_like(u.permute(2, 0, 1), memory_format=torch.contiguous_format).permute(1, 2, 0)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.softplus, ctx.reverse, _ = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    tensors = [None if saved is None else saved.detach() for saved in ctx.saved_tensors]
    with torch.enable_grad():
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[: len(tensors)]) if needed]
        leaves = [tensors[index].requires_grad_() for index in wanted]  # type: ignore[union-attr]
        u, delta, A, B, C, D, z, delta_bias = tensors
        steps = _steps(delta, delta_bias, ctx.softplus)  # type: ignore[arg-type]
        scanned = _differentiable(_time_major(u, steps, A, B, C), ctx.reverse)  # type: ignore[arg-type]
        found = torch.autograd.grad(_finished(scanned, u, D, z), leaves, gradient)  # type: ignore[arg-type]
    gradients: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for index, value in zip(wanted, found, strict=True):
        gradients[index] = value
    return tuple(gradients)


_scan.register_autograd(_gradients, setup_context=_remember)


@register_flop_formula(torch.ops.repshift.selective_scan)
def _flops(u_shape: torch.Size, delta_shape: torch.Size, A_shape: torch.Size, *others: Any, **kwargs: Any) -> int:
    """Count a multiply-accumulate for each of the four products a state and step: step*A, step*u*B, decay*h, C*h."""
    batch, channels, length = u_shape
    return 2 * 4 * batch * channels * length * A_shape[1]


def _finished(scanned: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """Add the skip connection, apply the gate, and turn ``(length, batch, channels)`` back."""
    if D is not None:
        scanned = torch.addcmul(scanned, _wide(u).permute(2, 0, 1), _wide(D))
    if z is not None:
        scanned = scanned * F.silu(_wide(z).permute(2, 0, 1))
    return scanned.to(u.dtype).permute(1, 2, 0)


def _steps(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    steps = _wide(delta)
    if delta_bias is not None:
        steps = steps + _wide(delta_bias)[:, None]
    return F.softplus(steps) if delta_softplus else steps


def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor in the precision of the recurrence, where errors would add up: at least float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _mamba_ssm(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> Tensor:
    def prepared(sequence: Tensor) -> Tensor:
        return (sequence.flip(-1) if reverse else sequence).contiguous()

    u, delta, B, C = (prepared(sequence) for sequence in (u, delta, B, C))
    z = None if z is None else prepared(z)
    D, delta_bias = (None if tensor is None else tensor.float() for tensor in (D, delta_bias))
    scanned: Tensor = _mamba_kernel()(u, delta, A.float(), B, C, D, z, delta_bias, delta_softplus)
    return scanned.flip(-1) if reverse else scanned


Kernel: TypeAlias = Any


@cache
def _mamba_kernel() -> Kernel:
    """Import the kernel of mamba-ssm; its parts may be installed and yet not fit each other."""
    import selective_scan_cuda  # noqa: F401  the compiled part
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn


@cache
def _why_no_mamba() -> str | None:
    try:
        _mamba_kernel()
    except Exception as error:  # undefined symbols and missing CUDA libraries raise many kinds
        return f"{type(error).__name__}: {first_line(error)}"
    return None


@cache
def _why_no_triton() -> str | None:
    try:
        import repshift.backbones.scan_triton  # noqa: F401
    except ImportError as error:
        return first_line(error)
    return None


def _chosen(implementation: str, u: Tensor) -> str:
    """Resolve ``"auto"`` by device, and refuse what cannot run there."""
    if implementation not in IMPLEMENTATIONS:
        raise UnknownNameError(
            f"Unknown implementation of the selective scan {implementation!r}. "
            f"{suggest(implementation, IMPLEMENTATIONS)}"
        )
    if implementation == "auto":
        if not u.is_cuda:
            return "blocked"
        if _why_no_mamba() is None and u.dtype != torch.float64:
            return "mamba_ssm"
        return "blocked" if _why_no_triton() else "triton"
    if implementation == "mamba_ssm":
        _require(u.is_cuda, implementation, f"its kernel runs on CUDA devices, the input is on {u.device}")
        _require(_why_no_mamba() is None, implementation, f"the package cannot be imported ({_why_no_mamba()})")
        _require(u.dtype != torch.float64, implementation, "its kernel does not compute in float64")
    if implementation == "triton":
        _require(_why_no_triton() is None, implementation, f"triton cannot be imported ({_why_no_triton()})")
        if not u.is_cuda and u.device.type != "meta":
            from triton import knobs

            _require(
                knobs.runtime.interpret,
                implementation,
                f"its kernel runs on a GPU (or on a CPU with TRITON_INTERPRET=1), the input is on {u.device}",
            )
    return implementation


def _require(holds: bool, implementation: str, reason: str) -> None:
    if not holds:
        raise UnsupportedModelError(
            f"The selective scan cannot run as {implementation!r}: {reason}. Choose implementation='auto'."
        )


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.ndim != 3 or A.ndim != 2:
        raise RepresentationError(
            f"The selective scan takes u as (batch, channels, length) and A as (channels, states), got "
            f"{tuple(u.shape)} and {tuple(A.shape)}."
        )
    batch, channels, length = u.shape
    states = A.shape[1]
    expected = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, states)),
        "B": (B, (batch, states, length)),
        "C": (C, (batch, states, length)),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, length)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise RepresentationError(
                f"The selective scan got {name} of shape {tuple(tensor.shape)}, expected {shape} for u "
                f"{tuple(u.shape)} (batch, channels, length) and A {tuple(A.shape)} (channels, states)."
            )
    if length == 0:
        raise RepresentationError("The selective scan got a sequence of length 0. Keep at least one token.")
