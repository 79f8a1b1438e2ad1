"""The kernels of attention as they are called: torch's own, the package flash-attn, FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from threading import RLock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from repshift.errors import RepresentationError, first_line
from repshift.kernels import IMPLEMENTATIONS

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "flash3": SDPBackend.FLASH_ATTENTION,
    "flash4": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# Channels of a head come in multiples of this
MULTIPLE = 8
MULTIPLE_OF_MASK = 16  # keys of a mask, as torch itself aligns them
LEAST_OF_FLEX = 16  # channels of a head that its kernels for GPUs take
FORMS_OF_FLEX = 64  # that it is compiled for; one for each number of tokens, of images, and kind of mask
# what torch says where it has no kernel of the kind that was asked for
REFUSALS = ("vailable kernel", "viable backend", "xecution plan", "unsupported")
SWITCHES = RLock()
SDPA = F.scaled_dot_product_attention


class How(NamedTuple):
    """What attention is asked for beside queries, keys and values, as ``F.scaled_dot_product_attention`` calls it."""

    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float | None
    enable_gqa: bool


def unserved(kernel: str, why: str) -> RepresentationError:
    """Say why a kernel cannot serve what it is asked for."""
    return RepresentationError(
        f"Attention by {kernel!r} cannot serve this: {why}. Choose another: repshift.attention(model, 'sdpa')."
    )


def computed_dtype(query: Tensor) -> torch.dtype:
    """Return the dtype that attention is computed in, which autocast may change.

    Args:
        query: Of any shape.
    """
    kind = query.device.type
    if query.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return query.dtype


def by_torch(kernel: str, query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
    """Call torch's attention, which must not choose another kernel.

    Args:
        kernel: Its name.
        query: ``(batch, heads, queries, channels)``.
        key: ``(batch, heads, keys, channels)``.
        value: The same.
        how: What else is asked for.

    Raises:
        RepresentationError: If torch cannot use this one.
    """
    # operators need no switch, and torch's switches are the process's: models in other threads meet them
    by_operator = torch.compiler.is_exporting() or query.device.type == "cpu"
    if by_operator and not torch.onnx.is_in_onnx_export():
        return _by_operator(kernel, query, key, value, how)
    if how.attn_mask is not None and how.attn_mask.dtype != torch.bool:
        how = how._replace(attn_mask=how.attn_mask.to(computed_dtype(query)))
    try:
        # of two threads one would leave on what the other had set
        with nullcontext() if torch.compiler.is_compiling() else SWITCHES, sdpa_kernel(BACKENDS[kernel]):
            return SDPA(query, key, value, **how._asdict())
    except RuntimeError as error:
        if not any(refusal in str(error) for refusal in REFUSALS):
            raise
        raise unserved(
            kernel,
            f"torch says {first_line(error)!r} of {computed_dtype(query)} heads of {query.shape[-1]} channels, "
            f"{'without a' if how.attn_mask is None else 'with a'} mask, on {query.device}; its warnings say more",
        ) from error


def _by_operator(kernel: str, query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
    """Call the kernel's own operator: an exported program would choose another kernel where it runs.

    Operators take what the function before them makes of its arguments, so that is made here.
    """
    if kernel in IMPLEMENTATIONS:
        raise unserved(kernel, "a program would run torch's own FlashAttention, where nothing took its place")
    aten, (mask, dropout, causal, scale, grouped) = torch.ops.aten, how
    query, key, value = (each.to(computed_dtype(query)) for each in (query, key, value))
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
    if grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale, channels = query.shape[-1] ** -0.5 if scale is None else scale, value.shape[-1]
    out: Tensor
    if kernel == "math":
        out = aten._scaled_dot_product_attention_math(query, key, value, mask, dropout, causal, scale=scale)[0]
    elif query.device.type == "cpu":
        if why := _why_not_on_cpu(query, value, mask, dropout):
            raise unserved(kernel, why)
        flash = aten._scaled_dot_product_flash_attention_for_cpu
        out = flash(query, key, value, dropout, causal, attn_mask=mask, scale=scale)[0]
    else:
        if mask is not None:
            keys = key.shape[-2]
            rows = mask.to(query.dtype).expand(*mask.shape[:-1], keys)
            mask = F.pad(rows, (0, -keys % MULTIPLE_OF_MASK))[..., :keys].expand(*query.shape[:-1], keys)
        query, key, value = (F.pad(each, (0, -each.shape[-1] % MULTIPLE)) for each in (query, key, value))
        if kernel == "efficient":
            efficient = aten._scaled_dot_product_efficient_attention
            out = efficient(query, key, value, mask, False, dropout, causal, scale=scale)[0]
        elif kernel == "cudnn":
            cudnn = aten._scaled_dot_product_cudnn_attention
            out = cudnn(query, key, value, mask, False, dropout, causal, scale=scale)[0]
        else:
            _require_same_lengths(kernel, query, key, causal)
            out = aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, scale=scale)[0]
    return out[..., :channels]


def _why_not_on_cpu(query: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> str:
    if dropout:
        return "on a CPU it drops no weights of attention, and the model asks for that (attn_drop)"
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        return "it computes no gradient of a bias, and this one asks for it (torch.no_grad(), or another kernel)"
    if value.shape[-1] != query.shape[-1]:
        return f"queries have {query.shape[-1]} channels and values {value.shape[-1]}, and it takes as many of both"
    return ""


def by_flash_attn(query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
    """Call the package flash-attn, which holds tokens before heads; fewer heads of keys need no word.

    Args:
        query: ``(batch, heads, queries, channels)``.
        key: ``(batch, heads, keys, channels)``.
        value: The same.
        how: What else is asked for.

    Raises:
        RepresentationError: If a causal mask would begin elsewhere than torch's.
    """
    from flash_attn import flash_attn_func

    _require_same_lengths("flash2", query, key, how.is_causal)
    dtype = computed_dtype(query)
    laid_out = (each.to(dtype).transpose(1, 2) for each in (query, key, value))
    attended: Tensor = flash_attn_func(
        *laid_out, dropout_p=how.dropout_p, softmax_scale=how.scale, causal=how.is_causal
    )
    return attended.transpose(1, 2)


def _require_same_lengths(kernel: str, query: Tensor, key: Tensor, causal: bool) -> None:
    if causal and query.shape[2] != key.shape[2]:
        raise unserved(kernel, "a causal mask of other numbers of queries and keys ends where torch's begins")


def by_flex(query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
    """Call FlexAttention, which adds a mask to each logit by itself.

    Args:
        query: ``(batch, heads, queries, channels)``.
        key: ``(batch, heads, keys, channels)``.
        value: The same.
        how: What else is asked for.

    Raises:
        RepresentationError: If it is asked for dropout, or for gradients on a CPU.
    """
    if how.dropout_p:
        raise unserved("flex", "it drops no weights of attention, and the model asks for that (attn_drop)")
    if query.device.type == "cpu" and torch.is_grad_enabled() and (query.requires_grad or value.requires_grad):
        raise unserved("flex", "it computes no gradients on a CPU (torch.no_grad(), or another kernel)")
    dtype = computed_dtype(query)
    query, key, value = (each.to(dtype) for each in (query, key, value))
    if query.device.type == "cuda" and query.shape[-1] < LEAST_OF_FLEX:
        raise unserved("flex", f"on a GPU it takes heads of {LEAST_OF_FLEX} channels or more, not {query.shape[-1]}")
    score_mod = None if how.attn_mask is None and not how.is_causal else _score_mod(how.attn_mask, how.is_causal)
    told: dict[str, Any] = {"score_mod": score_mod, "scale": how.scale, "enable_gqa": how.enable_gqa}
    attended: Tensor
    if query.device.type != "cuda" or torch.compiler.is_compiling():
        from torch.nn.attention.flex_attention import flex_attention

        attended = flex_attention(query, key, value, **told)
        return attended
    try:  # beyond so many forms of its arguments dynamo would compute plain products without a word
        with torch._dynamo.config.patch(recompile_limit=FORMS_OF_FLEX):
            attended = _compiled_flex()(query, key, value, **told)
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise unserved("flex", f"it was compiled for {FORMS_OF_FLEX} other forms of queries in this process") from error
    return attended


def _score_mod(mask: Tensor | None, causal: bool) -> Callable[..., Tensor]:
    """Add a mask to each logit, wherever it says one thing for several."""
    if mask is not None:
        mask = mask.view((1,) * (4 - mask.ndim) + mask.shape) if mask.ndim < 4 else mask
        many = [mask.shape[axis] > 1 for axis in range(3)]

    def added(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        if causal:
            score = torch.where(row >= column, score, -torch.inf)
        if mask is None:
            return score
        place = [index if several else index * 0 for index, several in zip((batch, head, row), many, strict=True)]
        entry = mask[place[0], place[1], place[2], column]
        return torch.where(entry, score, -torch.inf) if mask.dtype == torch.bool else score + entry

    return added


@cache
def _compiled_flex() -> Callable[..., Any]:
    """Compile FlexAttention, which is a kernel only then, and plain products otherwise."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True)
    return compiled
