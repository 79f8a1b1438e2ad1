"""The pruned model: a copy that shares every weight, in which a few modules take part in pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from repshift.arriving import End, ShortenAnswer
from repshift.attention_modules import forget
from repshift.choosing import Replaced, attention, choose_kernel, noted, recipe_of, replace_methods
from repshift.errors import UnsupportedModelError
from repshift.finding import find_structure, refuse_wrappers
from repshift.images import read_size
from repshift.modules import refuse_compiled, require_model
from repshift.participants import participants, take_leave, take_part, takes_part_in_pruning
from repshift.planning import Plan, with_replay, with_scale
from repshift.pruners import Pruner, check_layout
from repshift.recipes import Recipe
from repshift.resizing import forget_size, take_size
from repshift.roles import Role
from repshift.sharing import give_each_place_its_own, share_weights
from repshift.sites import Structure
from repshift.travelling import Carry, NoteGrid, Start

Model = TypeVar("Model", bound=nn.Module)


def prune(model: Model, structure: Structure, recipe: Recipe) -> Model:
    """Make a pruned copy of a model that shares its parameters and buffers; the model itself is not touched.

    Raises:
        UnsupportedModelError: If the model is compiled or pruned already, or a block cannot be watched or cut.
        ScheduleError: If the schedule does not fit the model.
        UnknownNameError: If a name in the recipe is not known.
    """
    refuse_compiled(model)
    _require_dense(model)
    _refuse_tracked_only(structure, type(model).__name__)
    laid_out = bool(recipe.restore) or recipe.schedule is None or not structure.grid_methods
    refuse_wrappers(model, structure.root, laid_out)
    recipe, pruner = _settled(structure, recipe, recipe_of(model))
    if recipe.only_attention:
        return attention(model, str(recipe.attention))
    check_layout(pruner, structure.layout, type(model).__name__, structure.pruner, structure.counts_once)
    pruned: Model | None = None
    resizing: list[tuple[str, Role]] = []
    if recipe.input_size is not None:  # of another size there may be other numbers of tokens
        pruned = share_weights(model)
        structure, resizing = take_size(pruned, structure, read_size(recipe.input_size))
    if recipe.schedule is not None:
        recipe.schedule.check(len(structure.sites), structure.tokens, structure.unit)
    plan = Plan(structure, recipe, pruner, resizing)
    _require_places(plan, type(model).__name__)
    roles = plan.roles()
    plan.say_second_residual()
    if not plan.follows:  # then these would only follow a companion that is seldom given
        roles = {
            name: played for name, played in roles.items() if not (_only_follows(played) and _patched(model, name))
        }
    blocks = [site.name for site in structure.sites]
    _require_own_forward(model, roles, blocks)
    pruned = share_weights(model) if pruned is None else pruned
    give_each_place_its_own(pruned, structure.places(), blocks, roles)
    if plan.placed:  # the last to see the images, whatever is done to them before; it asks the copy's own embedding
        note = NoteGrid(plan.streams, _grid_of(pruned, structure), structure.images)
        roles[structure.embedding] = [*roles[structure.embedding], note]
    roles = _asking_about_bias(roles, pruned, structure)
    for name, module in plan.replays(pruned).items():
        roles = {other: [with_replay(role, name, module) for role in played] for other, played in roles.items()}
    for name, scale in plan.scales(pruned).items():
        roles = {other: [with_scale(role, name, scale) for role in played] for other, played in roles.items()}
    for name, played in roles.items():
        take_part(pruned.get_submodule(name), tuple(played))
    choose_kernel(pruned, recipe)
    inside = noted(pruned, structure.root, recipe)
    for method in structure.grid_methods if recipe.drops and not plan.lays_out else ():
        setattr(inside, method, Replaced(_refuse_grid, method, structure.restores is not None))
    replace_methods(pruned, structure)
    return pruned


def dense(model: Model) -> Model:
    """Return the dense model that a pruned one was made from, or one like it: of its class, with the same weights.

    Args:
        model: A pruned model, or one that holds one; a dense one is copied.

    Returns:
        A copy that shares parameters and buffers, drops nothing, and computes attention as before one was chosen.

    Raises:
        UnsupportedModelError: If the model is compiled, or something on it cannot be copied.

    Example:
        >>> import torch
        >>> from repshift import ShiftTracker, dense, load_model
        >>> model, images = load_model("tiny_vit"), torch.rand(1, 3, 64, 64)
        >>> torch.equal(dense(ShiftTracker(model).prune("0.2@0,2"))(images), model(images))
        True
    """
    require_model(model)
    refuse_compiled(model)
    whole = share_weights(model)
    forget(whole)
    for _, participant in list(participants(whole)):
        take_leave(participant)
    forget_size(whole)
    for module in whole.modules():
        if "repshift_recipe" in vars(module):
            del module.repshift_recipe
        for method in [name for name, value in vars(module).items() if isinstance(value, Replaced)]:
            delattr(module, method)
    return whole


def _require_dense(model: nn.Module) -> None:
    if takes_part_in_pruning(model):
        raise UnsupportedModelError(
            f"This {type(model).__name__} is already pruned. Prune the model it was made from, with the whole schedule."
        )


def _settled(structure: Structure, recipe: Recipe, before: Recipe | None) -> tuple[Recipe, Pruner]:
    """Fill in what the recipe leaves to the model, and what was chosen for that before."""
    if before is not None and recipe.attention is None:
        recipe = replace(recipe, attention=before.attention)
    pruner = recipe.the_pruner(structure.pruner)
    if recipe.schedule is None:
        return recipe, pruner
    own = "attn" if getattr(pruner, "before_mlp", False) else structure.operation
    return (
        replace(
            recipe,
            schedule=recipe.schedule.over(len(structure.sites)),
            operation=(recipe.operation or own) if recipe.scores else None,
            pruner=structure.pruner if recipe.pruner is None else recipe.pruner,
        ),
        pruner,
    )


def _grid_of(pruned: nn.Module, structure: Structure) -> Callable[[Any], tuple[int, ...]]:
    grid = (find_structure(pruned) or structure).grid
    assert grid is not None
    return grid


def _asking_about_bias(roles: dict[str, list[Role]], pruned: nn.Module, structure: Structure) -> dict[str, list[Role]]:
    """Let roles that give attention a bias ask the copy whether it takes one, since its kernel may be changed."""
    if structure.no_bias is None:
        return roles
    no_bias = (find_structure(pruned) or structure).no_bias
    return {
        name: [replace(role, no_bias=no_bias) if isinstance(role, (Start, Carry)) else role for role in played]
        for name, played in roles.items()
    }


def _refuse_tracked_only(structure: Structure, model: str) -> None:
    if structure.unpruned:
        raise UnsupportedModelError(f"{model} can be tracked but not pruned: {structure.unpruned}.")


def _require_places(plan: Plan, model: str) -> None:
    """Refuse a recipe that asks for the places of tokens where these are not known."""
    structure = plan.structure
    if structure.needs_all and plan.recipe.drops and not plan.recipe.restore:
        raise UnsupportedModelError(
            f"The tokens of {model} must have their places back: {structure.needs_all}. Prune with restore=True."
        )
    if plan.recipe.restore and structure.restores is None:
        raise UnsupportedModelError(
            f"The tokens of {model} cannot have their places back: nothing behind its {structure.unit}s has one for "
            "each. Leave restore out."
        )
    if plan.framed and not structure.has_frames():
        raise UnsupportedModelError(
            f"{type(plan.pruner).__name__} takes the same of every frame of a video, and {model} has no frames that "
            f"are known. Choose another pruner, such as pruner={structure.pruner!r}."
        )
    if plan.placed and not plan.framed and not structure.has_rows_and_columns():
        raise UnsupportedModelError(
            f"{type(plan.pruner).__name__} asks where the tokens stood, and the rows and columns of {model} are not "
            f"known. Choose another pruner, such as pruner={structure.pruner!r}."
        )


def _only_follows(played: Iterable[Role]) -> bool:
    return all(isinstance(role, (Start, Carry, ShortenAnswer, End)) for role in played)


def _patched(model: nn.Module, name: str) -> bool:
    return "forward" in vars(model.get_submodule(name))


def _require_own_forward(model: nn.Module, names: Iterable[str], blocks: Iterable[str]) -> None:
    """Refuse a model that was patched on the way to a module that takes part: its copy would run the original."""
    taking_part = {model.get_submodule(name) for name in set(blocks).intersection(names)}
    every = model.named_modules(remove_duplicate=False)  # the model may call a block by any of its names
    names = {*names, *(name for name, module in every if module in taking_part)}
    paths = {"", *names}
    for name in names:
        paths.update(name[:end] for end, letter in enumerate(name) if letter == ".")
    for path in sorted(paths):
        if _patched(model, path):
            raise UnsupportedModelError(
                f"The forward of {path or type(model).__name__!r} was replaced on the module itself, so pruning would "
                "have no effect. Give the model before it was patched (by accelerate or another pruning library, say)."
            )


def _refuse_grid(method: str, restores: bool, *args: Any, **kwargs: Any) -> None:
    restoring = "Prune with restore=True, which gives them their places back; or use" if restores else "Use"
    raise UnsupportedModelError(
        f"{method} lays all tokens out on their grid, and this model has dropped some. {restoring} forward_features, "
        "or the maps of ShiftTracker(pruned)."
    )
