"""Pruned models of transformers in folders: the dense model as transformers saves it, and the recipe beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from repshift.choosing import recipe_of
from repshift.errors import CheckpointError, MissingPackageError, RepshiftError, first_line
from repshift.files import read_text
from repshift.folders import describe_folder
from repshift.participants import own_class

# what a configuration may say that leads out of the folder, or to code
LEAD_OUT = ("auto_map", "quantization_config", "custom_pipelines", "use_pretrained_backbone")
KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
INDEX = "model.safetensors.index.json"


def save_with_recipe(model: Any, save_directory: str | Path, is_main_process: bool = True, **options: Any) -> Any:
    """Save the dense model by its own ``save_pretrained``, and beside it what it is and how it is pruned.

    Args:
        model: Pruned.
        save_directory: Made if needed.
        is_main_process: Of several processes, the one that writes.
        **options: Of ``save_pretrained``.

    Raises:
        RecipeError: If the recipe cannot be written down.
    """
    own: Any = own_class(model)
    if is_main_process:  # first, so that what is uploaded has it, too
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        describe_folder(Path(save_directory), f"transformers:{own.__name__}", recipe_of(model))
    return own.save_pretrained(model, save_directory, is_main_process, **options)


def load_saved(folder: Path, name: str) -> nn.Module:
    """Load a dense model that transformers saved; nothing is fetched, no code of the folder runs.

    Args:
        folder: Holds ``config.json`` and weights as safetensors.
        name: The model's class, one of transformers' own.

    Raises:
        CheckpointError: If there is no such class, or the folder cannot be read or leads elsewhere.
        MissingPackageError: If transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            f"{folder} holds a model of transformers, which is not installed: pip install 'repshift[huggingface]'."
        ) from error
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"{folder} holds a {name!r}, which is no model of this version of transformers. Build it yourself, and "
            "prune it by the recipe: Recipe.from_dict(json['recipe'])."
        )
    _refuse_what_leads_out(folder)
    try:
        load = getattr(kind, "from_pretrained")  # noqa: B009  # of a class of transformers' own, which runs no other code
        model: nn.Module = load(str(folder), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be read by transformers ({first_line(error)}).") from error
    return model.eval()


def _refuse_what_leads_out(folder: Path) -> None:
    """Refuse adapters, configurations and lists of weights that name what is not in the folder."""
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} holds an adapter, whose model is elsewhere. Merge it and save the whole model."
        )
    for key, value in _entries(_json(folder / "config.json")):
        if (key in LEAD_OUT and value) or (key in KERNELS and "/" in str(value)):
            raise CheckpointError(
                f"{folder / 'config.json'} has {key!r}, which leads out of the folder. Take it out, or load the model "
                "with transformers and prune it by the recipe."
            )
    index = _json(folder / INDEX) if (folder / INDEX).is_file() else {}
    if others := [value for _, value in _entries(index) if isinstance(value, str) and Path(value).name != value]:
        raise CheckpointError(
            f"{folder / INDEX} names {others[0]!r}, which is not in the folder. Save the model again."
        )


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError, RepshiftError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}). Save the model again.") from error


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """List everything that is said by name, at any depth."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield str(key), each
        yield from _entries(each)
