"""What a report shows of images: the shift block by block, what pruning keeps of it, and the predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repshift import Recipe, RepresentationError, ShiftTracker, UnsupportedModelError, repeated_blocks
from repshift.analysis.heatmap.maps import kept_mask
from repshift.analysis.subjects.recipes import apply, with_tokens
from repshift.finding import find_structure
from repshift.scores import Score

BATCH = 16
SEED = 0  # of the random score
NOTHING = (
    "{} has no blocks that a report could show: none that repeat, keep the shape of their input, and have tokens in "
    "rows and columns that can be told. Choose another model, or look at modules by name: repshift heatmap --sites."
)


@dataclass(frozen=True)
class MeasuredShift:
    """What the maps show, whatever the tokens go by; the names are those of :class:`repshift.ShiftTracker`."""

    operation: str | None = None
    distance: str | Score = "l2"
    residual: bool = False

    @classmethod
    def of(cls, recipe: Recipe | None) -> MeasuredShift:
        """Take it from a recipe; without one it is the paper's."""
        return cls() if recipe is None else cls(recipe.operation, recipe.distance, recipe.residual)

    def tracker(self, model: nn.Module, names: Sequence[str]) -> ShiftTracker[nn.Module]:
        """Watch some blocks of a model."""
        return ShiftTracker(model, names, operation=self.operation, distance=self.distance, residual=self.residual)


@dataclass(frozen=True)
class BlockMaps:
    """One block, stage or layer, seen on some images.

    Attributes:
        name: Of the module.
        dense: The shift in the dense model, ``(images, rows, columns)`` float32.
        pruned: The same in the pruned model, NaN where a token was dropped before; ``None`` without a pruned model, or
            where its tokens cannot be laid out.
        kept: Which tokens are left behind the block, also as part of others, ``(images, rows, columns)`` bool; ``None``
            as ``pruned``.
        joined: Of which token behind the block each place is part, ``(images, rows, columns)`` int64, by its number, -1
            where it was dropped; ``None`` as long as none were merged.
    """

    name: str
    dense: Tensor
    pruned: Tensor | None = None
    kept: Tensor | None = None
    joined: Tensor | None = None

    @property
    def left(self) -> Tensor | None:
        """How many tokens are left behind the block, ``(images,)``; ``None`` as ``pruned``."""
        return None if self.kept is None else _count(self.kept, self.joined)


@dataclass(frozen=True)
class Examination:
    """What a model did on some images.

    Attributes:
        blocks: In their order.
        dense: Probabilities of the classes, ``(images, classes)`` float32; ``None`` if the model has no classifier.
        pruned: Those of the pruned model, if there is one.
    """

    blocks: tuple[BlockMaps, ...]
    dense: Tensor | None
    pruned: Tensor | None


def examine(
    model: nn.Module,
    inputs: Tensor,
    recipe: Recipe | None,
    observe: Callable[[int], object] = lambda done: None,
    shift: MeasuredShift | None = None,
) -> Examination:
    """Run the dense and the pruned model on images, and look at every block.

    Args:
        model: Dense, in evaluation mode, on the device of the images.
        inputs: ``(images, channels, rows, columns)`` float32.
        recipe: How to prune; without one there is no pruned model.
        observe: Called with the number of images that are done.
        shift: What the maps show; by default what the recipe says.

    Raises:
        UnsupportedModelError: If no block's tokens lie in rows and columns that can be told, or the model cannot be
            pruned; the message says why.
        ScheduleError: If the schedule does not fit the model.
    """
    shift, recipe = shift or MeasuredShift.of(recipe), with_tokens(recipe)
    names = _names(model, inputs[:1], shift)
    pruned = None if recipe is None else apply(recipe, model).eval()
    parts = []
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        for start in range(0, len(inputs), BATCH):
            part = inputs[start : start + BATCH]
            parts.append(_examine_batch(model, pruned, part, names, shift))
            observe(start + len(part))
    return _joined(parts)


