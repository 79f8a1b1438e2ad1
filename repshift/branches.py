"""The two sides of a comparison as a block makes them: a branch that it scales, a shortcut that is computed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repshift.participants import own_class
from repshift.stream import Stream


@dataclass(frozen=True, eq=False)
class Scale:
    """A parameter that a block multiplies a branch by; looked up each time, since torch may put another in its place.

    Attributes:
        holder: The module that has it.
        parameter: Its name there.
    """

    holder: nn.Module
    parameter: str

    @staticmethod
    def of(model: nn.Module, name: str) -> Scale:
        """Find a parameter by its name in the whole model."""
        around, _, own = name.rpartition(".")
        return Scale(model.get_submodule(around), own)

    def applied(self, tokens: Tensor) -> Tensor:
        """Multiply tokens ``(batch, tokens, channels)`` by it: a number for each channel, or one for all."""
        parameter: Tensor = getattr(self.holder, self.parameter)
        return tokens * parameter.detach().flatten()


@dataclass(frozen=True, eq=False)
class Replay:
    """Runs a module a second time, without what it plays in pruning.

    The input of a shortcut lives as long as its stage runs, whoever keeps it; its output does not. So where the input
    is the smaller of both, computing ``x`` again in the end costs a little work and no memory, and gives the same
    numbers.
    """

    module: nn.Module

    def is_possible(self, stream: Stream) -> bool:
        """Say whether nobody would notice: not while training, nor compiling, nor when anybody watches."""
        return not (
            torch.compiler.is_compiling()
            or bool(stream.listeners)
            or any(part.training or part._forward_hooks or part._forward_pre_hooks for part in self.module.modules())
        )

    def run(self, taken: Tensor) -> Any:
        """Run the module on ``(batch, channels, rows, columns)``."""
        plainly: Any = own_class(self.module).forward  # past the generated class and what it plays
        return plainly(self.module, taken)


def add_to_float32(stream: Tensor, branch: Tensor) -> Tensor:
    """Add a branch to the residual stream, ``(batch, tokens, channels)`` both, and return the sum in float32.

    Rounded to bfloat16, what a small branch adds would be lost.
    """
    return stream.float() + branch.float()
