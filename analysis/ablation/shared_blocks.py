"""Running many pruned models on the same images without repeating what all of them have in common.

Before the first block that drops tokens, a pruned model computes what the dense one does. So the dense model's blocks
are remembered for each batch, and models that are pruned later take over what those returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from repshift.hooks import attached
from repshift.sites import Structure


class SharedBlocks:
    """What the blocks of a dense model returned for the batch that it saw last.

    Nothing in the models that can be pruned writes to what a block returned, so it can be handed out repeatedly.

    Args:
        model: The dense model.
        structure: Its description.
        last: How many blocks, from the first on, are remembered.
    """

    def __init__(self, model: nn.Module, structure: Structure, last: int) -> None:
        self.model = model
        self.names = [site.name for site in structure.sites[:last]]
        self.returned: dict[str, Any] = {}

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Remember what the blocks return whenever the model runs, while the context lasts."""
        blocks = [(name, self.model.get_submodule(name)) for name in self.names]
        try:
            with attached((block, "after", partial(self._remember, name)) for name, block in blocks):
                yield
        finally:
            self.returned.clear()

    def take_over(self, pruned: nn.Module, block: int) -> None:
        """Let a pruned model answer from what is remembered, up to the first block that drops tokens.

        Args:
            pruned: A structural copy of the model, whose own modules are exchanged; it is of no other use then.
            block: The first that drops tokens, counted from zero.
        """
        for name in self.names[:block]:
            pruned.set_submodule(name, _Remembered(self.returned, name))

    def _remember(self, name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        self.returned[name] = output


class _Remembered(nn.Module):
    """Stands where a block stood and returns what that returned."""

    def __init__(self, returned: dict[str, Any], name: str) -> None:
        super().__init__()
        self.returned = returned
        self.name = name

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        return self.returned[self.name]
