"""The fixed table of positions of UMT's video encoder."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoid(tokens: int, width: int) -> Tensor:
    """Compute the table of positions: one dimension over all tokens of a video, in the order frame, row, column.

    So a table for more frames begins with that for fewer, and one serves them all.

    Args:
        tokens: How many.
        width: Channels of a token.

    Returns:
        ``(tokens, width)`` float64: at token p the sine of ``p / 10000^(2 floor(j / 2) / width)`` in even channels j,
        the cosine in odd ones.

    Source: Vaswani et al. 2017, "Attention Is All You Need" (arXiv 1706.03762), section 3.5.
    """
    channels = torch.arange(width, dtype=torch.float64)
    frequencies = 10000.0 ** (-2 * torch.div(channels, 2, rounding_mode="floor") / width)
    angles = torch.arange(tokens, dtype=torch.float64).unsqueeze(1) * frequencies
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos())
