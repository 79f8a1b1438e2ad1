"""That a forward stays on its device: it asks for no number, makes nothing elsewhere, and draws nothing by chance.

So it can be captured as one graph of a GPU (``mode="reduce-overhead"``), and no GPU is needed to see it: on the device
``meta`` whatever comes from a CPU stands out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repshift.scores import random
from repshift.testing.subjects import BackboneError, Subject

WAITING = {
    torch.Tag.data_dependent_output: "asks the device for a number",
    torch.Tag.nondeterministic_seeded: "draws random numbers",
}


def a_forward_stays_on_its_device(subject: Subject) -> None:
    """Watch the operations of a pruned model on the device ``meta``; what the dense model does itself does not count.

    Raises:
        BackboneError: If the promise is not kept.
    """
    try:
        usual = _strays(subject.model, subject.images)
    except Exception:  # a dense model that does not run there cannot be compared with
        return
    strays = _strays(subject.pruned(), subject.images) - usual
    if subject.recipe.scores and subject.recipe.the_score is random:
        strays = {what for what in strays if WAITING[torch.Tag.nondeterministic_seeded] not in what}
    if strays:
        raise BackboneError(f"in the pruned model, {'; '.join(sorted(strays))}")


def _strays(model: nn.Module, images: Tensor) -> set[str]:
    watching = _Watching()
    moved = copy.deepcopy(model).to("meta")  # a copy, since pruned models share their weights
    with torch.no_grad(), watching:
        moved(images.to("meta"))
    return watching.found


class _Watching(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.found |= {f"{func} {words}" for tag, words in WAITING.items() if tag in func.tags}
        output = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.device.type != "meta" for leaf in tree_leaves((args, kwargs, output))):
            self.found.add(f"{func} runs on another device")
        return output
