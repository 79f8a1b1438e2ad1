"""The convolutional networks of timm besides the ResNets, and those that mix convolutions with attention of any size.

Where a class has its stages stands in :mod:`repshift.backbones.convnet_tables`.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from repshift.backbones.convnet_tables import BOUND, BRANCHES, PATCHED, RUNS, STAGES, TREES, Run, Stages
from repshift.backbones.shapes import keeps_shape, narrows, stride_of
from repshift.backbones.stages import (
    Paths,
    Stage,
    changes_shape,
    declares_shortcut,
    inside,
    projects,
    residual_stage,
    shortcut,
    staged,
)
from repshift.errors import UnsupportedModelError
from repshift.layouts import FeatureMap
from repshift.modules import children, find_modules, has_class
from repshift.sites import Structure


class ConvNet:
    """Networks whose stages end in maps that any size will do for.

    The stage's input is brought to its output's size by what the network itself has for it: the first shortcut, the
    layer between the stages, or the blocks that have no shortcut because they change the size or the channels. Where
    it has nothing and the channels only grow, zeros stand for those that the input lacks. A stage that has nothing at
    all to compare with is not counted.
    """

    serves = "most other convolutional networks of timm"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the classes by their names, so that timm need not be imported for other models."""
        return has_class(model, *STAGES, *RUNS, TREES, BRANCHES)

    def structure(self, model: nn.Module) -> Structure:
        """List the stages.

        Raises:
            UnsupportedModelError: If a layer has tables for one size of map, or no stage has anything to compare with.
        """
        _refuse_bound_layers(model)
        if has_class(model, TREES):
            trees = [name for name in children(model) if name.startswith("level")]
            return staged(model, [_tree(model, name) for name in trees], embedding="base_layer")
        if has_class(model, BRANCHES):
            return _branches(model)
        if runs := [run for name, run in RUNS.items() if has_class(model, name)]:
            return _in_runs(model, runs[0])
        place = next(place for name, place in STAGES.items() if has_class(model, name))
        stages = [
            replace(_stage(model, name, place), grain=_grain(model.get_submodule(name)))
            for name in find_modules(model, place.stages)
        ]
        return staged(model, stages, place.embedding, FeatureMap(place.channels_last))


CONVNET = ConvNet()


def _refuse_bound_layers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        why = BOUND.get(type(module).__name__)
        if why is not None and getattr(module, "conv_lambda", None) is None:  # with it, positions come of a convolution
            raise UnsupportedModelError(
                f"{type(model).__name__} can be tracked but not pruned: {name} ({type(module).__name__}) {why}. Give "
                "ShiftTracker the names or globs of modules as sites, or prune a network without such layers."
            )


def _grain(stage: nn.Module) -> int:
    """Return what the sides of a stage's maps must be multiples of, because they are taken apart into patches."""
    patches = (part for part in stage.modules() if type(part).__name__ in PATCHED)
    return max((max(part.patch_size) for part in patches), default=1)  # type: ignore[arg-type]


def _stage(model: nn.Module, name: str, place: Stages) -> Stage:
    stage = model.get_submodule(name)
    container = f"{name}.{place.blocks}" if place.blocks else name
    if place.first:
        return replace(_led(model, container), name=name, widens=place.widens)
    before = tuple(f"{name}.{child}" for child in place.before if isinstance(getattr(stage, child, None), nn.Module))
    if not place.before:
        return residual_stage(model, name, container)
    blocks = inside(model, container)
    bare = [block for block in blocks if not place.residual and changes_shape(model.get_submodule(block))]
    beside = [shortcut(model, block) for block in blocks[:1] if projects(model, block)]
    starts = [*before, *beside, *(block for block in bare if block != blocks[-1])]
    absent = bool(bare) and bare[-1] == blocks[-1] and narrows(model.get_submodule(blocks[-1]))
    start = starts[-1] if starts else None
    described = Stage(name, (*before, *blocks), blocks, start, absent, widens=place.widens)
    if not getattr(stage, "use_nchw", True):  # within, its blocks hold a sequence
        return replace(described, blocks=(name,), leaves=name)
    return replace(described, leaves=name if place.behind else None)


def _led(model: nn.Module, name: str) -> Stage:
    """Describe a stage whose first block or layer brings its input to its output's size and channels."""
    units = inside(model, name)
    if not units:
        return Stage(name, (), ())
    blocks = tuple(unit for unit in units if children(model.get_submodule(unit)))
    leading = model.get_submodule(units[0])
    start = units[0] if not declares_shortcut(leading) and not keeps_shape(leading) else None
    # what stands behind it keeps the map, whatever strides there are inside (of attention)
    return Stage(name, units[:1], blocks, start, absent=start in blocks[-1:])


def _in_runs(model: nn.Module, run: Run) -> Structure:
    """Describe stages that are runs in one list of blocks; each is cut behind its last block."""
    runs: list[list[str]] = [[]]
    for unit in find_modules(model, run.units):
        if run.each or stride_of(model.get_submodule(unit)) > 1:
            runs.append([])
        runs[-1].append(unit)
    stages = []
    for each in runs:
        sites = [unit for unit in each if run.has(model, unit) and _is_comparable(model, unit)][-1:]
        stages.append(Stage("".join(sites), tuple(each), tuple(sites), widens=run.widens))
    layout = Paths() if run.paths else FeatureMap()
    return staged(model, stages, run.embedding, layout, "block", "block" if run.each else "stage")


def _is_comparable(model: nn.Module, block: str) -> bool:
    return stride_of(model.get_submodule(block)) == 1 or shortcut(model, block) is not None


def _tree(model: nn.Module, name: str) -> Stage:
    """Describe a tree of blocks: its first projection, which may stand in a tree within, leads past its first block."""
    level = model.get_submodule(name)
    ends = [f"{name}.{inner}" for inner, part in level.named_modules() if inner.endswith("project")]
    projected = [end for end in ends if children(model.get_submodule(end))]
    start = next(iter(projected), f"{name}.downsample" if ends else None)
    return Stage(name, (name,), (name,) if ends else (), start, leaves=name, uneven=bool(ends))


def _branches(model: nn.Module) -> Structure:
    """Describe a network that goes on in several sizes at once: lines go before that, in its first stage."""
    blocks = inside(model, "layer1")
    halved = tuple(f"transition{number}.{number}" for number in (1, 2, 3))
    first = [Stage(block, (block,), (block,)) for block in blocks]
    return staged(model, [*first, Stage("", halved, (), uneven=True)], "conv1", operation="block", unit="block")
