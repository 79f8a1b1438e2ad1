"""Counting the work of one forward."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count the multiply-accumulates of one image's forward, with torch's own counter.

    The count is made on the meta device, because on a CPU the counter misses fused attention. Norms, activations and
    the scores that a pruned model computes are not counted, as is usual: they are linear in the tokens.

    Args:
        model: Dense or pruned; its weights are neither copied nor touched.
        input_size: Channels, rows and columns of the image.

    Returns:
        Multiply-accumulates, half of the floating-point operations. The papers' "GFLOPs" are billions of these.
    """
    tensors = chain(model.parameters(), model.buffers())
    on_meta: nn.Module = copy.deepcopy(model, {id(tensor): _meta(tensor) for tensor in tensors}).eval()
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        on_meta(torch.empty(1, *input_size, dtype=dtype, device="meta"))
    return int(counter.get_total_flops()) // 2


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    moved = tensor.detach().to("meta")
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
