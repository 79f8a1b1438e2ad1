"""Finding the classes of Hugging Face transformers by their names, so that the library need not be imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from repshift.backbones.huggingface_folder import save_with_recipe
from repshift.sites import Structure

Value = TypeVar("Value")


def class_names(module: nn.Module) -> list[str]:
    """List the names of the classes of transformers that a module is of, as ``"bert.modeling_bert.BertModel"``."""
    begin = "transformers.models."
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__)
    return [name.removeprefix(begin) for name in names if name.startswith(begin)]


def named(module: nn.Module, table: Mapping[str, Value]) -> Value | None:
    """Look up a module's class, or one that it inherits from, in a table of such names."""
    return next((table[name] for name in class_names(module) if name in table), None)


def blocks_of(model: nn.Module, kind: str, under: str = "") -> list[str]:
    """List the modules of a class by name, since the names of blocks differ between versions.

    Args:
        model: The model.
        kind: Name of the class, without where it is written.
        under: What the names begin with.
    """
    inside = ((name, class_names(module)) for name, module in model.named_modules() if name.startswith(under))
    return [name for name, classes in inside if any(each.endswith(f".{kind}") for each in classes)]


def within_head(model: Any, describe: Callable[[Any], Structure]) -> Structure:
    """Describe a model by its encoder, which a model with a head holds; pruned, it saves its recipe, too.

    Args:
        model: An encoder, or a model with a head.
        describe: Describes an encoder.
    """
    prefix = getattr(model, "base_model_prefix", "")
    root = prefix if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""
    described = replace(describe(model.get_submodule(root)), methods={"save_pretrained": save_with_recipe})
    return described.within(root) if root else described
