"""The selective scan some steps at a time, and its gradients: in place, in a few large operations a block of steps.

States are time-major, ``(length, batch, states, channels)``: those of one step are one contiguous piece of memory, and
the reverse scan follows the same memory downward instead of flipping its operands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu

from repshift.backbones.scan.reference import Operands

HELD = 3 * 2**18  # states held at once, 3 MiB of float32: more fall out of a CPU's caches, which costs up to half
STEPS = 16  # more steps at once gain nothing


def blocked(operands: Operands) -> Tensor:
    """Scan without recording for autograd.

    Returns:
        ``(batch, channels, length)`` of ``u``'s dtype, laid out as ``(batch, length, channels)``.
    """
    scan = _Recurrence(operands.wide())
    outputs = scan.read_out()
    if scan.D is not None:
        outputs.addcmul_(scan.u, scan.D)
    if scan.z is not None:
        outputs.mul_(silu(scan.z))
    return outputs.to(operands.u.dtype).permute(1, 2, 0)


def blocked_gradients(operands: Operands, gradient: Tensor) -> list[Tensor | None]:
    """Return the gradients of a scan's tensors, in the order of :class:`Operands`, ``None`` for those not given.

    The states are computed once more, a block at a time, from those at the blocks' beginnings: what is kept is a small
    part of all states.

    Args:
        operands: Of the scan.
        gradient: Of its output, ``(batch, channels, length)``.
    """
    wide = operands.wide()
    scan = _Recurrence(wide)
    beginnings: list[Tensor] = []
    outputs = scan.read_out(beginnings)
    gradient = _time_major(gradient.to(outputs.dtype))
    of_z = of_D = None
    if scan.z is not None:
        skipped = outputs if scan.D is None else torch.addcmul(outputs, scan.u, scan.D)
        passed = scan.z.sigmoid()
        of_z = gradient * skipped * passed * (1 + scan.z * (1 - passed))
        gradient = gradient * scan.z * passed
    of_added, of_steps, of_A, of_B, of_C = _adjoint(scan, beginnings, gradient)
    of_steps.addcmul_(of_added, scan.u)
    of_u = of_added.mul_(scan.steps)
    if scan.D is not None:
        of_D = (gradient * scan.u).sum((0, 1))
        of_u.addcmul_(gradient, scan.D)
    if wide.delta_softplus:
        of_steps.mul_(-torch.expm1(-scan.steps))  # the sigmoid of what softplus was given
    of_bias = None if wide.delta_bias is None else of_steps.sum((0, 1))
    found = [of_u, of_steps, of_A.t(), of_B, of_C, of_D, of_z, of_bias]
    return [value.permute(1, 2, 0) if value is not None and value.ndim == 3 else value for value in found]


class _Recurrence:
    """The recurrence over time-major operands, and the two buffers that hold one block of steps.

    Args:
        operands: In the precision of the recurrence.
    """

    def __init__(self, operands: Operands) -> None:
        self.u, self.steps = _time_major(operands.u), _time_major(operands.steps())
        self.B, self.C = _time_major(operands.B), _time_major(operands.C)
        self.D, self.z = operands.D, None if operands.z is None else _time_major(operands.z)
        self.A = operands.A.t().contiguous()
        self.rates = self.A * math.log2(math.e)  # torch's exp2 takes a quarter of the time of its exp on some CPUs
        self.added = self.steps * self.u
        self.reverse = operands.reverse
        length, batch, channels = self.u.shape
        shape = (batch, len(self.A), channels)
        self.count = max(1, min(STEPS, length, HELD // max(1, math.prod(shape))))
        self.decays, self.states = (self.u.new_empty(self.count, *shape) for _ in range(2))

    def blocks(self) -> list[slice]:
        """List the blocks of steps in the order of the scan."""
        length = len(self.u)
        blocks = [slice(start, min(start + self.count, length)) for start in range(0, length, self.count)]
        return blocks[::-1] if self.reverse else blocks

    def order(self, block: slice) -> Sequence[int]:
        """Return the indices of a block's steps within the buffers, in the order of the scan."""
        indices = range(block.stop - block.start)
        return indices[::-1] if self.reverse else indices

    def run(self, block: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decays and the states of a block's steps, given the state before; the next run overwrites both."""
        order = self.order(block)
        decays, states = self.decays[: len(order)], self.states[: len(order)]
        torch.mul(self.steps[block, :, None], self.rates, out=decays).exp2_()
        torch.mul(self.added[block, :, None], self.B[block, :, :, None], out=states)
        for step in order:
            state = states[step].addcmul_(decays[step], state)
        return decays, states

    def read_out(self, beginnings: list[Tensor] | None = None) -> Tensor:
        """Scan all and return ``(length, batch, channels)``; append to ``beginnings`` the state before each block."""
        outputs = _empty_like(self.u)
        state = torch.zeros_like(self.states[0])
        for block in self.blocks():
            if beginnings is not None:
                beginnings.append(state)
            _, states = self.run(block, state)
            # out=: autocast, which would round, leaves such products alone
            torch.matmul(self.C[block, :, None], states, out=outputs[block, :, None])
            state = states[self.order(block)[-1]].clone()
        return outputs


def _time_major(sequence: Tensor) -> Tensor:
    """Turn ``(batch, channels, length)`` into ``(length, batch, channels)``, whose channels lie side by side."""
    turned = sequence.permute(2, 0, 1)
    return turned if turned.stride(2) == 1 else turned.contiguous()


def _empty_like(sequence: Tensor) -> Tensor:
    """Make room for ``(length, batch, channels)``, in memory as ``(batch, length, channels)``, as models have it."""
    length, batch, channels = sequence.shape
    return sequence.new_empty(batch, length, channels).transpose(0, 1)


def _adjoint(
    scan: _Recurrence, beginnings: Sequence[Tensor], gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Follow the recurrence against its order: ``g[t] = C[t] * gradient[t] + decay[t + 1] * g[t + 1]``.

    Returns:
        Gradients of what is added to the states, of the steps' part in the decays, of ``A``, ``B`` and ``C``, all in
        the recurrence's layout.
    """
    of_added, of_steps, of_B, of_C = (_empty_like(part) for part in (scan.u, scan.steps, scan.B, scan.C))
    of_A = torch.zeros_like(scan.A)
    buffer, carried = torch.empty_like(scan.states), torch.zeros_like(scan.states[0])
    for block, state in zip(scan.blocks()[::-1], reversed(beginnings), strict=True):
        decays, states = scan.run(block, state)
        order = scan.order(block)
        of_states = buffer[: len(order)]
        torch.matmul(states, gradient[block, :, :, None], out=of_C[block, :, :, None])
        torch.mul(scan.C[block, :, :, None], gradient[block, :, None], out=of_states)
        for step in reversed(order):
            of_states[step].add_(carried)
            torch.mul(of_states[step], decays[step], out=carried)
        torch.matmul(scan.B[block, :, None], of_states, out=of_added[block, :, None])
        torch.matmul(of_states, scan.added[block, :, :, None], out=of_B[block, :, :, None])
        of_exponents = of_states.mul_(decays)
        for step in order:
            of_exponents[step].mul_(state)
            state = states[step]
        torch.sum(of_exponents * scan.A, 2, out=of_steps[block])
        of_A += (of_exponents * scan.steps[block, :, None]).sum((0, 1))
    return of_added, of_steps, of_A, of_B, of_C
