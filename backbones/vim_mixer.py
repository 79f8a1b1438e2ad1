"""The mixer of Vision Mamba: a convolution and a selective scan in each direction.

Source: Zhu et al. 2024, "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
arXiv 2401.09417, section 3 and algorithm 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repshift.backbones.scan import aligned_scan, selective_scan

# symbolic tracing takes these as one call each: they look at the shapes and dtypes of what they are given
torch.fx.wrap("aligned_scan")
torch.fx.wrap("selective_scan")


class Mixer(nn.Module):
    """Mix tokens by two selective scans, one in each direction, each with its own convolution and parameters.

    Args:
        channels: Channels of the tokens.
        states: States a channel.
        kernel: Width of the causal convolution.
        expand: Inner channels by channels.
        halve: Take the mean of both directions instead of their sum.
        implementation: Of the scan, see :func:`repshift.backbones.scan.selective_scan`.
    """

    def __init__(self, channels: int, states: int, kernel: int, expand: int, halve: bool, implementation: str) -> None:
        super().__init__()
        inner, rank = expand * channels, math.ceil(channels / 16)
        self.states, self.rank, self.halve, self.implementation = states, rank, halve, implementation
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        # the names are those of the published checkpoints: _b is the backward direction
        self.conv1d, self.conv1d_b = (nn.Conv1d(inner, inner, kernel, groups=inner) for _ in range(2))
        self.x_proj, self.x_proj_b = (nn.Linear(inner, rank + 2 * states, bias=False) for _ in range(2))
        self.dt_proj, self.dt_proj_b = (nn.Linear(rank, inner) for _ in range(2))
        # -1, -2, ... (S4D-real initialisation)
        spectrum = torch.arange(1, states + 1, dtype=torch.float32).log().expand(inner, -1)
        self.A_log, self.A_b_log = (nn.Parameter(spectrum.clone()) for _ in range(2))
        self.D, self.D_b = (nn.Parameter(torch.ones(inner)) for _ in range(2))
        for projection in (self.dt_proj, self.dt_proj_b):
            _initialise_steps(projection, rank)

    def forward(
        self, tokens: Tensor, gaps: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Mix tokens.

        Args:
            tokens: ``(batch, length, channels)``, normalised.
            gaps: See :class:`State`.

        Returns:
            ``(batch, length, channels)``, and the step sizes of both scans.
        """
        inputs, gate = self.in_proj(tokens).chunk(2, dim=-1)
        before, after = (None, None) if gaps is None else gaps
        forward, forward_steps = self._scan(
            inputs, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D, before, reverse=False
        )
        backward, backward_steps = self._scan(
            inputs, self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b, after, reverse=True
        )
        mixed = (forward + backward) * F.silu(gate)
        if self.halve:
            mixed = mixed / 2
        return self.out_proj(mixed), (forward_steps, backward_steps)

    def _scan(
        self,
        inputs: Tensor,
        conv: nn.Conv1d,
        x_proj: nn.Linear,
        dt_proj: nn.Linear,
        A_log: Tensor,
        D: Tensor,
        gap: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        u = F.silu(causal_convolution(inputs, conv.weight, conv.bias, reverse))
        steps, B, C = x_proj(u).split([self.rank, self.states, self.states], dim=-1)
        steps = F.softplus(at_least_float32(F.linear(steps, dt_proj.weight)) + at_least_float32(dt_proj.bias))
        operands = [tensor.transpose(1, 2) for tensor in (u, steps, B, C)]
        u, delta, B, C = operands
        A, D = -torch.exp(at_least_float32(A_log)), at_least_float32(D)
        if gap is None:
            scanned = selective_scan(u, delta, A, B, C, D, reverse=reverse, implementation=self.implementation)
        else:
            scanned = aligned_scan(
                u, delta, gap.transpose(1, 2), A, B, C, D, reverse=reverse, implementation=self.implementation
            )
        return scanned.transpose(1, 2), steps


@torch.fx.wrap
def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor of any shape in float32, or in float64 if it is of that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@torch.fx.wrap
def causal_convolution(inputs: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """Convolve each channel with the steps up to its own; in reverse, with those from its own on.

    Written as shifted products, which on a CPU takes half the time of a grouped convolution and keeps channels last.

    Args:
        inputs: ``(batch, length, channels)``.
        weight: ``(channels, 1, kernel)``; the last column belongs to the step itself.
        bias: ``(channels,)`` or ``None``.
        reverse: Run on the flipped sequence and flip the result, which is the same as flipping the kernel.
    """
    length, kernel = inputs.shape[1], weight.shape[-1]
    padded = F.pad(inputs, (0, 0, 0, kernel - 1) if reverse else (0, 0, kernel - 1, 0))
    columns = weight[:, 0].unbind(-1)
    convolved = padded[:, :length] * columns[-1 if reverse else 0]
    for shift in range(1, kernel):
        convolved = torch.addcmul(
            convolved, padded[:, shift : shift + length], columns[-1 - shift if reverse else shift]
        )
    return convolved if bias is None else convolved + bias


def _initialise_steps(projection: nn.Linear, rank: int) -> None:
    """Let the step sizes start log-uniform from 0.001 to 0.1 (arXiv 2312.00752, section 3.6)."""
    nn.init.uniform_(projection.weight, -(rank**-0.5), rank**-0.5)
    steps = torch.exp(torch.empty_like(projection.bias).uniform_(math.log(1e-3), math.log(0.1)))
    with torch.no_grad():
        projection.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus
