"""What a copy of a model says of itself: its recipe; and the kernel that is chosen for its attention."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from torch import nn

from repshift.attention_modules import choose
from repshift.finding import find_structure_if_served
from repshift.kernels import activate, require_kernel
from repshift.modules import refuse_compiled, require_model
from repshift.recipes import Recipe
from repshift.sharing import share_weights
from repshift.sites import Structure

Model = TypeVar("Model", bound=nn.Module)


def recipe_of(model: nn.Module) -> Recipe | None:
    """Return the recipe that a model was pruned by, with what was left to the model settled.

    Args:
        model: Any model, or one that holds a pruned one.

    Returns:
        The recipe; ``None`` for a dense model.

    Raises:
        UnsupportedModelError: If it is no model.

    Example:
        >>> from repshift import ShiftTracker, load_model, recipe_of
        >>> recipe_of(ShiftTracker(load_model("tiny_vit")).prune("0.2@0,2"))
        Recipe('0.2@0,2', operation='mlp', pruner='tokens')
    """
    require_model(model)
    found = (vars(module).get("repshift_recipe") for module in model.modules())
    return next((recipe for recipe in found if isinstance(recipe, Recipe)), None)


def attention(model: Model, kernel: str) -> Model:
    """Return a model like this one that computes its attention by one kernel, whatever was chosen for it before.

    The choice is a part of the model: graphs that are compiled or exported have it, it is copied, pickled, saved with
    the model's recipe, and pruning keeps it. Nothing else takes the kernel's place: what it cannot serve is refused,
    now if that is known, else in the first forward. See :func:`repshift.available_attention`.

    Args:
        model: Dense or pruned; of timm, transformers, UMT or the zoo. It is not touched.
        kernel: ``"eager"``, plain products that hold the map of attention; ``"sdpa"``, torch's own choice among its
            kernels; of these one, ``"flash"``, ``"efficient"``, ``"cudnn"`` or ``"math"``; ``"flash2"``, the package
            flash-attn; ``"flash3"``, ``"flash4"``, which take the place of torch's own for the whole process; or
            ``"flex"``.

    Returns:
        A copy that shares parameters and buffers, see :func:`repshift.sharing.share_weights`. :func:`dense` gives back
        what was there before.

    Raises:
        UnknownNameError: If there is no kernel of this name.
        UnsupportedModelError: If the kernel cannot be had here, or cannot serve the model; the message says why.

    Example:
        >>> import torch
        >>> from repshift import ShiftTracker, attention, load_model
        >>> model = attention(load_model("tiny_vit"), "flash")
        >>> ShiftTracker(model).prune("0.2@0,2")(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    require_model(model)
    refuse_compiled(model)
    require_kernel(kernel)
    chosen, recipe = share_weights(model), recipe_of(model)
    structure = None if recipe is not None else find_structure_if_served(model)
    recipe = Recipe(attention=kernel) if recipe is None else replace(recipe, attention=kernel)
    choose_kernel(chosen, recipe)
    held = [name for name, module in model.named_modules() if "repshift_recipe" in vars(module)]
    noted(chosen, held[0] if held else structure.root if structure is not None else "", recipe)
    if structure is not None:
        replace_methods(chosen, structure)
    return chosen


def choose_kernel(model: nn.Module, recipe: Recipe) -> None:
    """Let a copy compute its attention as its recipe says; what it says nothing of stays."""
    if recipe.attention is None:
        return
    require_kernel(recipe.attention)
    choose(model, recipe.attention)
    activate(recipe.attention)


def noted(model: nn.Module, root: str, recipe: Recipe) -> nn.Module:
    """Let a copy's part hold its recipe, and no other; return the part."""
    for module in model.modules():
        vars(module).pop("repshift_recipe", None)
    part = model.get_submodule(root)
    part.repshift_recipe = recipe  # type: ignore[assignment]  # a plain attribute, neither tensor nor module
    return part


class Replaced(partial[Any]):
    """A method that a pruned model has otherwise than the dense one."""


def replace_methods(pruned: nn.Module, structure: Structure) -> None:
    """Give a copy, and what holds it, the methods that they have otherwise than the dense model."""
    parts = structure.root.split(".") if structure.root else []
    for end in range(len(parts) + 1):
        module = pruned.get_submodule(".".join(parts[:end]))
        for name, function in structure.methods.items():
            if hasattr(type(module), name):
                setattr(module, name, Replaced(function, module))
