"""The selective scan under transformations: written out for exporters, and over a further dimension for ``vmap``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift.backbones.scan.reference import Operands

# Operands that have no batch of their own: gradients of theirs are sums over the batch
PARAMETERS = (2, 5, 7)


def doubled(operands: Operands) -> Tensor:
    """Scan in plain operations, ``log2(length)`` of them one after another: what exporters write down.

    After the step of distance ``k`` each state holds what the last ``2 * k`` tokens added to it; decays only multiply,
    so nothing is divided and nothing overflows.

    Returns:
        ``(batch, channels, length)`` of ``u``'s dtype.

    Source: Hillis and Steele 1986, "Data parallel algorithms".
    """
    wide = operands.wide()
    steps, length = wide.steps(), operands.u.shape[-1]
    decays = torch.exp(steps.unsqueeze(2) * wide.A.unsqueeze(-1))
    states = (steps * wide.u).unsqueeze(2) * wide.B.unsqueeze(1)
    distance = 1
    while distance < length:
        if operands.reverse:
            kept, padding = slice(distance, None), (0, distance)
        else:
            kept, padding = slice(None, -distance), (distance, 0)
        states = states + decays * F.pad(states[..., kept], padding)
        decays = decays * F.pad(decays[..., kept], padding, value=1.0)
        distance *= 2
    scanned = (states * wide.C.unsqueeze(1)).sum(2)
    if wide.D is not None:
        scanned = scanned + wide.u * wide.D.unsqueeze(-1)
    if wide.z is not None:
        scanned = scanned * F.silu(wide.z)
    return scanned.to(operands.u.dtype)


def over_dimension(
    run: Callable[..., Tensor | list[Tensor]], size: int, in_dims: Sequence[int | None], tensors: Sequence[Any]
) -> Any:
    """Run a scan, or its gradients, for each entry of a further dimension, and stack what comes.

    Args:
        run: Takes the tensors without that dimension.
        size: Of the dimension.
        in_dims: Where each tensor has it; ``None`` for those that are the same for all.
        tensors: Of the scan, of the shapes that it takes with one more dimension; ``None`` for those not given.
    """
    found = [
        run(*(value if dim is None else value.select(dim, index) for value, dim in zip(tensors, in_dims, strict=True)))
        for index in range(size)
    ]
    if isinstance(found[0], Tensor):
        return torch.stack(found)  # type: ignore[arg-type]
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def folded(value: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Make the further dimension of a sequence ``(batch, channels, length)`` a part of its batch."""
    if value is None:
        return None
    value = value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return value.flatten(0, 1)
