"""What is checked, and how numbers are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repshift.calls import Call, positional_names
from repshift.drops import Drop
from repshift.errors import RepshiftError, ScheduleError, UnknownNameError, UnsupportedModelError, first_line
from repshift.finding import require_structure
from repshift.modules import require_model
from repshift.participants import participants
from repshift.pruners import Candidates
from repshift.pruning import prune
from repshift.recipes import Recipe
from repshift.schedules import Schedule
from repshift.selection import Selection
from repshift.sites import Structure
from repshift.tracker import ShiftTracker


class BackboneError(RepshiftError, AssertionError):
    """A backbone that does not keep what every backbone promises."""


@dataclass(frozen=True)
class KeepAll:
    """A pruner that takes every token as kept, through the whole machinery, instead of leaving the value alone."""

    drops_only: ClassVar[bool] = True

    def choose(self, candidates: Candidates, drop: Drop) -> Selection:
        """Keep every token, in its order."""
        scores = candidates.scores
        kept = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
        grid = candidates.layout.grid(candidates.value)
        return Selection(kept, grid=None if grid is None else candidates.grid)


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        model: Dense, in evaluation mode.
        images: ``(batch, ...)``, two at least; what the model takes.
        recipe: How it is pruned.
        structure: What its backbone says of it.
    """

    model: nn.Module
    images: Tensor
    recipe: Recipe
    structure: Structure

    def pruned(self, **changes: Any) -> nn.Module:
        """Make a pruned model, by the recipe or by one that differs from it."""
        return prune(self.model, self.structure, replace(self.recipe, **changes))

    def companions(self) -> dict[str, Tensor]:
        """Make what the model can be given for the tokens in its blocks: zeros, which hide and change nothing."""
        tokens, taken = self.structure.tokens, positional_names(self.model.forward)
        given = {}
        for each in self.structure.companions:
            if each.optional and each.argument in taken and tokens is not None:
                shape = [each.prefix + tokens if name == "token" else 1 for name in each.dimensions]
                given[each.argument] = self.images.new_zeros(shape)
        return given

    def tracker(self, model: nn.Module) -> ShiftTracker[nn.Module]:
        """Make a tracker of what the recipe scores by, for the dense model or a pruned one."""
        recipe = self.recipe
        return ShiftTracker(model, operation=recipe.operation, distance=recipe.distance, residual=recipe.residual)


def make_subject(model: nn.Module, images: Tensor, recipe: Recipe | None = None) -> Subject:
    """Put together what is checked; arguments as for :func:`check_backbone`.

    Args:
        model: See there.
        images: ``(batch, ...)``, see there.
        recipe: See there.

    Raises:
        UnsupportedModelError: If no backbone knows the model, it is not in evaluation mode, or these are no images.
        BackboneError: If what its backbone says of it cannot be used at all.
    """
    require_model(model)
    if not isinstance(images, Tensor) or not images.ndim:
        raise UnsupportedModelError(f"A backbone is checked on images in a tensor (batch, ...), got {images!r}.")
    with _blamed_on_the_backbone(model, "cannot be described"):
        structure = require_structure(model)
        if not structure.sites:
            raise BackboneError(f"{type(model).__name__} is described without any blocks. List them as sites.")
    if model.training or images.shape[0] < 2:
        raise UnsupportedModelError(
            "A backbone is checked in evaluation mode (model.eval()), with two images at least, got "
            f"{'training mode' if model.training else 'evaluation mode'} and {images.shape[0]}."
        )
    if recipe is not None and not isinstance(recipe, Recipe):
        recipe = Recipe(recipe)
    if recipe is not None and recipe.schedule is None:
        raise ScheduleError("A backbone is checked by what it drops, and the recipe drops nothing. Give a schedule.")
    with _blamed_on_the_backbone(model, "as it is described cannot be pruned"):
        return Subject(model, images, recipe or usual_recipe(model, images, structure), structure)


