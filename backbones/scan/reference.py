"""What a selective scan takes, and the scan as it is defined: slow, differentiable, and the oracle of the others."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus


class Operands(NamedTuple):
    """The operands of one scan; shapes and meanings as in :func:`repshift.backbones.scan.selective_scan`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    delta_softplus: bool = False
    reverse: bool = False

    def wide(self) -> Operands:
        """Return them in the precision of the recurrence, where errors would add up: float64 or float32."""
        precision = torch.float64 if self.u.dtype == torch.float64 else torch.float32
        converted: dict[str, Any] = {
            name: value.to(precision) for name, value in self._asdict().items() if isinstance(value, Tensor)
        }
        return self._replace(**converted)

    def steps(self) -> Tensor:
        """Return the final step sizes, ``(batch, channels, length)``."""
        steps = self.delta if self.delta_bias is None else self.delta + self.delta_bias[:, None]
        return softplus(steps) if self.delta_softplus else steps


def reference(operands: Operands) -> Tensor:
    """Follow the definition: discretise the whole sequence, recur, read out.

    Returns:
        ``(batch, channels, length)`` of ``u``'s dtype.

    Source: arXiv 2312.00752, eq. 2 and 4, with ``step * B`` for the discrete ``B`` as in its code.
    """
    wide = operands.wide()
    steps = wide.steps()
    # sums of products instead of matrix products, which autocast and TF32 would round
    decays = torch.exp(steps.unsqueeze(-1) * wide.A.unsqueeze(1))
    added = (steps * wide.u).unsqueeze(-1) * wide.B.transpose(1, 2).unsqueeze(1)
    moments = list(zip(decays.unbind(2), added.unbind(2), wide.C.unbind(2), strict=True))
    state = torch.zeros_like(moments[0][0])
    outputs = []
    for decay, new, read in reversed(moments) if operands.reverse else moments:
        state = decay * state + new
        outputs.append((state * read.unsqueeze(1)).sum(-1))
    scanned = torch.stack(outputs[::-1] if operands.reverse else outputs, dim=1).mT
    if wide.D is not None:
        scanned = scanned + wide.u * wide.D[:, None]
    if wide.z is not None:
        scanned = scanned * silu(wide.z)
    return scanned.to(operands.u.dtype)