def _names(model: nn.Module, images: Tensor, shift: MeasuredShift) -> list[str]:
    """Name the blocks whose tokens can be laid out; without a known backbone, those that repeat."""
    structure = find_structure(model)
    if structure is None:
        names = _repeated(model, images)
    else:
        watched = shift.operation or structure.operation
        having = [site.name for site in structure.sites if watched in site.operations]
        names = having or [site.name for site in structure.sites]  # if none has it, looking at one says why
    tracker = shift.tracker(model, names)
    with tracker, torch.inference_mode():
        model(images)
    mapped = [name for name in names if name in tracker.shifts and _map_of(tracker, name) is not None]
    if not mapped:
        raise UnsupportedModelError(NOTHING.format(type(model).__name__))
    return mapped


def _repeated(model: nn.Module, images: Tensor) -> list[str]:
    try:
        return repeated_blocks(model, images)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(NOTHING.format(type(model).__name__)) from error


def _map_of(tracker: ShiftTracker[nn.Module], name: str) -> Tensor | None:
    try:
        found = tracker.maps[name]
    except RepresentationError:
        return None
    return found if found.ndim == 3 else None


def _examine_batch(
    model: nn.Module, pruned: nn.Module | None, images: Tensor, names: Sequence[str], shift: MeasuredShift
) -> Examination:
    tracker = shift.tracker(model, names)
    with tracker, torch.inference_mode():
        dense_logits = model(images)
    maps = {name: tracker.maps[name] for name in names}
    _require_finite(maps)
    if pruned is None:
        blocks = tuple(BlockMaps(name, maps[name].cpu()) for name in names)
        return Examination(blocks, _probabilities(model, dense_logits), None)
    observing = shift.tracker(pruned, names)
    with observing, torch.inference_mode():
        pruned_logits = pruned(images)
    compared: list[BlockMaps] = []
    joined = None
    for name in names:
        if name in observing.joined:
            joined = observing.joined[name]  # and stays so until something else joins
        compared.append(_compared(name, maps[name], observing, joined))
    return Examination(tuple(compared), _probabilities(model, dense_logits), _probabilities(model, pruned_logits))


def _require_finite(maps: dict[str, Tensor]) -> None:
    for name, values in maps.items():
        if not values.isfinite().all():
            raise RepresentationError(f"The shift across {name!r} is not finite. Check the weights and the images.")


def _count(kept: Tensor, joined: Tensor | None) -> Tensor:
    return kept.sum((1, 2)) if joined is None else joined.amax((1, 2)) + 1


def _compared(name: str, dense: Tensor, observing: ShiftTracker[nn.Module], joined: Tensor | None) -> BlockMaps:
    found = _map_of(observing, name)
    if found is None or found.shape != dense.shape:
        return BlockMaps(name, dense.cpu())
    if joined is not None:
        joined = joined.view(found.shape).cpu()
        return BlockMaps(name, dense.cpu(), found.cpu(), joined >= 0, joined)
    kept = ~found.isnan()
    if name in observing.kept:
        kept &= kept_mask(observing.kept[name], (found.shape[1], found.shape[2]))
    return BlockMaps(name, dense.cpu(), found.cpu(), kept.cpu())


def _probabilities(model: nn.Module, logits: object) -> Tensor | None:
    classes = getattr(model, "num_classes", 0)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != classes:
        return None
    return logits.float().softmax(1).cpu()


def _joined(parts: Sequence[Examination]) -> Examination:
    """Put the batches of one run together."""
    blocks = tuple(
        BlockMaps(
            same[0].name,
            torch.cat([block.dense for block in same]),
            _cat([block.pruned for block in same]),
            _cat([block.kept for block in same]),
            _cat([block.joined for block in same]),
        )
        for same in zip(*(part.blocks for part in parts), strict=True)
    )
    return Examination(blocks, _cat([part.dense for part in parts]), _cat([part.pruned for part in parts]))


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if len(present) == len(parts) else None
