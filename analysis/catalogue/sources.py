"""The models that there are, by name, and how they are built without weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from repshift.errors import UnknownNameError
from repshift.registry import suggest

TORCHVISION = "torchvision/"  # both libraries have a resnet50


def model_names(patterns: str | None) -> list[str]:
    """List timm's models and torchvision's classifiers, ``torchvision/NAME``, in the order of their names.

    Args:
        patterns: With commas; in each ``*``, ``?`` and ``[...]`` are wildcards.

    Raises:
        UnknownNameError: If a pattern matches none; the message has the closest names.
    """
    import timm
    import torchvision

    every = [
        *timm.list_models(),
        *(TORCHVISION + name for name in sorted(torchvision.models.list_models(module=torchvision.models))),
        *(TORCHVISION + name for name in sorted(torchvision.models.list_models(module=torchvision.models.video))),
    ]
    if patterns is None:
        return every
    found: set[str] = set()
    for pattern in patterns.split(","):
        word = pattern.strip()
        matches = [name for name in every if fnmatchcase(name, word)]
        if not matches:
            raise UnknownNameError(f"No model matches {word!r}. {suggest(word, every)} Or give a pattern, as '*deit*'.")
        found.update(matches)
    return [name for name in every if name in found]


def family_of(name: str) -> str:
    """Return the file that a model is written in, which is what its library calls a family."""
    import timm
    import torchvision

    if name.startswith(TORCHVISION):
        return TORCHVISION + str(torchvision.models.get_model_builder(_bare(name)).__module__).rpartition(".")[2]
    return str(timm.models.model_entrypoint(name).__module__).rpartition(".")[2]


def build(name: str, device: str = "meta") -> nn.Module:
    """Build a model with random weights, or with none on the device ``meta``, in evaluation mode."""
    import timm
    import torchvision

    create = torchvision.models.get_model if name.startswith(TORCHVISION) else timm.create_model
    with quiet():
        try:
            with torch.device(device):
                model: nn.Module = create(_bare(name))
        except (NotImplementedError, RuntimeError):  # widths that are computed by tensors need values
            model = create(_bare(name)).to(device)
    return model.eval()


def example(model: nn.Module, device: str, batch: int) -> Any:
    """Make images of the size that a model was published for: noise, the same of every call."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    video = type(model).__module__.startswith("torchvision.models.video")
    fixed = getattr(model, "image_size", 299 if type(model).__name__ == "Inception3" else 224)
    size = (3, 16, 224, 224) if video else config.get("input_size", (3, fixed, fixed))
    if device == "meta":
        return torch.empty(batch, *size, device=device)
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what libraries warn of their own models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _bare(name: str) -> str:
    return name.removeprefix(TORCHVISION)
