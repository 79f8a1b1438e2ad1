"""Finding a model's weights in what a training program saved: one rule for every prefix.

A training program wraps the model, and the names in its checkpoint say so: ``model.`` (Lightning), ``module.`` (data
parallel), ``_orig_mod.`` (``torch.compile``), ``teacher.backbone.`` (DINO), or several of them. The rule:

1. Names of wrappers that compiling and sharding put *between* names (``blocks.0._orig_mod.attn``) are dropped.
2. If all of the model's names are there as they are, that is the model.
3. Else, if all of them are there behind one common prefix, that is the model. What stands under other prefixes is the
   training program's (its loss, its projection head, its other networks) and is passed over.
4. If several prefixes lead to the whole model, which one is meant cannot be told, and nothing is loaded.

Names that are left over beside the model's own, under the same prefix, are never passed over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from repshift.errors import CheckpointError

# modules that torch puts around others, at any depth
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def without_prefix(weights: Mapping[str, Tensor], own: Collection[str], path: Path) -> tuple[dict[str, Tensor], str]:
    """Find a model among the weights of a checkpoint.

    Args:
        weights: Tensors of any shape by name.
        own: The model's names.
        path: Of the checkpoint, for messages.

    Returns:
        Its weights by its own names, and the prefix that they stood behind, ``""`` for none. Where no prefix leads to
        the whole model, what stands behind the one that leads to most of it.

    Raises:
        CheckpointError: If several prefixes lead to the whole model.
    """
    weights = _unwrapped(weights, own)
    found = _prefixes(weights, own)
    whole = [prefix for prefix, count in found.items() if count == len(own)]
    if len(whole) > 1:
        one = max(whole)
        raise CheckpointError(
            f"{path} holds the model {len(whole)} times, under {', '.join(repr(prefix) for prefix in sorted(whole))}, "
            "so which weights are meant cannot be told. Save those that you want by themselves: torch.save("
            f"{{name.removeprefix({one!r}): value for name, value in weights.items() if name.startswith({one!r})}}, "
            "FILE)."
        )
    # where none leads to the whole, names as they are come first
    prefix = whole[0] if whole else max(found, key=lambda prefix: (found[prefix], not prefix), default="")
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}, prefix


def _prefixes(names: Iterable[str], own: Collection[str]) -> dict[str, int]:
    """Count how many of the model's names stand behind each prefix."""
    found: dict[str, int] = {}
    for name in names:
        start = 0
        while True:
            if name[start:] in own:
                found[name[:start]] = found.get(name[:start], 0) + 1
            start = name.find(".", start) + 1
            if not start:
                break
    return found


def _unwrapped(weights: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Drop the names of wrappers, unless the model has them itself or two names would become one."""
    if any(part in WRAPPERS for name in own for part in name.split(".")):
        return dict(weights)
    unwrapped = {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): value for name, value in weights.items()
    }
    return unwrapped if len(unwrapped) == len(weights) else dict(weights)