@contextmanager
def _blamed_on_the_backbone(model: nn.Module, what: str) -> Iterator[None]:
    try:
        yield
    except (BackboneError, ScheduleError, UnsupportedModelError, UnknownNameError):
        raise
    except Exception as error:  # whatever a foreign model raises when it is described wrongly
        raise BackboneError(
            f"{type(model).__name__} {what} ({type(error).__name__}: {first_line(error)}). Look at the prefix of the "
            "layout, at the companions and at the names of modules that its backbone gives."
        ) from error


def leftovers(model: nn.Module) -> list[str]:
    """List what a pruned model holds between forwards, in this thread; nothing, if all is well."""
    held = []
    for name, module in participants(model):
        for role in module.repshift_roles:
            streams = getattr(role, "streams", None)
            if streams is not None:
                told = {field.name: getattr(streams.own, field.name) for field in fields(streams.own)}
                own = {name: value for name, value in told.items() if value not in (None, ())}
                held += [f"{name}: {key}" for key in own]
    return held


def usual_recipe(model: nn.Module, images: Tensor, structure: Structure) -> Recipe:
    """Drop a quarter after the first two blocks that can be scored, or after one if a second cut leaves too little.

    Args:
        model: Dense.
        images: ``(batch, ...)``, what the model takes.
        structure: What its backbone says of it.

    Raises:
        ScheduleError: If a quarter cannot go behind any block.
        UnsupportedModelError: If no block has the model's own operation.
    """
    having = [number for number, site in enumerate(structure.sites) if structure.operation in site.operations]
    if not having:
        structure.at(structure.sites[0], structure.operation)
    for blocks in (having[:2], having[:1]):
        recipe = Recipe(Schedule(dict.fromkeys(blocks, 0.25)), operation=structure.operation)
        try:
            with torch.no_grad():
                prune(model, structure, recipe)(images)
        except ScheduleError:
            continue
        return recipe
    raise ScheduleError("A quarter of the tokens cannot go behind any block. Give a recipe of your own.")


def is_sequence(structure: Structure) -> bool:
    """Say whether tokens go one by one, rather than by whole lines of a map."""
    return not hasattr(structure.layout, "arrange")


def tensors_of(output: Any) -> list[Tensor]:
    """List the floating-point tensors of what a model returns, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in tensors_of(value)]
    if isinstance(output, (tuple, list)):
        return [tensor for value in output for tensor in tensors_of(value)]
    return []


def require_equal(found: Any, expected: Any, where: str) -> None:
    """Compare all tensors of two outputs bit for bit.

    Raises:
        BackboneError: If they differ.
    """
    for one, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        if not torch.equal(one, other):
            raise BackboneError(f"other numbers {where}: {_difference(one, other)}")


def require_close(found: Any, expected: Any, where: str) -> None:
    """Compare all tensors of two outputs, with a tolerance that is a part of their largest value.

    Raises:
        BackboneError: If they differ.
    """
    for one, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        tolerance = 1e-4 * max(1e-6, float(other.abs().max()))
        if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-4, atol=tolerance):
            raise BackboneError(f"other numbers {where}: {_difference(one, other)}")


def _difference(one: Tensor, other: Tensor) -> str:
    if one.shape != other.shape:
        return f"{tuple(one.shape)} instead of {tuple(other.shape)}"
    one, other = one.detach(), other.detach()
    return f"off by up to {float((one - other).abs().max()):.3g}, where the largest is {float(other.abs().max()):.3g}"


def store(seen: dict[str, Any], key: str) -> Callable[..., None]:
    """Make a hook that stores what a module returns."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen[key] = output

    return hook


@contextmanager
def entering(modules: Iterable[nn.Module], change: Callable[[nn.Module, Call], Call]) -> Iterator[None]:
    """Let a function see, and change, what modules are called with, while the context lasts."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call = change(module, Call(args, kwargs, positional_names(module.forward)))
        return call.args, dict(call.kwargs)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield
