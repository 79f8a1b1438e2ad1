"""Attention by one kernel: what takes the place of ``F.scaled_dot_product_attention`` while a module runs.

A bias that is one number a key (how many places a merged token stands for, padding) is given to kernels that take a
mask as a mask. To those that take none it is given as one channel more: with ``q' = [q, 1]`` and ``k' = [k, bias /
scale]`` it is a part of the product, so that any kernel serves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from repshift.kernel_backends import MULTIPLE, SDPA, How, by_flash_attn, by_flex, by_torch, computed_dtype, unserved
from repshift.kernels import DEVICES, IMPLEMENTATIONS, NEEDS_GPU, active_implementation
from repshift.roles import Bystander

FLASH = ("flash", "flash2", "flash3", "flash4")
# Channels of a head that FlashAttention has kernels for
MOST_CHANNELS = 256
HIDDEN = -30000.0  # in the channel of the bias, a finite number in half precision, which gradients can be multiplied by
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class UseKernel(Bystander):
    """Lets a module compute its attention by one kernel.

    Attributes:
        kernel: Its name, one of :data:`repshift.kernels.KERNELS` but ``eager`` and ``sdpa``.
    """

    kernel: str

    def run(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a module's forward, or what takes its place.

        Raises:
            RepresentationError: If the kernel cannot serve it; the message says why.
        """
        asked = _Intercept(self.kernel)
        with asked:
            output = own(*args, **kwargs)
        # what was noted while a program is exported would be a side effect of its forward
        if not (asked.called or torch.compiler.is_exporting()):
            raise unserved(self.kernel, "a module of the model did not ask torch for attention, as it was told to")
        return output


class _Intercept(TorchFunctionMode):
    """Calls a kernel wherever attention is asked for."""

    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.kernel, self.called = kernel, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is SDPA:
            if not torch.compiler.is_exporting():
                self.called = True
            return attend(self.kernel, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attend(
    kernel: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention by one kernel; the arguments are those of ``F.scaled_dot_product_attention``.

    Args:
        kernel: Its name.
        query: ``(batch, heads, queries, channels)``.
        key: ``(batch, heads, keys, channels)``.
        value: The same.
        attn_mask: Added to the logits, or hides by ``False``; broadcasts to ``(batch, heads, queries, keys)``.
        dropout_p: Share of the weights that are dropped.
        is_causal: Each query sees the keys up to its own place.
        scale: Of the logits; by default one over the root of the channels.
        enable_gqa: Fewer heads of keys and values than of queries.

    Returns:
        ``(batch, heads, queries, channels)`` of the query's dtype.

    Raises:
        RepresentationError: If the kernel cannot serve this; the message says why.
    """
    if query.device.type == "meta":  # where only shapes and work are counted
        return SDPA(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    _require_served(kernel, query)
    channels = value.shape[-1]
    if attn_mask is not None and takes_no_mask(kernel, query.device.type):
        bias = _bias_of_keys(attn_mask, query.dtype)
        if bias is None:
            raise unserved(kernel, "it takes no bias of queries and keys, such as one of relative positions")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        query, key, value = with_bias_channel(query, key, value, bias, scale)
        _require_channels(kernel, query.shape[-1])
        attn_mask = None
    how = How(attn_mask, dropout_p, is_causal, scale, enable_gqa)
    compute = {"flash2": by_flash_attn, "flex": by_flex}.get(kernel, partial(by_torch, kernel))
    out: Tensor = compute(query, key, value, how)
    return out if out.shape[-1] == channels else out[..., :channels]


def takes_no_mask(kernel: str, device: str) -> bool:
    """Say whether a kernel takes no mask on a kind of device: there a bias of keys is given as a channel."""
    return kernel in FLASH and not (kernel == "flash" and device == "cpu")


def with_bias_channel(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Give attention a bias of keys as one channel more, all three filled with zeros up to a multiple of 8.

    Args:
        query: ``(batch, heads, queries, channels)``.
        key: ``(batch, heads, keys, channels)``.
        value: The same.
        bias: ``(batch or 1, keys)``, added to the logits; what is hidden has a large negative number, not infinity, and
            so its weight is zero unless all is hidden.
        scale: Of the logits, which has to be given to the kernel, too, since it would take another.

    Returns:
        The three, of so many channels; what attention returns has to be cut back to those of the value. In half
        precision a bias of 5 is off by 0.02.
    """
    fill = -(query.shape[-1] + 1) % MULTIPLE
    channel = (bias / scale).clamp(min=HIDDEN).to(key.dtype)[:, None, :, None].expand(*key.shape[:-1], 1)
    query = F.pad(torch.cat([query, query.new_ones(()).expand(*query.shape[:-1], 1)], -1), (0, fill))
    key = F.pad(torch.cat([key, channel], -1), (0, fill))
    return query, key, F.pad(value, (0, query.shape[-1] - value.shape[-1]))


def _bias_of_keys(mask: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Read a mask that says the same for all heads and queries; ``None`` if it does not (in its shape or its strides).

    Returns:
        ``(batch or 1, keys)``, added to the logits, float32 or wider.
    """
    mask = mask.view((1,) * (4 - mask.ndim) + mask.shape) if mask.ndim < 4 else mask
    same = [mask.shape[axis] == 1 or mask.stride(axis) == 0 for axis in (1, 2)]
    if not all(same):
        return None
    mask = mask[:, 0, 0]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    return mask.to(torch.promote_types(mask.dtype, torch.float32))


def _require_served(kernel: str, query: Tensor) -> None:
    """Refuse what a kernel does not serve, from devices, dtypes and shapes."""
    device, dtype = query.device.type, computed_dtype(query)
    if kernel not in DEVICES:
        return
    if device not in DEVICES[kernel]:
        raise unserved(kernel, f"{NEEDS_GPU}, and the model runs on {query.device}")
    if takes_no_mask(kernel, device):
        if dtype not in HALF:
            raise unserved(
                kernel,
                f"it computes in float16 and bfloat16, and the queries are {dtype} (model.bfloat16(), torch.autocast)",
            )
        _require_channels(kernel, query.shape[-1])
        if kernel != "flash2":
            _require_active(kernel)


def _require_channels(kernel: str, channels: int) -> None:
    if channels > MOST_CHANNELS:
        raise unserved(kernel, f"it takes heads of up to {MOST_CHANNELS} channels, and there are {channels}")


def _require_active(kernel: str) -> None:
    active = active_implementation()
    if active != (IMPLEMENTATIONS[kernel][0] if kernel in IMPLEMENTATIONS else None):
        raise unserved(
            kernel,
            f"torch's FlashAttention is {active or 'its own'} in this process, since another model chose it later, or "
            f"this one comes from another process; repshift.attention(model, {kernel!r}) puts it back",
        )
