"""The selective scan as one Triton kernel: forward only, in both directions, on tensors of any strides."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_D = 32  # channels a program: a warp, one lane a channel, whose states and sums over them stay in the lane
LOG2_E = tl.constexpr(1.4426950408889634)
# log1p(x) = 2 artanh(x / (2 + x)); for x in [0, 1] so many terms of artanh leave less than rounding errors
TERMS = {torch.float32: 8, torch.float64: 17}


def scan_forward(
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
    """Run the selective scan, see :func:`repshift.backbones.scan.selective_scan`; no gradients.

    Each program follows some channels of one image over the whole sequence. Their states never leave the registers, so
    each operand is read once and nothing but the outputs is written.

    Returns:
        ``(batch, channels, length)`` of ``u``'s dtype, laid out as ``(batch, length, channels)``. Computed in float32,
        or in float64 if ``u`` is float64.
    """
    batch, channels, length = u.shape
    states = A.shape[1]
    out = u.new_empty(batch, length, channels).mT
    precise = torch.float64 if u.dtype == torch.float64 else torch.float32
    # the states of a channel are far apart in memory, so that the compiler lays channels, not states, along the lanes
    rates = (A.to(precise) * LOG2_E.value).t().contiguous()
    # triton launches on the current device, which need not be the tensors' own
    with torch.cuda.device_of(u):  # type: ignore[no-untyped-call]
        _kernel[(batch, triton.cdiv(channels, BLOCK_D))](
            *(u, *u.stride()),
            *(delta, *delta.stride()),
            *(rates, *rates.stride()),
            *(B, *B.stride()),
            *(C, *C.stride()),
            *(D, 0 if D is None else D.stride(0)),
            *(z, *((0, 0, 0) if z is None else z.stride())),
            *(delta_bias, 0 if delta_bias is None else delta_bias.stride(0)),
            *(out, *out.stride()),
            *(channels, states, length),
            SOFTPLUS=delta_softplus,
            REVERSE=reverse,
            BLOCK_D=BLOCK_D,
            BLOCK_N=triton.next_power_of_2(states),
            DTYPE=tl.float64 if precise == torch.float64 else tl.float32,
            TERMS=TERMS[precise],
            num_warps=1,
            enable_fp_fusion=True,  # said aloud because triton 3.9 warns of a change of its default
        )
    return out


@triton.jit
def _softplus(x, TERMS: tl.constexpr):
    """Return log(1 + exp(x)) without overflow, and exact where it is small: there 1 + exp(x) would round to 1."""
    # the sum of a series, because the logarithm of GPUs is rough near 1
    small = tl.exp2(-tl.abs(x) * LOG2_E)
    ratio = small / (2 + small)
    square = ratio * ratio
    series = square * 0
    for term in tl.static_range(TERMS):
        series = series * square + 1 / (2 * (TERMS - term) - 1)
    return tl.maximum(x, 0) + 2 * ratio * series


# fmt: off
@triton.jit
def _kernel(
    u, u_batch, u_channel, u_time,
    delta, delta_batch, delta_channel, delta_time,
    rates, rates_state, rates_channel,
    B, B_batch, B_state, B_time,
    C, C_batch, C_state, C_time,
    D, D_channel,
    z, z_batch, z_channel, z_time,
    bias, bias_channel,
    out, out_batch, out_channel, out_time,
    channels, states, length,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, DTYPE: tl.constexpr, TERMS: tl.constexpr,
):
    # fmt: on
    # int64: offsets into large tensors, and products with strides, exceed int32
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    state = tl.arange(0, BLOCK_N).to(tl.int64)
    real, real_state = channel < channels, state < states
    both = real_state[:, None] & real[None, :]
    rate = tl.load(rates + state[:, None] * rates_state + channel[None, :] * rates_channel, mask=both, other=0)
    u += image * u_batch + channel * u_channel
    delta += image * delta_batch + channel * delta_channel
    out += image * out_batch + channel * out_channel
    B += image * B_batch + state * B_state
    C += image * C_batch + state * C_state
    if z is not None:
        z += image * z_batch + channel * z_channel
    if D is not None:
        skip = tl.load(D + channel * D_channel, mask=real, other=0).to(DTYPE)
    if bias is not None:
        shift = tl.load(bias + channel * bias_channel, mask=real, other=0).to(DTYPE)

    h = tl.zeros([BLOCK_N, BLOCK_D], dtype=DTYPE)
    for index in tl.range(length, num_stages=3):
        time = tl.cast(length - 1 - index if REVERSE else index, tl.int64)
        x = tl.load(u + time * u_time, mask=real, other=0).to(DTYPE)
        step = tl.load(delta + time * delta_time, mask=real, other=0).to(DTYPE)
        b = tl.load(B + time * B_time, mask=real_state, other=0).to(DTYPE)
        c = tl.load(C + time * C_time, mask=real_state, other=0).to(DTYPE)
        if bias is not None:
            step += shift
        if SOFTPLUS:
            step = _softplus(step, TERMS)
        h = tl.exp2(step[None, :] * rate) * h + (step * x)[None, :] * b[:, None]
        y = tl.sum(h * c[:, None], axis=0)
        if D is not None:
            y += skip * x
        if z is not None:
            gate = tl.load(z + time * z_time, mask=real, other=0).to(DTYPE)
            y *= gate / (1 + tl.exp2(-gate * LOG2_E))
        tl.store(out + time * out_time, y.to(out.dtype.element_ty), mask=real)


# triton decides when it is imported, for its own functions, and here, for ours
INTERPRETED = not any(isinstance(function, triton.JITFunction) for function in (_kernel, tl.sum))
