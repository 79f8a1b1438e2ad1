"""What a tracker watches: which modules, and how to read their tokens where no backbone says it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from repshift.attention_scores import AttentionScore, Heads
from repshift.choosing import recipe_of
from repshift.errors import UnsupportedModelError
from repshift.finding import why_unserved
from repshift.layouts import FeatureMap, Layout, TokenSequence, first_tensor, guess_layout
from repshift.modules import find_modules
from repshift.sites import Operation, Structure


@dataclass(frozen=True)
class AttentionReading:
    """Attention that is recorded instead of what an operation does: where it is read, and what of it."""

    heads: Heads
    score: AttentionScore


@dataclass(frozen=True)
class Watched:
    """A site under observation.

    Attributes:
        name: Its module, the key of what is recorded.
        operation: Where to look.
        layout: How its values hold tokens; ``None`` if that is to be seen from the values.
        attention: What is recorded instead of the operation, if anything.
    """

    name: str
    operation: Operation
    layout: Layout | None
    attention: AttentionReading | None = None


def refuse_unread(model: nn.Module, structure: Structure | None, watched: Iterable[Watched]) -> None:
    """Refuse to watch the last block of a model that computes there only what its head reads.

    Raises:
        UnsupportedModelError: If one of the modules is in it.
    """
    recipe = recipe_of(model)
    if structure is None or recipe is None or recipe.read == "all":
        return
    last = structure.sites[-1].name
    for each in watched:
        if f"{each.name}.".startswith(f"{last}."):
            raise UnsupportedModelError(
                f"This model was pruned with read='head': {last} computes only what the head reads, so there is none "
                "to watch. Watch other modules, ShiftTracker(model, sites=[...]), or prune with read='all'."
            )


def watched_attention(
    model: nn.Module, structure: Structure | None, sites: str | Iterable[str] | None, score: AttentionScore
) -> list[Watched]:
    """List the blocks whose attention is to be watched: those named, or all.

    Raises:
        UnknownNameError: If a name or glob matches nothing.
        UnsupportedModelError: If the model is unknown, or what is named is no block with an attention map of its own.
    """
    if structure is None:
        raise UnsupportedModelError(
            f"Where the queries and keys of {type(model).__name__} are is not known, so its attention cannot be read. "
            "Watch its shift: leave score out."
        )
    known = {site.name: site for site in structure.sites}
    names = list(known) if sites is None else find_modules(model, sites)
    if others := [name for name in names if name not in known]:
        raise UnsupportedModelError(
            f"Attention is read of whole {structure.unit}s, {others[0]!r} is none. Name {structure.unit}s, such as "
            f"{next(iter(known))!r}."
        )
    return [
        Watched(name, Operation(name, ()), structure.layout, AttentionReading(known[name].attention(score), score))
        for name in names
    ]


def watched_operations(
    model: nn.Module, structure: Structure | None, sites: str | Iterable[str] | None, operation: str
) -> list[Watched]:
    """List what to watch: the blocks of a known backbone at an operation, other modules at their input and output.

    Raises:
        UnknownNameError: If a name or glob matches nothing.
        UnsupportedModelError: If no sites are given and no backbone lists any, or a block lacks the operation.
    """
    if structure is None:
        if sites is None:
            raise UnsupportedModelError(why_unserved(model))
        return [Watched(name, Operation.across(name), None) for name in find_modules(model, sites)]
    known = {site.name: site for site in structure.sites}
    if sites is None:
        # some stages may lack what all others have; if none has it, asking the first one says why
        having = [site for site in known.values() if operation in site.operations] or list(known.values())[:1]
        return [Watched(site.name, structure.at(site, operation), structure.layout) for site in having]
    watched = []
    for name in find_modules(model, sites):
        if name in known:
            watched.append(Watched(name, structure.at(known[name], operation), structure.layout))
        elif name in structure.parts:
            watched.append(Watched(name, structure.parts[name], structure.layout))
        else:
            watched.append(Watched(name, Operation.across(name), None))
    return watched


def layout_of(model: nn.Module, name: str, value: Any, image: tuple[int, ...] | None) -> Layout:
    """Read from a value how a module without a backbone holds tokens.

    Args:
        model: The whole model.
        name: The module that got the value.
        value: Its first input.
        image: Rows and columns of the model's images, if they were seen.
    """
    tensor = first_tensor(value)
    if tensor.ndim == 3:
        # some models declare prefix tokens that join only behind the blocks: believe the number that fits the image
        declared = _declared(model, name, "num_prefix_tokens", 0)
        fits = [prefix for prefix in (declared, 0) if grid_of(tensor.shape[1] - prefix, image)]
        return TokenSequence(fits[0] if fits else declared)
    if tensor.ndim in (4, 5):
        return FeatureMap(_channels_last(model, name, tensor))
    return guess_layout(value)


def grid_of(tokens: int, image: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Return the rows and columns of so many tokens that have the proportions of an image (unseen: a square)."""
    height, width = image or (1, 1)
    rows = round(math.sqrt(max(tokens, 0) * height / width))
    if rows and tokens % rows == 0 and has_proportions((rows, tokens // rows), image):
        return rows, tokens // rows
    return None


def has_proportions(grid: tuple[int, ...], image: tuple[int, ...] | None) -> bool:
    """Say whether a grid has the proportions of an image, but for a row or column of rounding."""
    height, width = image or (1, 1)
    return abs(grid[-2] * width / height - grid[-1]) <= 1


def _declared(model: nn.Module, name: str, attribute: str, default: Any) -> Any:
    """Look an attribute up on the innermost module around a name that has it, since models are often wrapped."""
    path = name.split(".")
    for end in range(len(path), -1, -1):
        value = getattr(model.get_submodule(".".join(path[:end])), attribute, None)
        if isinstance(value, type(default)):
            return value
    return default


def _channels_last(model: nn.Module, name: str, tensor: Tensor) -> bool:
    """Say which end of a map holds the channels: the one of the width that the module's first layer takes."""
    width = next(filter(None, map(_width, model.get_submodule(name).modules())), None)
    first, last = tensor.shape[1] == width, tensor.shape[-1] == width
    if first != last:
        return bool(last)
    return bool(_declared(model, name, "output_fmt", "NCHW") == "NHWC")  # timm's mark


def _width(module: nn.Module) -> int | None:
    for attribute in ("in_features", "in_channels", "num_features", "num_channels"):
        value = getattr(module, attribute, None)
        if isinstance(value, int) and not list(module.children()):
            return value
    shape = getattr(module, "normalized_shape", None)
    return int(shape[-1]) if shape else None
