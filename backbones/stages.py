"""What convolutional networks of stages have in common: shortcuts, strides, and where a stage's input is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

from torch import nn

from repshift.errors import UnsupportedModelError
from repshift.images import Images, Resizing
from repshift.layouts import FeatureMap
from repshift.modules import children, has_class
from repshift.sites import Operation, Site, Structure

NO_ATTENTION = {"attn": "it is convolutional", "mlp": "it is convolutional", "heads": "it has no attention"}
BARE = "its last block changes the map's size or channels and has no shortcut"


@dataclass(frozen=True)
class _AnySize:
    """Convolutions take images of any size; an object of a class, so that two structures can be compared."""

    embedding: str

    def __call__(self, size: tuple[int, int]) -> Resizing:
        return Resizing(self.embedding)


@dataclass(frozen=True)
class Stage:
    """One stage of residual blocks.

    Attributes:
        name: Its module.
        units: What runs in it, in order: its blocks, and what shrinks the map before them.
        blocks: Its residual blocks.
        start: What the stage's output is compared with: the output of this module, which has the output's size and
            channels; ``None`` for the input of the first block.
        absent: Why there is nothing of the output's size and channels to compare with.
    """

    name: str
    units: tuple[str, ...]
    blocks: tuple[str, ...]
    start: str | None = None
    absent: str | None = None


def residual_stage(model: nn.Module, name: str, container: str | None = None) -> Stage:
    """Describe a stage that is nothing but its blocks.

    What its output is compared with lies behind the first block's shortcut, or behind the last block that has none.

    Args:
        model: The network.
        name: The stage's module.
        container: The module that holds the blocks, if not the stage itself.
    """
    blocks = inside(model, container or name)
    bare = [block for block in blocks if not _has_shortcut(model.get_submodule(block))]
    if not bare:
        return Stage(name, units=blocks, blocks=blocks, start=shortcut(model, blocks[0]) if blocks else None)
    absent = BARE if bare[-1] == blocks[-1] else None
    return Stage(name, units=blocks, blocks=blocks, start=bare[-1], absent=absent)


def staged(model: nn.Module, stages: Sequence[Stage], embedding: str, channels_last: bool = False) -> Structure:
    """Describe a network of stages.

    The operation ``stage`` compares a stage's output with its input, which the first shortcut brings to the output's
    size and channels; the paper leaves open how they are matched, and this is our reading of it. The operation
    ``block`` compares it with the input of the stage's last residual block.

    Args:
        model: The network.
        stages: In order; those without blocks are left out, since feature extractors often lack the last ones.
        embedding: Name of the module that takes the images.
        channels_last: Whether maps are ``(batch, rows, columns, channels)``.

    Raises:
        UnsupportedModelError: If no stage has blocks.
    """
    if not any(stage.blocks for stage in stages):
        raise UnsupportedModelError(f"{type(model).__name__} has no residual blocks left to watch. Give a whole model.")
    watched = [{block: _block(model, block) for block in stage.blocks} for stage in stages]
    strides = [
        # what has the identity for a shortcut keeps its size, whatever strides there are inside (of attention)
        prod(_stride(model.get_submodule(unit)) for unit in stage.units if not _is_identity(own.get(unit)))
        for stage, own in zip(stages, watched, strict=True)
    ]
    uneven = [index for index, stage in enumerate(stages) if any(_is_uneven(model, unit) for unit in stage.units)]
    sites, parts = [], {}
    for index, (stage, own) in enumerate(zip(stages, watched, strict=True)):
        if not stage.blocks:
            continue
        parts.update({block: operation for block, operation in own.items() if operation is not None})
        operations, absent = {}, dict(NO_ATTENTION)
        if stage.absent is None:
            # watched from block to block, since gradient checkpointing may run them one by one, past their stage
            operations["stage"] = Operation(
                stage.start or stage.blocks[0],
                stage.blocks[-1:],
                on_stream=True,
                from_output=stage.start is not None,
                cheap=stage.start is not None and stage.start == shortcut(model, stage.blocks[0]),
            )
        else:
            absent["stage"] = stage.absent
        if last := own[stage.blocks[-1]]:
            operations["block"] = last
        else:
            absent["block"] = "its last block has no shortcut"
        # behind the last stage that cannot halve an odd side, any number of lines will do
        multiple = prod(strides[index + 1 : max(uneven, default=0) + 1])
        sites.append(Site(stage.name, operations, absent, least=prod(strides[index + 1 :]), multiple=multiple))
    return Structure(
        sites=tuple(sites),
        layout=FeatureMap(channels_last),
        embedding=embedding,
        images=Images.of(model.get_submodule(embedding)),
        resizes=_AnySize(embedding),
        grid=None,
        tokens=None,
        operation="stage",
        pruner="lines",
        unit="stage",
        parts=parts,
        rounds_up=all(_rounds_up(model.get_submodule(unit)) for stage in stages for unit in stage.units),
    )


def inside(model: nn.Module, name: str) -> tuple[str, ...]:
    """List the names of a module's children, in order."""
    return tuple(f"{name}.{child}" for child in children(model.get_submodule(name)))


