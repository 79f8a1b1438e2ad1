"""Models by the names that commands take: those of :func:`repshift.load_model`, and folders that hold one."""

from __future__ import annotations

from typing import Any

from torch import nn

from repshift import Recipe, dense, load_model, recipe_of
from repshift.folders import SavedModel, folder_of, read_folder


def saved_model(name: str) -> SavedModel | None:
    """Read what the folder of a name holds; ``None`` if the name is no folder.

    Raises:
        CheckpointError: If the folder holds no model.
        RecipeError: If its description cannot be read.
    """
    folder = folder_of(name)
    return None if folder is None else read_folder(folder)


def loaded_name(name: str) -> str:
    """Return what :func:`repshift.load_model` calls a model: of a folder, the name of the model in it.

    Raises:
        CheckpointError: If the folder holds no model.
        RecipeError: If its description cannot be read.
    """
    saved = saved_model(name)
    return name if saved is None else saved.name


def own_recipe(name: str) -> Recipe | None:
    """Return how a model in a folder is pruned; ``None`` for a dense one, and for a model that is loaded by name.

    Raises:
        CheckpointError: If the folder holds no model.
        RecipeError: If its description cannot be read.
    """
    saved = saved_model(name)
    return None if saved is None else saved.recipe


def load_dense(name: str, **loading: Any) -> nn.Module:
    """Load a model that is dense, whatever its folder says of pruning.

    Args:
        name: A name or a folder.
        **loading: See :func:`repshift.load_model`.

    Raises:
        RepshiftError: If there is no such model, or its weights cannot be had.
    """
    model = load_model(folder_of(name) or name, **loading)
    return model if recipe_of(model) is None else dense(model)
