"""What the families with rotary positions have in common: the table beside the tokens, and what keys are good for."""

from __future__ import annotations

from typing import Any

from repshift.attention_scores import Heads
from repshift.companions import Companion
from repshift.modules import children

# one table for all, one for each head (a table of its own for each block), or one for each image (patch dropout)
ROTARY = Companion("rope", "batch heads token channels")
TURNED = "its queries and keys are turned by their places behind where they can be watched"


def only_keys(model: Any, name: str, attention: Any, why: str = TURNED) -> Heads | None:
    """Say where keys can be watched, by which tokens can be compared, though attention cannot be computed there.

    Args:
        model: Holds the attention.
        name: Of the attention.
        attention: One of timm's, with a norm of queries and one of keys, if only in name.
        why: Attention cannot be computed.
    """
    if not {"q_norm", "k_norm"} <= children(attention).keys():
        return None
    return Heads(f"{name}.q_norm", f"{name}.k_norm", attention.scale, model.num_prefix_tokens, False, why)
