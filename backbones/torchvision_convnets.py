"""The residual convolutional networks of torchvision beside its ResNets: ConvNeXt, EfficientNet, MobileNet, RegNet."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from repshift.backbones.stages import Stage, inside, shortcut, staged
from repshift.modules import has_class
from repshift.sites import Structure

CONVNEXT, REGULAR = "torchvision.models.convnext.ConvNeXt", "torchvision.models.regnet.RegNet"
OF_STAGES, STACKED = "torchvision.models.efficientnet.EfficientNet", "torchvision.models.mnasnet.MNASNet"
OF_BLOCKS = ("torchvision.models.mobilenetv2.MobileNetV2", "torchvision.models.mobilenetv3.MobileNetV3")
BLOCK = "torchvision.models.mnasnet._InvertedResidual"


class TorchvisionConvNet:
    """Networks that stand in one sequence, ``features``: stages, or their blocks one after the other.

    Blocks without a shortcut begin a stage, whose output is compared with what the last of them returns; a stage of
    nothing else is a part of the next one. Where no module stands around the blocks of a stage (MobileNet), its output
    is compared with what its last block takes.
    """

    serves = "torchvision's convolutional networks of residual blocks"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the classes by their names, so that torchvision need not be imported for other models."""
        return has_class(model, CONVNEXT, REGULAR, OF_STAGES, STACKED, *OF_BLOCKS)

    def structure(self, model: nn.Module) -> Structure:
        """List the stages."""
        if has_class(model, REGULAR):
            return staged(model, _stages(model, inside(model, "trunk_output")), "stem")
        if has_class(model, STACKED):
            layers = {name: model.get_submodule(name) for name in inside(model, "layers")}
            stacks = [name for name, layer in layers.items() if has_class(next(layer.children(), layer), BLOCK)]
            return staged(model, _stages(model, stacks), "layers.0")
        stem, *names = inside(model, "features")
        if has_class(model, CONVNEXT):
            return staged(model, _behind_layers(model, names), stem)
        listed = _divided if has_class(model, *OF_BLOCKS) else _stages
        return staged(model, listed(model, names[:-1]), stem)


TORCHVISION_CONVNETS = TorchvisionConvNet()


def _divided(model: nn.Module, blocks: Iterable[str]) -> list[Stage]:
    """Divide blocks into stages, each of which begins with one that has no shortcut."""
    groups: list[tuple[str, ...]] = []
    residual = True
    for block in blocks:
        before, residual = residual, _adds_input(model, block)
        if (before and not residual) or not groups:
            groups.append(())
        groups[-1] += (block,)
    # the last stage may have nothing else
    return [Stage(units[-1], units, units[-1:] if _adds_input(model, units[-1]) else ()) for units in groups]


def _stages(model: nn.Module, names: Iterable[str]) -> list[Stage]:
    stages: list[Stage] = []
    before: tuple[str, ...] = ()  # what has nothing to be compared with; its strides count all the same
    for name in names:
        units = inside(model, name)
        bare = [unit for unit in units if not _adds_input(model, unit)]
        before += units
        if units[-1] not in bare:
            blocks = tuple(unit for unit in units if unit not in bare)
            stages.append(Stage(name, before, blocks, bare[-1] if bare else shortcut(model, units[0])))
            before = ()
    return [*stages, Stage(before[-1], units=before, blocks=())] if before else stages


def _adds_input(model: nn.Module, block: str) -> bool:
    """Say whether a block adds its input to what it computes; others say so of themselves."""
    return all(getattr(model.get_submodule(block), name, True) for name in ("use_res_connect", "apply_residual"))


def _behind_layers(model: nn.Module, names: list[str]) -> list[Stage]:
    """List ConvNeXt's stages; a layer between them shrinks the map."""
    blocks = [inside(model, name) for name in names[::2]]
    units = [blocks[0], *((layer, *own) for layer, own in zip(names[1::2], blocks[1:], strict=True))]
    return [Stage(*described) for described in zip(names[::2], units, blocks, strict=True)]
