"""What convolutional networks of stages have in common: shortcuts, strides, and where a stage's input is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from repshift.errors import UnsupportedModelError
from repshift.layouts import FeatureMap
from repshift.sites import Operation, Site, Structure


@dataclass(frozen=True)
class Stage:
    """One stage of residual blocks.

    Attributes:
        name: Its module.
        units: What runs in it, in order: its blocks, and what shrinks the map before them.
        blocks: Its residual blocks.
        start: What the stage's output is compared with: the output of this module, which has the output's size and
            channels; ``None`` for the stage's own input.
        absent: Why there is nothing of the output's size and channels to compare with.
    """

    name: str
    units: tuple[str, ...]
    blocks: tuple[str, ...]
    start: str | None = None
    absent: str | None = None


def staged(model: nn.Module, stages: Sequence[Stage], embedding: str, channels_last: bool = False) -> Structure:
    """Describe a network of stages.

    The operation ``stage`` compares a stage's output with its input, which the first shortcut brings to the output's
    size and channels; the paper leaves open how they are matched, and this is our reading of it. The operation
    ``block`` compares it with the input of the stage's last residual block.

    Args:
        model: The network.
        stages: In order.
        embedding: Name of the module that takes the images.
        channels_last: Whether maps are ``(batch, rows, columns, channels)``.

    Raises:
        UnsupportedModelError: If a stage has no blocks.
    """
    strides = [prod(_stride(model.get_submodule(unit)) for unit in stage.units) for stage in stages]
    sites, parts = [], {}
    for index, stage in enumerate(stages):
        if not stage.blocks:
            raise UnsupportedModelError(f"{stage.name} of {type(model).__name__} has no residual blocks.")
        own = {block: _block(model, block) for block in stage.blocks}
        parts.update({block: operation for block, operation in own.items() if operation is not None})
        operations, absent = {}, {"attn": "it is convolutional", "mlp": "it is convolutional"}
        if stage.absent is None:
            operations["stage"] = Operation(
                stage.start or stage.name, (stage.name,), on_stream=True, from_output=stage.start is not None
            )
        else:
            absent["stage"] = stage.absent
        if last := own[stage.blocks[-1]]:
            operations["block"] = Operation(last.enters, (stage.name,), on_stream=True, from_output=last.from_output)
        else:
            absent["block"] = "its last block has no shortcut"
        sites.append(Site(stage.name, operations, absent, least=prod(strides[index + 1 :])))
    return Structure(
        sites=tuple(sites),
        layout=FeatureMap(channels_last),
        embedding=embedding,
        grid=None,
        tokens=None,
        operation="stage",
        pruner="lines",
        unit="stage",
        parts=parts,
    )


def shortcut(model: nn.Module, block: str) -> str | None:
    """Name the module that brings a block's input to its output's size and channels; ``None`` for the identity."""
    name = f"{block}.downsample"
    return name if isinstance(getattr(model.get_submodule(block), "downsample", None), nn.Module) else None


def _block(model: nn.Module, block: str) -> Operation | None:
    """Say where a residual block can be watched; ``None`` if nothing in it has the output's size and channels."""
    module = model.get_submodule(block)
    if getattr(module, "has_skip", True) is False:  # of timm's inverted residuals
        return None
    start = shortcut(model, block)
    return Operation(start or block, (block,), on_stream=True, from_output=start is not None)


def _stride(module: nn.Module) -> int:
    """Return by how much a unit shrinks the map: the largest stride of its convolutions and pools."""
    strides = [1]
    for part in module.modules():
        stride = getattr(part, "stride", None)
        strides += [stride] if isinstance(stride, int) else [size for size in stride or () if isinstance(size, int)]
    return max(strides)
