"""What convolutional networks of stages have in common: where a stage's input is found to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm, prod
from typing import Any

from torch import Tensor, nn

from repshift.backbones.shapes import keeps_shape, rounds_down, rounds_up, stride_of
from repshift.errors import UnsupportedModelError
from repshift.images import Images, Resizing
from repshift.layouts import FeatureMap
from repshift.modules import children, has_class
from repshift.selection import Selection
from repshift.sites import Operation, Site, Structure

NO_ATTENTION = {"attn": "it is convolutional", "mlp": "it is convolutional", "heads": "it has no attention"}
BARE = "changes the map's size or channels and has no shortcut"
# What a block may call the module on its shortcut
SHORTCUTS = ("downsample", "shortcut", "skipbn")
# Where none means that the shortcut is the identity
ALWAYS_SHORTCUT = ("timm.models.xception_aligned.XceptionModule", "timm.models.xception_aligned.PreXceptionModule")
MOST_CHANNELS = 16  # of images; a first convolution that takes more stands behind something that rearranges them


@dataclass(frozen=True)
class _AnySize:
    """Convolutions take images of any size; an object of a class, so that two structures can be compared."""

    embedding: str

    def __call__(self, size: tuple[int, int]) -> Resizing:
        return Resizing(self.embedding)


@dataclass(frozen=True)
class Paths(FeatureMap):
    """Several maps of one size that travel together; the first one is scored, and all lose the same lines."""

    def arrange(self, value: Any, selection: Selection) -> Any:
        """Lay kept positions of each of them out as smaller maps; see :class:`repshift.layouts.FeatureMap`."""
        if isinstance(value, Tensor):
            return super().arrange(value, selection)
        return type(value)(FeatureMap.arrange(self, each, selection) for each in value)


@dataclass(frozen=True)
class Stage:
    """One stage of blocks.

    Attributes:
        name: Its module.
        units: What runs in it, in order: its blocks, and what shrinks the map before them.
        blocks: Its residual blocks.
        start: What the stage's output is compared with: the output of this module, which has the output's size and
            channels; ``None`` for the input of the first block.
        absent: Whether there is nothing of the output's size and channels to compare with.
        leaves: The module that returns the stage's output; ``None`` for the last block.
        widens: Whether its output may have more channels than what it is compared with; zeros stand for those that are
            lacking (arXiv 1512.03385, section 3.3, option A).
        uneven: Whether an odd side cannot be halved here, though no single unit tells.
        grain: What the sides of its maps must be multiples of.
    """

    name: str
    units: tuple[str, ...]
    blocks: tuple[str, ...]
    start: str | None = None
    absent: bool = False
    leaves: str | None = None
    widens: bool = False
    uneven: bool = False
    grain: int = 1


def residual_stage(model: nn.Module, name: str, container: str | None = None) -> Stage:
    """Describe a stage that is nothing but its blocks.

    What its output is compared with lies behind the first block's shortcut, or behind the last block that has none.

    Args:
        model: The network.
        name: The stage's module.
        container: The module that holds the blocks, if not the stage itself.
    """
    blocks = inside(model, container or name)
    changing = [block for block in blocks if changes_shape(model.get_submodule(block)) or projects(model, block)]
    if not changing:
        return Stage(name, units=blocks, blocks=blocks, start=shortcut(model, blocks[0]) if blocks else None)
    last = changing[-1]
    if beside := shortcut(model, last) if not changes_shape(model.get_submodule(last)) else None:
        return Stage(name, units=blocks, blocks=blocks, start=beside)
    return Stage(name, units=blocks, blocks=blocks, start=last, absent=last == blocks[-1])


def staged(
    model: nn.Module,
    stages: Sequence[Stage],
    embedding: str,
    layout: FeatureMap = FeatureMap(),  # noqa: B008  # frozen
    operation: str = "stage",
    unit: str = "stage",
) -> Structure:
    """Describe a network of stages.

    The operation ``stage`` compares a stage's output with its input, which the first shortcut brings to the output's
    size and channels; the paper leaves open how they are matched, and this is our reading of it. The operation
    ``block`` compares it with the input of the stage's last residual block. A stage that has nothing to compare with
    is not counted, so that a schedule's stages are those where lines can go.

    Args:
        model: The network.
        stages: In order; those without blocks are left out, since feature extractors often lack the last ones.
        embedding: Name of the module that takes the images.
        layout: How values between the stages hold their maps.
        operation: The one that is watched unless another is asked for; ``"block"`` for stages without a module of their
            own, which are cut behind their last block.
        unit: What stages are called in this network.

    Raises:
        UnsupportedModelError: If no stage has blocks, or none has anything to compare with.
    """
    if not any(stage.blocks for stage in stages):
        raise UnsupportedModelError(f"{type(model).__name__} has no residual blocks left to watch. Give a whole model.")
    watched = [
        {block: None if block == stage.leaves else _block(model, block, stage.widens) for block in stage.blocks}
        for stage in stages
    ]
    strides = [
        # what has the identity for a shortcut keeps its size, whatever strides there are inside (of attention)
        prod(stride_of(model.get_submodule(unit)) for unit in stage.units if not _is_identity(own.get(unit)))
        for stage, own in zip(stages, watched, strict=True)
    ]
    picky = [
        stage.uneven or stage.grain > 1 or any(_is_uneven(model, unit) for unit in stage.units) for stage in stages
    ]
    sites, parts = [], {}
    for index, (stage, own) in enumerate(zip(stages, watched, strict=True)):
        if not stage.blocks or stage.absent:
            continue
        parts.update({block: operation for block, operation in own.items() if operation is not None})
        operations, absent = {}, dict(NO_ATTENTION)
        if operation == "stage":
            # watched from block to block, since gradient checkpointing may run them one by one, past their stage
            operations["stage"] = Operation(
                stage.start or stage.blocks[0],
                (stage.leaves or stage.blocks[-1],),
                on_stream=True,
                from_output=stage.start is not None,
                cheap=stage.start is not None and stage.start == shortcut(model, stage.blocks[0]),
                widens=stage.widens,
            )
        else:
            absent["stage"] = "its stages are no modules of their own"
        if last := own[stage.blocks[-1]]:
            operations["block"] = last
        else:
            absent["block"] = "its last block has no shortcut of the form of its output"
        # behind the last stage that cannot halve an odd side, any number of lines will do
        later = [other for other in range(index + 1, len(stages)) if picky[other]]
        multiple = lcm(*(prod(strides[index + 1 : other + 1]) * stages[other].grain for other in later))
        sites.append(Site(stage.name, operations, absent, least=prod(strides[index + 1 :]), multiple=multiple))
    if not sites:
        name = type(model).__name__
        raise UnsupportedModelError(
            f"{name} cannot be pruned: each of its stages ends in a block that {BARE}, so that there is nothing to "
            "compare with. It can be tracked by names or globs of its modules: ShiftTracker(model, sites=...)."
        )
    return Structure(
        sites=tuple(sites),
        layout=layout,
        embedding=embedding,
        images=_images(model.get_submodule(embedding)),
        resizes=_AnySize(embedding),
        grid=None,
        tokens=None,
        operation=operation,
        pruner="lines",
        unit=unit,
        parts=parts,
        rounds_up=all(rounds_up(model.get_submodule(unit)) for stage in stages for unit in stage.units),
    )


def inside(model: nn.Module, name: str) -> tuple[str, ...]:
    """List the names of a module's children, in order."""
    return tuple(f"{name}.{child}" for child in children(model.get_submodule(name)))


