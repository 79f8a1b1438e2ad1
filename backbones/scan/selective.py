"""The selective scan of Mamba: one function, several implementations, each held against the plain reference.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, eq. 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repshift.backbones.scan.implementations import IMPLEMENTATIONS
from repshift.backbones.scan.operator import scan
from repshift.backbones.scan.reference import Operands, reference
from repshift.errors import RepresentationError, UnknownNameError
from repshift.registry import suggest

__all__ = ["IMPLEMENTATIONS", "aligned_scan", "selective_scan"]


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
        ``(batch, channels, length)`` of ``u``'s dtype. Everything inside is computed in float32 whatever the operands
        are, in float64 if ``u`` is float64, and autocast does not change that. The backward pass computes the states
        once more, by ``mamba_ssm`` if that ran the forward pass, else in the blocked form; it has no gradient itself.

    Raises:
        RepresentationError: If the shapes do not belong together.
        UnknownNameError: If there is no such implementation.
        UnsupportedModelError: If the implementation cannot run here; the message says why.
    """
    _check(u, A, delta=delta, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    if implementation not in IMPLEMENTATIONS:
        raise UnknownNameError(
            f"Unknown implementation of the selective scan {implementation!r}. "
            f"{suggest(implementation, IMPLEMENTATIONS)}"
        )
    operands = Operands(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    if implementation == "reference":
        return reference(operands)
    return scan(operands, implementation)


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

    Raises:
        RepresentationError: If the shapes do not belong together.

    Source: the idea of aligned hidden states is that of Zhan et al. 2024, "Exploring Token Pruning in Vision State
    Space Models", arXiv 2409.18962; the form as one longer step is ours.
    """
    _check(u, A, delta=delta, gap=gap, B=B, C=C, D=D)
    steps = delta.to(torch.promote_types(u.dtype, torch.float32))
    longer = steps + gap
    divisor = torch.where(longer == 0, 1, longer)  # not 0, which would give gradients of NaN even where not chosen
    scaled = u * torch.where(longer == 0, 1, steps / divisor)
    scanned = selective_scan(scaled, longer, A, B, C, reverse=reverse, implementation=implementation)
    if D is not None:
        scanned = scanned + u.to(scanned.dtype) * D[:, None]
    return scanned.to(u.dtype)


def _check(u: Tensor, A: Tensor, **others: Tensor | None) -> None:
    if u.ndim != 3 or A.ndim != 2:
        raise RepresentationError(
            f"The selective scan takes u as (batch, channels, length) and A as (channels, states), got "
            f"{tuple(u.shape)} and {tuple(A.shape)}."
        )
    batch, channels, length = u.shape
    states = A.shape[1]
    sequence, moments, parameter = (batch, channels, length), (batch, states, length), (channels,)
    expected = {"A": (channels, states), "B": moments, "C": moments, "D": parameter, "delta_bias": parameter}
    for name, tensor in {"A": A, **others}.items():
        shape = expected.get(name, sequence)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise RepresentationError(
                f"The selective scan got {name} of shape {tuple(tensor.shape)}, expected {shape} for u "
                f"{tuple(u.shape)} (batch, channels, length) and A {tuple(A.shape)} (channels, states)."
            )
    if length == 0:
        raise RepresentationError("The selective scan got a sequence of length 0. Keep at least one token.")
