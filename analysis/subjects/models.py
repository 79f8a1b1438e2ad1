"""Models by the names that commands take: those of :func:`repshift.load_model`, and folders that hold one."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from repshift import DataError, Recipe, attention, dense, load_model, recipe_of
from repshift.folders import LEAD_OUT, SavedModel, folder_of, read_folder


@dataclass(frozen=True)
class ModelOptions:
    """What the options of the commands say of a model beside its name; the same in every command.

    Attributes:
        pretrained: Load the published weights.
        checkpoint: Load weights from this file.
        use_ema: Of a checkpoint with averaged weights; see :func:`repshift.load_model`.
        img_size: Pixels a side of the images; ``None`` for the model's own.
        input_size: Channels, rows and columns instead.
        options: Passed on to the model, see :func:`model_options`.
        attention: The kernel of its attention, see :func:`repshift.attention`; ``None`` leaves it as it is.
    """

    pretrained: bool = False
    checkpoint: str | Path | None = None
    use_ema: bool | None = None
    img_size: int | None = None
    input_size: tuple[int, int, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    attention: str | None = None

    @property
    def sized(self) -> bool:
        """Whether a size of the images was asked for."""
        return self.img_size is not None or self.input_size is not None


def model_options(num_classes: int | None, model_kwargs: Sequence[str] | None) -> dict[str, Any]:
    """Read ``--num-classes`` and ``--model-kwargs key=value ...``: Python's literals, else text, as timm does.

    Raises:
        DataError: If something is no ``key=value``, or is said twice.

    Example:
        >>> model_options(10, ["drop_path_rate=0.1 global_pool=avg"])
        {'num_classes': 10, 'drop_path_rate': 0.1, 'global_pool': 'avg'}
    """
    parsed: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    for option in (part for text in model_kwargs or () for part in text.split()):
        name, sign, value = option.partition("=")
        if not sign or not name.isidentifier():
            raise DataError(f"--model-kwargs got {option!r}, expected key=value, as in drop_path_rate=0.1.")
        if name in parsed:
            raise DataError(f"{name} was given twice (--model-kwargs, --num-classes). Give it once.")
        if name in LEAD_OUT or name == "attention":
            own = "--attention" if name == "attention" else "--pretrained, --checkpoint"
            raise DataError(f"--model-kwargs got {option!r}, which has options of its own: {own}.")
        try:
            parsed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            parsed[name] = value
    return parsed


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
    return None if saved is None or saved.recipe is None or saved.recipe.only_attention else saved.recipe


def load_dense(name: str, **loading: Any) -> nn.Module:
    """Load a model that is dense, whatever its folder says of pruning; its attention is what the folder says.

    Args:
        name: A name or a folder.
        **loading: See :func:`repshift.load_model`.

    Raises:
        RepshiftError: If there is no such model, or its weights cannot be had.
    """
    model = load_model(folder_of(name) or name, **loading)
    recipe = recipe_of(model)
    if recipe is None or recipe.only_attention:
        return model
    return dense(model) if recipe.attention is None else attention(dense(model), recipe.attention)