def shortcut(model: nn.Module, block: str) -> str | None:
    """Name the module that brings a block's input to its output's size and channels; ``None`` for the identity."""
    module = model.get_submodule(block)
    if getattr(module, "shortcut_after_dw", False):
        return f"{block}.conv_dw"
    # there proj is the shortcut, elsewhere a layer of the branch
    names = ("proj",) if has_class(module, "torchvision.models.regnet.ResBottleneckBlock") else SHORTCUTS
    return next((f"{block}.{name}" for name in names if isinstance(getattr(module, name, None), nn.Module)), None)


def changes_shape(block: nn.Module) -> bool:
    """Say whether a block changes the map's size or channels, and adds no input to what it computes."""
    return not _has_shortcut(block) and not keeps_shape(block)


def projects(model: nn.Module, block: str) -> bool:
    """Say whether there is more than the identity on a block's shortcut."""
    beside = shortcut(model, block)
    return beside is not None and any(isinstance(part, nn.Conv2d) for part in model.get_submodule(beside).modules())


def _block(model: nn.Module, block: str, widens: bool) -> Operation | None:
    """Say where a block can be watched; ``None`` if nothing in it has the output's size and channels."""
    if not widens and changes_shape(model.get_submodule(block)):
        return None
    start = shortcut(model, block)
    return Operation(start or block, (block,), on_stream=True, from_output=start is not None, widens=widens)


def _images(embedding: nn.Module) -> Images | None:
    """Read what the images are like from the convolution that takes them, if that is the first one."""
    images = Images.of(embedding)
    return images if images is None or images.channels <= MOST_CHANNELS else None


def _has_shortcut(block: nn.Module) -> bool:
    """Say whether a block adds its input, brought to its output's size or not, to what it computes."""
    declared = declares_shortcut(block)
    return True if declared is None else declared


def declares_shortcut(block: nn.Module) -> bool | None:
    """Say whether a block has a shortcut; ``None`` if its attributes do not tell."""
    if has_class(block, "timm.models.regnet.Bottleneck", "timm.models.regnet.PreBottleneck"):
        return isinstance(block.downsample, nn.Module)  # the identity is a module there
    if has_class(block, *ALWAYS_SHORTCUT):
        return not getattr(block, "no_skip", False)
    for name in ("shortcut", "identity"):  # a module, and be it the identity, or none at all
        if hasattr(block, name):
            return isinstance(getattr(block, name), nn.Module)
    flags = [bool(getattr(block, name)) for name in ("has_skip", "use_shortcut", "residual") if hasattr(block, name)]
    return all(flags) if flags else None


def _is_identity(operation: Operation | None) -> bool:
    return operation is not None and not operation.from_output and not operation.widens


def _is_uneven(model: nn.Module, unit: str) -> bool:
    """Say whether a block and its shortcut round odd sides differently, as with the pools of ``resnetaa``."""
    name = shortcut(model, unit)
    if name is None:
        return False
    block, beside = model.get_submodule(unit), model.get_submodule(name)
    if stride_of(beside) == 1:
        return False
    inside = set(beside.modules())
    return any(rounds_down(part) for part in block.modules() if part not in inside) == rounds_up(beside)
