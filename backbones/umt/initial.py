"""Weights at the start of a training."""

from __future__ import annotations

from torch import nn


def initialise(module: nn.Module) -> None:
    """Set the weights of one module as BERT sets them: normal with deviation 0.02, biases 0. For ``Module.apply``."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        bias = getattr(module, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias)
