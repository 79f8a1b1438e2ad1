"""Counting the work of one forward: multiply-accumulates, and the tokens that each block leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repshift.choosing import recipe_of
from repshift.finding import find_structure_if_served
from repshift.hooks import Hook, attached
from repshift.layouts import Layout


@dataclass(frozen=True)
class Work:
    """What one image's forward comes to.

    Attributes:
        macs: Multiply-accumulates, half of the floating-point operations. The papers' "GFLOPs" are billions of these.
        tokens: How many prunable tokens each block, stage or layer leaves, in their order; positions of a feature map
            count as tokens. ``None`` if no backbone knows the model.
    """

    macs: int
    tokens: tuple[int, ...] | None


_counted: WeakKeyDictionary[nn.Module, dict[Any, Work]] = WeakKeyDictionary()


def count_macs(model: nn.Module, input_size: tuple[int, ...]) -> int:
    """Count the multiply-accumulates of one image's forward; see :func:`count_work`.

    Example:
        >>> from repshift import ShiftTracker, load_model
        >>> model = load_model("tiny_vit")
        >>> count_macs(ShiftTracker(model).prune({0: 0.5}), (3, 64, 64)) < count_macs(model, (3, 64, 64))
        True
    """
    return count_work(model, input_size).macs


def count_work(model: nn.Module, input_size: tuple[int, ...]) -> Work:
    """Count the multiply-accumulates of one image's forward, with torch's own counter, and the tokens on its way.

    The count is made on the meta device, because on a CPU the counter misses fused attention. Norms, activations and
    distances are not counted, as is usual: they are linear in the tokens. It is remembered for as long as the model
    lives and looks the same.

    Args:
        model: Dense or pruned; its weights are neither copied nor touched.
        input_size: Channels, rows and columns of the image; of a video the frames before them.

    Example:
        >>> from repshift import ShiftTracker, load_model
        >>> count_work(ShiftTracker(load_model("tiny_vit")).prune("0.5@0"), (3, 64, 64)).tokens
        (128, 128, 128, 128, 128, 128)
    """
    remembered = _counted.setdefault(model, {})
    # what can be changed in place, strides and widths and whole modules, shows in one of these
    looks = (tuple(input_size), repr(model), tuple((tensor.shape, tensor.dtype) for tensor in model.parameters()))
    if looks not in remembered:
        remembered[looks] = _count(model, input_size)
    return remembered[looks]


def _count(model: nn.Module, input_size: tuple[int, ...]) -> Work:
    tensors = chain(model.parameters(), model.buffers())
    on_meta: nn.Module = copy.deepcopy(model, {id(tensor): _meta(tensor) for tensor in tensors}).eval()
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    counter = FlopCounterMode(display=False)
    structure = find_structure_if_served(on_meta)
    names = [site.name for site in structure.sites] if structure else []
    recipe, tokens = recipe_of(on_meta), dict[str, int]()
    # behind a last block that computes only what the head reads, no token is left
    unread = names[-1:] if recipe is not None and recipe.read == "head" else []
    hooks: list[Hook] = []
    if structure:
        hooks = [
            (on_meta.get_submodule(name), "after", _counts_tokens(tokens, name, structure.layout))
            for name in names
            if name not in unread
        ]
    with torch.no_grad(), attached(hooks), counter:
        on_meta(torch.empty(1, *input_size, dtype=dtype, device="meta"))
    tokens |= dict.fromkeys(unread, 0)
    left = tuple(tokens[name] for name in names) if names and len(tokens) == len(names) else None
    return Work(int(counter.get_total_flops()) // 2, left)


def _counts_tokens(tokens: dict[str, int], name: str, layout: Layout) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tokens[name] = layout.tokens(output).shape[1]

    return hook


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    moved = tensor.detach().to("meta")
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
