"""A model in a folder: its weights, and beside them what it is and how it is pruned."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repshift.choosing import recipe_of
from repshift.errors import CheckpointError, DataError, RecipeError, first_line
from repshift.files import all_or_none, as_path, read_text, write_json, write_whole
from repshift.modules import require_model
from repshift.recipes import VERSION, Recipe, check_version
from repshift.registry import Registry

DESCRIPTION = "repshift.json"
# models that were saved by their own library, of the class behind the colon; the function that loads them
LIBRARIES = Registry("library", {"transformers": "repshift.backbones.huggingface_folder:load_saved"})
HUBS = ("hf-hub", "hf_hub")  # where a model's name may come from; local-dir: is another folder
# options of load_model and of timm that name weights elsewhere
LEAD_OUT = (
    "name",
    "checkpoint",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
    "use_ema",
)
WEIGHTS = ("model.safetensors", "model_best.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class SavedModel:
    """What the description in a folder says.

    Attributes:
        weights: The file of the weights; the folder, where a library of its own finds them in it.
        name: The model's, for :func:`repshift.load_model`.
        options: What the model is built with.
        recipe: How it is pruned; ``None`` for a dense model.
    """

    weights: Path
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None


def folder_of(name: str | Path) -> Path | None:
    """Tell a folder from a model's name: names have no slash, but for those with a source (``hf-hub:timm/...``).

    Returns:
        The folder, if the name leads to one.
    """
    if isinstance(name, Path):
        return name
    is_path = ":" not in name and ("/" in name or "\\" in name)
    return Path(name) if is_path and Path(name).is_dir() else None


def save_model(model: nn.Module, folder: str | Path, name: str | None = None, **options: Any) -> None:
    """Save a model so that ``load_model(folder)`` brings it back: ``model.safetensors`` and ``repshift.json``.

    The weights are the dense model's; a pruned model's recipe stands in the description.

    Args:
        model: Dense or pruned.
        folder: Made if needed; a model that is there already is replaced.
        name: The model's name for :func:`repshift.load_model`; may be left out for models that know it, as timm's do.
        **options: What it was built with, for example ``num_classes=10``; must be plain values.

    Raises:
        UnsupportedModelError: If it is no model.
        CheckpointError: If the model does not know its name, is not what the name and the options stand for, or the
            folder cannot be written to.
        UnknownNameError: If there is no model of the name, or it does not take the options.
        RecipeError: If the recipe, or an option, cannot be written down.

    Example:
        >>> import tempfile
        >>> from repshift import ShiftTracker, load_model, recipe_of, save_model
        >>> pruned = ShiftTracker(load_model("tiny_vit", pretrained=True)).prune("0.2@0,2")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(pruned, folder, "tiny_vit")
        ...     str(recipe_of(load_model(folder)).schedule)
        '0.2@0,2'
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_model as save_weights

    require_model(model)
    path = as_path(folder, CheckpointError)
    known = getattr(model, "pretrained_cfg", None) or {}
    name = name or known.get("architecture")
    if not name and hasattr(model, "save_pretrained"):
        raise CheckpointError(
            f"{type(model).__name__} saves itself: model.save_pretrained(folder), of a pruned model with its recipe, "
            "so that load_model(folder) brings it back."
        )
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{type(model).__name__} does not know its name. Give the one that load_model takes: "
            "save_model(model, folder, 'tiny_vit')."
        )
    _check_fits(model, name, options)
    described = _described(model, name, options)

    def write(unfinished: Path) -> None:
        try:
            save_weights(model, str(unfinished))
        except SafetensorError as error:  # a full disk, among others
            raise OSError(first_line(error)) from error

    try:
        with all_or_none():
            write_whole(path / WEIGHTS[0], write, CheckpointError)
            write_json(path / DESCRIPTION, described)
    except DataError as error:
        raise CheckpointError(str(error)) from error