def shortcut(model: nn.Module, block: str) -> str | None:
    """Name the module that brings a block's input to its output's size and channels; ``None`` for the identity."""
    module = model.get_submodule(block)
    name = "proj" if has_class(module, "torchvision.models.regnet.ResBottleneckBlock") else "downsample"
    return f"{block}.{name}" if isinstance(getattr(module, name, None), nn.Module) else None


def _block(model: nn.Module, block: str) -> Operation | None:
    """Say where a residual block can be watched; ``None`` if nothing in it has the output's size and channels."""
    if not _has_shortcut(model.get_submodule(block)):
        return None
    start = shortcut(model, block)
    return Operation(start or block, (block,), on_stream=True, from_output=start is not None)


def _has_shortcut(block: nn.Module) -> bool:
    """Say whether a block adds its input, brought to its output's size or not, to what it computes."""
    if has_class(block, "timm.models.regnet.Bottleneck", "timm.models.regnet.PreBottleneck"):
        return isinstance(block.downsample, nn.Module)  # the identity is a module there
    return bool(getattr(block, "has_skip", True))  # of timm's inverted residuals


def _is_identity(operation: Operation | None) -> bool:
    return operation is not None and not operation.from_output


def _stride(module: nn.Module) -> int:
    """Return by how much a unit shrinks the map: the largest stride of its convolutions and pools."""
    return max(chain.from_iterable(_pair(getattr(part, "stride", 1)) for part in module.modules()))


def _rounds_up(module: nn.Module) -> bool:
    """Say whether a unit that takes strides makes two lines of three, as padded convolutions do, or one."""
    return not any(_rounds_down(part) for part in module.modules())


def _rounds_down(part: nn.Module) -> bool:
    """Say whether a layer makes one line of three: it takes strides without padding."""
    # timm's own layers of that kind pad when they run
    return (
        type(part) in (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d)
        and max(_pair(part.stride)) > 1
        and not any(_pair(part.padding))
        and min(_pair(part.kernel_size)) > 1
        and not getattr(part, "ceil_mode", False)
    )


def _is_uneven(model: nn.Module, unit: str) -> bool:
    """Say whether a block and its shortcut round odd sides differently, as with the pools of ``resnetaa``."""
    name = shortcut(model, unit)
    if name is None:
        return False
    block, beside = model.get_submodule(unit), model.get_submodule(name)
    if _stride(beside) == 1:
        return False
    inside = set(beside.modules())
    return any(_rounds_down(part) for part in block.modules() if part not in inside) == _rounds_up(beside)


def _pair(value: Any) -> tuple[int, ...]:
    """Read a convolution's or pool's setting, given as one number or as two."""
    return tuple(size for size in (value if isinstance(value, tuple) else (value,)) if isinstance(size, int)) or (1,)
