"""The last block of a vision transformer whose head reads the class token alone: only its query and its MLP."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repshift.participants import own_class, with_kernel
from repshift.sites import Reading
from repshift.travelling import added_to_mask

TIMM = "timm.models.vision_transformer"
ATTENTIONS = ("timm.layers.attention.Attention.forward", f"{TIMM}.Attention.forward")
# the tokens in front that a head reads, by where its forward_head is written
READ = {f"{TIMM}.VisionTransformer.forward_head": 1, "timm.models.deit.VisionTransformerDistilled.forward_head": 2}


def reading_of(model: Any) -> Reading:
    """Say what the head of one of timm's vision transformers reads."""
    if model.attn_pool is not None or model.global_pool != "token":
        return Reading(why=f"its head reads more than the class token (global_pool={model.global_pool!r})")
    rows = READ.get(_written(model, "forward_head"), 0)
    own = [name for name in ("forward", "pool") if _written(model, name) != f"{TIMM}.VisionTransformer.{name}"]
    if not rows or own:
        named = own[0] if rows else "forward_head"
        return Reading(why=f"its {named} is its own ({_written(model, named)}), and what that reads is not known")
    last = model.blocks[-1]
    if _written(last, "forward") != f"{TIMM}.Block.forward":
        return Reading(why=f"its last block is of another kind ({_written(last, 'forward')})")
    if _written(last.attn, "forward") not in ATTENTIONS:
        return Reading(why=f"the attention of its last block is of another kind ({_written(last.attn, 'forward')})")
    return Reading(partial(read_block, rows=rows))


def read_block(block: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, *, rows: int) -> Tensor:
    """Run timm's pre-norm block for the first tokens alone; keys and values are those of all.

    Args:
        block: One of ``timm.models.vision_transformer.Block``, whose modules and weights are used.
        x: ``(batch, tokens, channels)``.
        attn_mask: Broadcasts to ``(batch, heads, tokens, tokens)``: added to the logits, or hidden by ``False``.
        is_causal: Each token sees itself and those before it.
        rows: How many tokens.

    Returns:
        ``(batch, rows, channels)``, the first rows of what the block returns.
    """
    attention = block.attn
    if "forward" in vars(attention) or attention._forward_hooks or attention._forward_pre_hooks:
        # somebody's hook or patch acts on all of it, so all of it runs
        attended = attention(block.norm1(x), attn_mask=attn_mask, is_causal=is_causal)[:, :rows]
    else:
        attended = with_kernel(attention, _attention, attention, block.norm1(x), attn_mask, is_causal, rows)
    x = x[:, :rows] + block.drop_path1(block.ls1(attended))
    branch: Tensor = block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return x + branch


def _attention(attention: Any, x: Tensor, attn_mask: Tensor | None, is_causal: bool, rows: int) -> Tensor:
    batch, width = x.shape[0], attention.num_heads * attention.head_dim
    asking, shown = _projected(attention.qkv, x, width, rows)
    q = asking.reshape(batch, rows, attention.num_heads, attention.head_dim).transpose(1, 2)
    k, v = shown.reshape(batch, -1, 2, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    # a mask with one row for all keeps it
    mask = None if attn_mask is None else attn_mask[..., :rows, :]
    if attention.fused_attn:
        dropped = attention.attn_drop.p if attention.training else 0.0
        # a causal mask begins at the first token, whose rows these are
        x_read = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropped, is_causal=is_causal, scale=attention.scale
        )
    else:
        logits = (q * attention.scale) @ k.mT
        if is_causal:
            mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).tril()
        logits = logits if mask is None else added_to_mask(mask, logits)
        x_read = attention.attn_drop(logits.softmax(-1)) @ v
    x_read = attention.norm(x_read.transpose(1, 2).reshape(batch, rows, width))
    if getattr(attention, "gate", None) is not None:
        x_read = x_read * attention.gate(x[:, :rows]).sigmoid()
    read: Tensor = attention.proj_drop(attention.proj(x_read))
    return read


def _projected(qkv: Any, x: Tensor, width: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return the queries of the first tokens, and keys and values of all."""
    if type(qkv) is not nn.Linear or "forward" in vars(qkv) or qkv._forward_hooks or qkv._forward_pre_hooks:
        # a layer that was replaced (adapters, quantised) or is helped by hooks runs as it is
        whole = qkv(x)
        return whole[:, :rows, :width], whole[..., width:]
    bias = qkv.bias
    asking = F.linear(x[:, :rows], qkv.weight[:width], None if bias is None else bias[:width])
    return asking, F.linear(x, qkv.weight[width:], None if bias is None else bias[width:])


def _written(module: Any, method: str) -> str:
    """Say where a method of a module's own class is written, as module and name."""
    function = getattr(own_class(module), method)
    return f"{function.__module__}.{function.__qualname__}"