def describe_folder(folder: Path, name: str, recipe: Recipe | None, **options: Any) -> None:
    """Write only the description beside weights that are in a folder already.

    Raises:
        RecipeError: If the recipe or an option cannot be written down.
    """
    write_json(folder / DESCRIPTION, _said(name, options, recipe))


def read_folder(folder: Path) -> SavedModel:
    """Read what a folder holds.

    Raises:
        CheckpointError: If it holds no model.
        RecipeError: If its description cannot be read.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no {DESCRIPTION}, so which model it is cannot be told. Give a folder that save_model "
            "wrote, or a name and checkpoint=FILE."
        )
    try:
        said = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is no JSON ({first_line(error)}). Save the model again.") from error
    if not isinstance(said, dict) or not isinstance(said.get("model"), str):
        raise CheckpointError(f"{path} does not name a model. Load it by name, with checkpoint=FILE.")
    check_version(said)
    options = said.get("options", {})
    if not isinstance(options, dict):
        raise RecipeError(f"{path} should list the model's options by name, got {options!r}. Save the model again.")
    source, sign, _ = said["model"].partition(":")
    if (sign and source not in HUBS and source not in LIBRARIES) or folder_of(said["model"]) is not None:
        raise CheckpointError(
            f"{path} names {said['model']!r}, which lies outside of the folder. Load that by name, or name a model."
        )
    if led_out := [name for name in options if name in LEAD_OUT]:
        raise CheckpointError(
            f"{path} has the options {', '.join(led_out)}, which lead to other files. Take them out of it: the weights "
            "of a folder are its own."
        )
    weights = [folder / file for file in WEIGHTS if (folder / file).is_file()]
    if not weights and source not in LIBRARIES:
        raise CheckpointError(f"{folder} holds none of {', '.join(WEIGHTS)}. Put the weights there.")
    recipe = said.get("recipe")
    return SavedModel(
        weights[0] if weights else folder, said["model"], options, None if recipe is None else Recipe.from_dict(recipe)
    )


def _check_fits(model: nn.Module, name: str, options: dict[str, Any]) -> None:
    """Refuse to save what could not be loaded: the model that its name and options stand for has other weights.

    Raises:
        CheckpointError: If it has.
    """
    if own := [option for option in options if option in LEAD_OUT]:
        raise CheckpointError(
            f"{', '.join(own)} says where weights come from, and those of a folder are its own. Give only what the "
            "model was built with, such as num_classes=10."
        )
    if "attention" in options:
        raise CheckpointError(
            "The kernel of attention is saved in the model's recipe. Leave attention out, and save what "
            "repshift.attention(model, kernel) returns."
        )
    if ":" in name:  # another place knows what this stands for, and may be out of reach
        return
    has = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    expected = {key: tuple(value.shape) for key, value in _built(name, options).state_dict().items()}
    differing = [key for key in {**expected, **has} if has.get(key) != expected.get(key)]
    if differing:
        key = differing[0]
        built = f"{name} with {options}" if options else name
        raise CheckpointError(
            f"This {type(model).__name__} could not be loaded again as {built}: {len(differing)} weights differ, the "
            f"first {key!r}, of shape {has.get(key, 'that it does not have')}, expected "
            f"{expected.get(key, 'not to be there')}. Save the model itself, not what holds it, and give what it was "
            "built with: save_model(model, folder, name, num_classes=10)."
        )


def _built(name: str, options: dict[str, Any]) -> nn.Module:
    from repshift.loading import load_model

    with torch.random.fork_rng(devices=[]):  # what is random elsewhere is as without this
        try:
            with torch.device("meta"):  # no weights are made
                return load_model(name, **options)
        except (RuntimeError, NotImplementedError):  # what is built looks at numbers
            return load_model(name, **options)


def _described(model: nn.Module, name: str, options: dict[str, Any]) -> dict[str, Any]:
    return _said(name, options, recipe_of(model))


def _said(name: str, options: dict[str, Any], recipe: Recipe | None) -> dict[str, Any]:
    return {
        "repshift": VERSION,
        "model": name,
        "options": options,
        "recipe": None if recipe is None else recipe.to_dict(),
    }
